"""The card of a set: README.md with the YAML that `datasets` and the Hub read."""

from __future__ import annotations

from importlib import resources
from string import Template
from typing import Any

from moedd_loaders.manifest import (
    ExpertEntry,
    Manifest,
    TilesDecode,
    parquet_path,
    tar_path,
)

__all__ = ["card_metadata", "render_card"]

# Identifiers that the Hub accepts and that sources of ours carry; anything else is "other".
# fmt: off
_LICENSES = frozenset((
    "apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0",
    "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "odbl", "odc-by", "pddl", "cc", "openrail",
    "unknown", "other",
))
# fmt: on
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


def render_card(manifest: Manifest) -> str:
    """The whole README.md of a set."""
    import yaml  # here, as machines that only distil may lack it

    front = yaml.safe_dump(
        card_metadata(manifest), sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return f"---\n{front}---\n{_fill('card.md', _words(manifest))}"


def card_metadata(manifest: Manifest) -> dict[str, Any]:
    """The card's YAML as plain values.

    `configs` lists Parquet only: the builder is chosen once, from the first configuration, so tars
    beside it could not be read. There is no `dataset_info`: the files carry their features, and a
    stale copy would make loading fail.
    """
    source = manifest.source
    shards = sum(len(entry.shards) for entry in manifest.experts)
    by_expert = [
        {
            "split": f"expert_{entry.id}",
            "path": [parquet_path(shard, shards) for shard in entry.shards],
        }
        for entry in manifest.experts
    ]
    licence = source.license.strip().lower()
    known = licence in _LICENSES
    data: dict[str, Any] = {"license": licence if known else "other"}
    if not known:
        data["license_name"] = source.license
    data["pretty_name"] = manifest.name
    data["task_categories"] = ["image-classification"]
    rows = manifest.budget.images
    data["size_categories"] = [next((s for n, s in _SIZES if rows < n), "1M<n<10M")]
    if source.hub_id:
        data["source_datasets"] = [source.hub_id]
    data["tags"] = ["dataset-distillation", "moedd"]
    data["configs"] = [
        {
            "config_name": "default",
            "default": True,
            "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        },
        {"config_name": "by_expert", "data_files": by_expert},
    ]
    return data


def _words(manifest: Manifest) -> dict[str, str]:
    source, experts, budget = manifest.source, manifest.experts, manifest.budget
    tiled = [e for e in experts if isinstance(e.decode, TilesDecode) and e.decode.factor > 1]
    shards = sum(len(entry.shards) for entry in experts)
    tars = tar_path(0)
    if shards > 1:
        tars = f"{tar_path(0)[:-9]}{{00000..{shards - 1:05d}}}.tar"
    methods = " + ".join(dict.fromkeys(entry.method for entry in experts))
    many = "experts" if len(experts) > 1 else "expert"
    origin = f"`{source.hub_id}`" if source.hub_id else f"`{source.data}`"
    revision = f" at revision `{source.revision}`" if source.revision else ""
    return {
        "name": manifest.name,
        "summary": (
            f"A distilled data set: {budget.images} images for the {len(source.classes)} classes "
            f"of {source.data}, made by {len(experts)} {many} ({methods}). Train on it "
            "instead of on the real images."
        ),
        "decode_warning": _warning(tiled, len(experts)),
        "fuse": ', fuse="mixup"' if len(experts) > 1 else "",
        "tars": f'"path/to/{manifest.name}/{tars}"',
        "decode_snippet": (
            _fill("decode.md", {"mean": str([round(m, 6) for m in source.mean])}) if tiled else ""
        ),
        "expert_rows": "\n".join(map(_expert_row, experts)),
        "images": str(budget.images),
        "shape": str(tuple(source.shape)),
        "image_bytes": str(budget.image_bytes),
        "labels": "class numbers" if manifest.labels.kind == "hard" else "soft (one row per image)",
        "version": manifest.version,
        "created": manifest.created,
        "moedd": manifest.provenance.moedd or "(version not recorded)",
        "source": f"{origin}{revision}, split `{source.split}`",
        "license": source.license,
        "notes": "".join(f"* {note}\n" for note in source.notes),
        "diversity": _diversity(manifest),
    }


def _fill(template: str, words: dict[str, str]) -> str:
    text = (resources.files("moedd_publish") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(words)


def _warning(tiled: list[ExpertEntry], experts: int) -> str:
    if not tiled:
        return ""
    who = (
        "All experts" if len(tiled) == experts else "Experts " + ", ".join(str(e.id) for e in tiled)
    )
    if len(tiled) == 1:
        who = "The expert" if experts == 1 else f"Expert {tiled[0].id}"
    stores = "stores" if len(tiled) == 1 else "store"
    return (
        f"> **The images are tiles.** {who} {stores} several small images in each image, and "
        "training wants them cut apart and enlarged. `load_distilled` does that; who reads the "
        "PNGs, the tars or the tensors otherwise must do it (see below).\n"
    )


def _expert_row(entry: ExpertEntry) -> str:
    rule = entry.decode
    how = f"{rule.factor} x {rule.factor} tiles, {rule.order}" if rule.kind == "tiles" else "none"
    stored, decoded = _span(entry.stored_per_class), _span(entry.decoded_per_class)
    return (
        f"| {entry.id} | {entry.method} | {stored} | {decoded} | {how} | {entry.trained_in.space} |"
    )


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _diversity(manifest: Manifest) -> str:
    d = manifest.diversity
    if d is None:
        return ""
    s = d.shuffled
    baseline = (
        ""
        if s is None
        else (
            f" With the rows paired at random ({s.orders} times) the unbiased value is "
            f"{s.unbiased:.3f} ± {s.unbiased_std:.3f}."
        )
    )
    return (
        "\n## Diversity of the experts\n\n"
        f"Squared distance correlation between experts: {d.unbiased:.3f} unbiased ({d.biased:.3f} "
        f"biased, where independent sets of this size give {d.floor:.3f}); linear CKA "
        f"{d.cka:.3f}. Lower is more diverse.{baseline}\n"
    )
