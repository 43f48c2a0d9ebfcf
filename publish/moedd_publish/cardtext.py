"""The sentences and tables of a card that depend on what is in the set and how well it trains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from moedd_loaders.manifest import ExpertEntry, Manifest, TilesDecode
from moedd_loaders.records import Record
from moedd_publish.citations import MIXTURE, bibtex, work_of
from moedd_publish.comparable import Score, scores, variant_title

__all__ = [
    "citation",
    "claim",
    "decode_rule",
    "decode_warning",
    "diversity",
    "expert_row",
    "limitations",
    "methods_of",
    "provenance",
    "results",
]


def methods_of(manifest: Manifest) -> list[str]:
    """The methods of the experts, each once, in order."""
    return list(dict.fromkeys(entry.method for entry in manifest.experts))


def claim(manifest: Manifest, records: Sequence[Record]) -> str:
    """One sentence on what the set is, and its number beside random and all real images."""
    many = "experts" if len(manifest.experts) > 1 else "expert"
    images = manifest.budget.images
    what = (
        f"A distilled data set: {images} images for the {len(manifest.classes)} classes of "
        f"{manifest.source.data}, made by {len(manifest.experts)} {many} "
        f"({' + '.join(methods_of(manifest))}). Train on it instead of on the real images."
    )
    best = _headline(scores(records))
    if best is None:
        return f"{what} Nobody has published a benchmark of it yet (`moedd evaluate` makes one)."
    shown, beside = best
    fused = "" if shown.fuse == "none" else f" with fuse={shown.fuse}"
    number = (
        f"**{shown.network} trained on them{fused} reaches {shown.text} % accuracy** "
        f"({shown.recipe.title}, {_networks(shown.n)}, {shown.test_images} test images)"
    )
    others = [
        f"{other.text} % on {'the same number of ' if other.variant == 'random' else ''}"
        f"{variant_title(other.variant, other.fuse)}"
        for other in beside
    ]
    return f"{what}\n\n{number}{'; ' + ', '.join(others) if others else ''}."


def results(manifest: Manifest, records: Sequence[Record]) -> str:
    """The table of all published records, one row per training data, network and recipe; what
    should stand beside them and was not measured is told, too."""
    rows = scores(records)
    if not rows:
        return "None published yet. `moedd evaluate` makes records, `moedd push-to-hub` adds them."
    lines = [
        "| network | recipe | trained on | training images | accuracy % | n |",
        "|---|---|---|---|---|---|",
    ]
    for (recipe, network), group in groupby(rows, lambda row: (row.recipe, row.network)):
        same = list(group)
        told = [
            (variant_title(row.variant, row.fuse), f"{row.n_train} | {row.text} | {row.n}")
            for row in same
        ]
        distilled = sum(row.variant == "distilled" for row in same)
        told[distilled:distilled] = [
            (title, "| not measured | 0") for title in _unmeasured(same, len(manifest.experts) > 1)
        ]
        lines += [f"| {network} | {recipe.title} | {title} | {rest} |" for title, rest in told]
    chance = rows[0].chance
    lines.append("")
    lines.append(
        "Accuracy of the last epoch on the real test split: mean and standard deviation over n "
        f"networks that differ in their seed; guessing gives {chance:.1f} %. The spread is that of "
        "training on this one set, not of making it. Rows of different recipes cannot be compared."
    )
    variants = {row.variant for row in rows}
    if "random" in variants:
        lines.append(
            "Random real images are stored under the same decode rules within the same budget."
        )
    missing = [f"`--{key}`" for key in ("random", "full") if key not in variants]
    if missing:
        lines.append(
            "Rows to compare with are still missing: `moedd evaluate` with "
            f"{' and '.join(missing)} adds them."
        )
    prints = sorted({row.recipe.fingerprint for row in rows})
    if len(prints) > 1:
        lines.append("The rows are of different real data: " + ", ".join(p[:19] for p in prints))
    return "\n".join(lines)


def decode_warning(manifest: Manifest) -> str:
    """What plain readers must know at once; empty where nothing needs decoding."""
    tiled = _tiled(manifest)
    experts = len(manifest.experts)
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


def decode_rule(manifest: Manifest) -> str:
    """What to do with stored images before training on them."""
    if not _tiled(manifest):
        return "none, stored images are the training images."
    return (
        "images of experts with tiles are cut into factor x factor parts, in the order of the "
        "table, and each part is enlarged to the full size (bilinear); `load_distilled` does it."
    )


def expert_row(entry: ExpertEntry) -> str:
    """One line of the experts table."""
    rule = entry.decode
    how = f"{rule.factor} x {rule.factor} tiles, {rule.order}" if rule.kind == "tiles" else "none"
    stored, decoded = _span(entry.stored_per_class), _span(entry.decoded_per_class)
    return (
        f"| {entry.id} | {entry.method} | {stored} | {decoded} | {how} | {entry.trained_in.space} |"
    )


def provenance(manifest: Manifest) -> str:
    """Where, with what and for how long the set was made."""
    made = manifest.provenance
    lines = [
        f"* Made on {manifest.created} with moedd {made.moedd or '(version not recorded)'}"
        + (f", torch {made.torch}" if made.torch else "")
        + f", on {made.device}"
        + (f" (profile {made.profile})" if made.profile else "")
        + (", seed not recorded." if made.seed is None else f", seed {made.seed}.")
    ]
    for entry in manifest.experts:
        key = f"{entry.id}.{entry.method}"
        steps, part = made.iterations.get(key), entry.part
        share = made.schedule_fraction.get(key)
        told = [f"part {part.index + 1} of {part.of} of the real data ({part.rule})"]
        if steps is not None:
            told.append(f"{steps} matching steps")
        if isinstance(share, (int, float)):
            told.append(f"{100 * share:.3g} % of the method's own schedule")
        lines.append(f"* Expert {entry.id} ({entry.method}): {', '.join(told)}.")
    lines.append("* `recipe/` holds the resolved configuration and the versions of the packages.")
    return "\n".join(lines)


def diversity(manifest: Manifest) -> str:
    """How different the experts are; empty for a single one."""
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
        "\n### Diversity of the experts\n\n"
        f"Squared distance correlation between experts: {d.unbiased:.3f} unbiased ({d.biased:.3f} "
        f"biased, where independent sets of this size give {d.floor:.3f}); linear CKA "
        f"{d.cka:.3f}. Lower is more diverse.{baseline}\n"
    )


def limitations(manifest: Manifest, records: Sequence[Record]) -> str:
    """What the set is not good for, as far as its manifest and records tell."""
    lines = [
        "* It replaces the real images for training, not for testing, and trains networks that are "
        "less accurate than the real images do (see the results).",
        "* Synthetic images carry over what the real images hold, biases included; they are not "
        "anonymised.",
    ]
    fractions = [f for f in manifest.provenance.schedule_fraction.values() if f is not None]
    shortest = min((float(f) for f in fractions), default=1.0)
    if shortest < 1:
        lines.append(
            f"* It was made with {100 * shortest:.3g} % of the methods' own steps: numbers of "
            "their papers are no measure of it."
        )
    networks = sorted({record.network for record in records})
    lines.append(
        "* Accuracy depends on the network. Tested so far: "
        f"{', '.join(networks) if networks else 'none'}."
    )
    return "\n".join(lines)


def citation(manifest: Manifest) -> str:
    """The papers as links and as BibTeX."""
    methods = methods_of(manifest)
    mixture = len(manifest.experts) > 1
    lines = []
    if mixture:
        lines.append(f"* Mixture of experts: [{MIXTURE.title}]({MIXTURE.link})")
    for method in methods:
        work = work_of(method)
        if work is not None:
            lines.append(f"* `{method}`: [{work.title}]({work.link}), {work.venue} {work.year}")
        elif method != "random":
            lines.append(f"* `{method}`: see the package that the method comes from")
    entries = bibtex(methods, mixture)
    if entries:
        lines += ["", "```bibtex", entries, "```"]
    return "\n".join(lines) if lines else "Random real images: nothing to cite but the source."


def _tiled(manifest: Manifest) -> list[ExpertEntry]:
    return [
        entry
        for entry in manifest.experts
        if isinstance(entry.decode, TilesDecode) and entry.decode.factor > 1
    ]


def _unmeasured(rows: Sequence[Score], mixture: bool) -> list[str]:
    """Of the rows of one network and recipe: which of fusion on and off is missing."""
    fused = {row.fuse != "none" for row in rows if row.variant == "distilled"}
    found = [] if False in fused else ["distilled, no fusion"]
    return [*found, "distilled, with fusion"] if mixture and True not in fused else found


def _headline(rows: Sequence[Score]) -> tuple[Score, list[Score]] | None:
    """The best distilled row of the recipe and network with the most networks trained, and the
    rows that it must be seen beside."""
    distilled = [row for row in rows if row.variant == "distilled"]
    if not distilled:
        return None

    def trained(row: Score) -> tuple[bool, int]:
        same = [r for r in rows if (r.recipe, r.network) == (row.recipe, row.network)]
        return ({r.variant for r in same} > {"distilled"}, sum(r.n for r in same))

    busiest = max(distilled, key=trained)
    same = [r for r in rows if (r.recipe, r.network) == (busiest.recipe, busiest.network)]
    best = max((r for r in same if r.variant == "distilled"), key=lambda r: r.mean)
    return best, [r for r in same if r.variant != "distilled"]


def _networks(n: int) -> str:
    return "one network" if n == 1 else f"mean of {n} networks"


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
