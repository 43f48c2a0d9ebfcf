"""The card of a set: README.md with the YAML that `datasets` and the Hub read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import quote

from moedd_loaders.manifest import Manifest, parquet_path, tar_path
from moedd_loaders.records import Record
from moedd_publish import cardtext

__all__ = ["FORMATS", "OWNED_KEYS", "card_metadata", "render_card"]

FORMATS = ("parquet", "webdataset", "safetensors")
"""The containers that a set is published in; the last one always is."""
OWNED_KEYS = frozenset(
    (
        *("license", "license_name", "license_link", "pretty_name", "task_categories", "tags"),
        *("size_categories", "source_datasets", "library_name", "configs", "dataset_info"),
    )
)
"""Keys of the YAML that moedd writes; others are their writers'."""

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


def render_card(
    manifest: Manifest,
    *,
    records: Sequence[Record] = (),
    repo_id: str | None = None,
    formats: Sequence[str] = FORMATS,
    place: str | None = None,
    tag: str | None = None,
    branch: str | None = None,
) -> str:
    """The whole README.md of a set.

    Args:
        records: benchmark records to show.
        repo_id: where the set is published on the Hub; None for a set elsewhere.
        place: what loads it; `repo_id`, or "path/to/NAME", by default.
        formats: the containers that are there.
        tag: what names this state of `repo_id` for ever; None if nothing does.
        branch: where it is on the Hub, if that is not the main branch.
    """
    import yaml  # here, as machines that only distil may lack it

    front = yaml.safe_dump(
        card_metadata(manifest, benchmarks=bool(records) and repo_id is not None, formats=formats),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    if repo_id and branch and place is None:
        place = f"{repo_id}@{branch}"
    words = _words(manifest, records, repo_id, formats)
    words["versions"] = _versions(manifest, repo_id, tag, place or repo_id)
    words["readers"] = _readers(manifest, bool(records), repo_id, formats, tag, branch)
    if place is not None:
        words["place"] = place
    return f"---\n{front}---\n{_fill('card.md', words)}"


def card_metadata(
    manifest: Manifest, *, benchmarks: bool = False, formats: Sequence[str] = FORMATS
) -> dict[str, Any]:
    """The card's YAML as plain values.

    `configs` lists Parquet only: the builder is chosen once, from the first configuration, so tars
    beside it could not be read. There is no `dataset_info`: the files carry their features, and a
    stale copy would make loading fail.
    """
    source = manifest.source
    data = _license(source.license.strip())
    data["pretty_name"] = manifest.name
    data["task_categories"] = ["image-classification"]
    rows = manifest.budget.images
    data["size_categories"] = [next((s for n, s in _SIZES if rows < n), "1M<n<10M")]
    if source.hub_id:
        data["source_datasets"] = [source.hub_id]
    data["library_name"] = "moedd"
    data["tags"] = ["dataset-distillation", "moedd"]
    configs = _configs(manifest, benchmarks, formats)
    if configs:
        data["configs"] = configs
    return data


def _license(given: str) -> dict[str, Any]:
    """The Hub knows identifiers; all else is "other" with a name, and a link if it is one."""
    if given.lower() in _LICENSES - {"other"}:
        return {"license": given.lower()}
    link = given if re.fullmatch(r"https?://\S+", given) else None
    name = "see-link" if link else re.sub(r"[^a-z0-9.-]+", "-", given.lower()).strip("-")
    data = {"license": "other", "license_name": name or "other"}
    return {**data, "license_link": link} if link else data


def _configs(manifest: Manifest, benchmarks: bool, formats: Sequence[str]) -> list[dict[str, Any]]:
    shards = sum(len(entry.shards) for entry in manifest.experts)
    train = {"config_name": "default", "default": True}
    if "parquet" not in formats:
        # One builder serves the whole repository: tars or the benchmarks' Parquet, not both.
        if "webdataset" in formats:
            return [{**train, "data_files": [{"split": "train", "path": "webdataset/*.tar"}]}]
        return [_benchmarks()] if benchmarks else []
    by_expert = [
        {
            "split": f"expert_{entry.id}",
            "path": [parquet_path(shard, shards) for shard in entry.shards],
        }
        for entry in manifest.experts
    ]
    found: list[dict[str, Any]] = [
        {**train, "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
        {"config_name": "by_expert", "data_files": by_expert},
    ]
    return [*found, _benchmarks()] if benchmarks else found


def _benchmarks() -> dict[str, Any]:
    files = [{"split": "train", "path": "benchmarks/results.parquet"}]
    return {"config_name": "benchmarks", "data_files": files}


def _words(
    manifest: Manifest, records: Sequence[Record], repo_id: str | None, formats: Sequence[str]
) -> dict[str, str]:
    source, experts, budget = manifest.source, manifest.experts, manifest.budget
    origin = f"`{source.hub_id}`" if source.hub_id else f"`{source.data}`"
    revision = f" at revision `{source.revision}`" if source.revision else ""
    warning = cardtext.decode_warning(manifest)
    mean, std = ([round(value, 6) for value in values] for values in (source.mean, source.std))
    return {
        "name": manifest.name,
        "place": repo_id or f"path/to/{manifest.name}",
        "claim": cardtext.claim(manifest, records),
        "decode_warning": warning,
        "fuse": ', fuse="mixup"' if len(experts) > 1 else "",
        "decode_snippet": _fill("decode.md", {"mean": str(mean)}) if warning else "",
        "results": cardtext.results(manifest, records),
        "what": _contents(formats),
        "expert_rows": "\n".join(map(cardtext.expert_row, experts)),
        "images": str(budget.images),
        "shape": str(tuple(source.shape)),
        "image_bytes": f"{budget.image_bytes:,}",
        "label_bytes": f"{budget.label_bytes:,}",
        "labels": "class numbers" if manifest.labels.kind == "hard" else "soft (one row per image)",
        "mean": str(mean),
        "std": str(std),
        "decode_rule": cardtext.decode_rule(manifest),
        "provenance": cardtext.provenance(manifest),
        "diversity": cardtext.diversity(manifest),
        "limitations": cardtext.limitations(manifest, records),
        "source": f"{origin}{revision}, split `{source.split}`",
        "license": source.license,
        "notes": "".join(f"* {note}\n" for note in source.notes),
        "citation": cardtext.citation(manifest),
        "stamp": "",
    }


def _readers(
    manifest: Manifest,
    benchmarks: bool,
    repo_id: str | None,
    formats: Sequence[str],
    tag: str | None,
    branch: str | None,
) -> str:
    """Snippets for other libraries: those whose files are there, at the place where they are."""
    kind = "hub" if repo_id else "disk"
    shards = sum(len(entry.shards) for entry in manifest.experts)
    tars = tar_path(0)
    if shards > 1:
        tars = f"{tar_path(0)[:-9]}{{00000..{shards - 1:05d}}}.tar"
    words = {
        "place": repo_id or f"path/to/{manifest.name}",
        "at": f"@{quote(tag or branch or '', safe='')}" if tag or branch else "",
        "revision": f', revision="{branch}"' if branch else "",
        "tars": f'"path/to/{manifest.name}/{tars}"',
        "benchmarks": "",
    }
    if benchmarks and repo_id and "parquet" in formats:
        line = (
            f'records = load_dataset("{repo_id}", "benchmarks", split="train"{words["revision"]})'
        )
        words["benchmarks"] = f"{line}  # one row per trained network\n"
    shown = [_fill(f"{name}-{kind}.md", words) for name in FORMATS if name in formats]
    return "\nThe rows are also readable without moedd.\n" + "".join(shown)


def _contents(formats: Sequence[str]) -> str:
    where = {
        "parquet": "`data/` (Parquet, 8-bit PNG)",
        "webdataset": "`webdataset/` (tars, 8-bit PNG and exact floats)",
        "safetensors": "`tensors/` (exact floats)",
    }
    return (
        "The same rows in: " + ", ".join(where[name] for name in FORMATS if name in formats) + "."
    )


def _versions(manifest: Manifest, repo_id: str | None, tag: str | None, place: str | None) -> str:
    version = manifest.version
    if repo_id is None:
        return f"Version {version}."
    if tag is None:
        return (
            f"This is version {version}. No tag names it: `moedd pull {place}` tells its commit, "
            f'and `load_distilled("{repo_id}@COMMIT")` gives this one whatever comes after it.'
        )
    return (
        f"This is version {version}, under the tag `{tag}`. Tags never move: "
        f'`load_distilled("{repo_id}@{tag}")` gives this one whatever comes after it.'
    )


def _fill(template: str, words: dict[str, str]) -> str:
    text = (resources.files("moedd_publish") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(words)
