"""`moedd show` and `moedd experts`: what a set is, and which methods there are."""

from typing import Any

from rich.console import Console
from rich.table import Table

from moedd.experts import expert_class, method_names
from moedd.origin import made_by
from moedd.tables import counted, records_table
from moedd_loaders.manifest import (
    PREVIEW,
    Diversity,
    ExpertEntry,
    Manifest,
    Shuffled,
    TilesDecode,
    manifest_bytes,
    read_manifest,
)
from moedd_loaders.records import read_records
from moedd_loaders.resolve import Resolved, resolve


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)


def show_set(name: str, as_json: bool = False) -> None:
    """Print a set's manifest for people, or as it is."""
    found = resolve(name)
    manifest = read_manifest(found.folder)
    if as_json:
        print(manifest_bytes(manifest).decode(), end="")
        return
    console = _console()
    for line in summary(manifest, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(experts_table(manifest))
    if manifest.diversity is not None and manifest.diversity.pairs:
        console.print(pairs_table(manifest.diversity))
    records = read_records(manifest, found.folder)
    if records:
        console.print(records_table(records, counted(len(records), "record")))
    else:
        console.print("no records yet: moedd evaluate " + name, highlight=False, markup=False)


def summary(manifest: Manifest, found: Resolved) -> list[str]:
    """The lines above the tables."""
    source, budget = manifest.source, manifest.budget
    channels, height, width = source.shape
    lines = [
        f"{manifest.name} {manifest.version}, made {manifest.created} ({found})",
        f"source: {source.data} ({source.hub_id or 'no Hub id'}, {source.split}), "
        f"{len(source.classes)} classes, {channels}x{height}x{width}, licence {source.license}",
        *(f"  note: {note}" for note in source.notes),
        f"budget: {budget.images} stored images, {budget.image_bytes:,} bytes of pixels, "
        f"{budget.label_bytes:,} bytes of labels",
        f"labels: {manifest.labels.kind}; pixels: unit space, float32, not clipped",
        f"evaluation: {_evaluation(manifest)}",
    ]
    lines += diversity_lines(manifest)
    made = manifest.provenance
    lines += [f"note: {note}" for note in made.notes]
    lines += [
        made_by(made),
        f"preview: {found.folder / PREVIEW}",
    ]
    return lines


def diversity_lines(manifest: Manifest) -> list[str]:
    """What the diversity report says, for a reader who has not met it before."""
    d = manifest.diversity
    if d is None:
        alone = len(manifest.experts) < 2
        return [] if alone else ["diversity between the experts: not measured for this set"]
    s = d.shuffled
    lines = [
        "diversity of the experts (squared distance correlation between their images' features: "
        f"1 the same, 0 independent{_compared(d)})",
        f"  unbiased {d.unbiased:.3f}{_verdict(d.unbiased, s)}",
    ]
    if d.between is not None:
        lines.append(f"    sharing the same classes explains {d.between:.3f}")
        if d.within is not None:
            lines[-1] += (
                f"; pairing the k-th images of a class, as they are stored, adds {d.within:.3f}"
            )
    biased, cka = (_chance(s.biased, s.biased_std), _chance(s.cka, s.cka_std)) if s else ("", "")
    return [
        *lines,
        f"  biased {d.biased:.3f}, of which {d.floor:.3f} is small-sample floor{biased}",
        f"  linear CKA {d.cka:.3f}{cka}",
    ]


def _compared(d: Diversity) -> str:
    over = f"; mean over {len(d.pairs)} pairs of experts" if d.pairs else ""
    rows = f"; {d.rows}{' or more' if d.pairs else ''} images of each" if d.rows else ""
    layer = {"embedding": "; features before the classifier", "logits": "; logits"}
    return f"{over}{rows}{layer.get(d.layer or '', '')}"


def _chance(mean: float, std: float) -> str:
    return f"; rows paired at random: {mean:.3f} ± {std:.3f}"


def _verdict(unbiased: float, s: Shuffled | None) -> str:
    """How the unbiased value stands to the shuffled baseline, in words."""
    if s is None:
        return ""
    told = f"{_chance(s.unbiased, s.unbiased_std)} ({s.orders} times)"
    distance, spread = unbiased - s.unbiased, s.unbiased_std
    if abs(distance) <= 2 * spread:
        return f"{told}, so they cannot be told from independent experts"
    side = "more alike" if distance > 0 else "more unlike"
    times = f", by {abs(distance) / spread:.0f} standard deviations" if spread else ""
    return f"{told}, so they are {side} than chance{times}"


def pairs_table(diversity: Diversity) -> Table:
    """One line per pair of experts."""
    table = Table(title="diversity by pair of experts", title_justify="left")
    table.add_column("experts")
    columns = ("images", "unbiased", "at random", "from classes", "from order")
    for column in (*columns, "biased", "floor"):
        table.add_column(column, justify="right")
    table.add_column("CKA", justify="right")
    for pair in diversity.pairs:
        s = pair.shuffled
        cells = [
            "" if pair.rows is None else str(pair.rows),
            f"{pair.unbiased:.3f}",
            f"{s.unbiased:.3f} ± {s.unbiased_std:.3f}" if s else "",
            *("" if part is None else f"{part:.3f}" for part in (pair.between, pair.within)),
            *(f"{value:.3f}" for value in (pair.biased, pair.floor, pair.cka)),
        ]
        table.add_row(f"{pair.experts[0]}, {pair.experts[1]}", *cells)
    return table


def experts_table(manifest: Manifest) -> Table:
    """One line per expert."""
    table = Table(title="experts", title_justify="left")
    for column in ("id", "method", "part", "stored/class", "decoded/class", "decode", "space"):
        table.add_column(column)
    table.add_column("steps (fraction of schedule)", justify="right")
    for entry in manifest.experts:
        key = f"{entry.id}.{entry.method}"
        steps = manifest.provenance.iterations.get(key, "?")
        fraction = manifest.provenance.schedule_fraction.get(key)
        shown = f"{steps} ({fraction:.3g})" if fraction is not None else str(steps)
        part = f"{entry.part.rule} {entry.part.index + 1}/{entry.part.of}"
        table.add_row(
            str(entry.id),
            entry.method,
            part,
            _counts(entry.stored_per_class),
            _counts(entry.decoded_per_class),
            _rule(entry),
            entry.trained_in.space,
            shown,
        )
    return table


def _evaluation(manifest: Manifest) -> str:
    settings = manifest.evaluation
    text = ", ".join(f"{key} {value}" for key, value in settings.items())
    return text or "not stated"


def _counts(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def _rule(entry: ExpertEntry) -> str:
    rule = entry.decode
    return f"tiles {rule.factor}x{rule.factor}" if isinstance(rule, TilesDecode) else "none"


def describe_experts(method: str | None = None) -> list[dict[str, Any]]:
    """Name, one line, source and settings (at ipc 10 on CIFAR-10) of each method."""
    rows = []
    for name in [method] if method else method_names():
        cls = expert_class(name)
        preset = cls.config_class.preset("cifar10", 10, (3, 32, 32))
        fields = cls.config_class.model_fields
        rows.append(
            {
                "name": name,
                "summary": (cls.__doc__ or "").strip().splitlines()[0],
                "source": cls.source,
                "space": cls.space,
                "settings": {
                    key: {"default": value, "help": fields[key].description}
                    for key, value in preset.model_dump(mode="json").items()
                    if key != "ipc"
                },
            }
        )
    return rows


def show_experts(method: str | None = None) -> None:
    """Print the methods, or one method's settings."""
    console = _console()
    rows = describe_experts(method)
    if method is None:
        table = Table("method", "what it is", "source", "space")
        for row in rows:
            table.add_row(row["name"], row["summary"], row["source"], row["space"])
    else:
        table = Table("setting", "default (CIFAR-10, ipc 10)", "what it does", title=method)
        for key, setting in rows[0]["settings"].items():
            table.add_row(f"{method}.{key}", str(setting["default"]), setting["help"])
    console.print(table)
