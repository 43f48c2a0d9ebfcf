"""From records to lines of tables: what belongs together, in which setting, from how many sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moedd.papertables.paper import NETWORKS
from moedd.papertables.rows import Identity
from moedd.papertables.stats import Sets, Summary, at_chance, summary
from moedd_loaders.records import Record


class Setting(NamedTuple):
    """What must be equal for two accuracies to stand in one table: the very real data, the training
    recipe, the networks' width, precisions, and the settings of all sets."""

    data: str
    fingerprint: str
    protocol: str
    epochs: int
    width: int
    evaluated: str
    distilled: str = ""
    settings: tuple[str, ...] = ()

    @property
    def recipe(self) -> "Setting":
        """The setting without what only sets have."""
        return self._replace(distilled="", settings=())


class LineKey(NamedTuple):
    """One line: what was trained on, at which part of the schedule (1 where nothing is matched)."""

    identity: Identity
    fraction: float


@dataclass
class Line:
    """All networks of one line, by network. `made`: what records say of each set, by its seed."""

    key: LineKey
    networks: dict[str, dict[int, list[Record]]] = field(default_factory=dict)
    made: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return self.key.identity

    @property
    def operations(self) -> float:
        """Matching operations of one set; 0 where nothing is matched."""
        return max((float(made.get("operations", 0.0)) for made in self.made.values()), default=0.0)

    @property
    def steps(self) -> tuple[int, ...]:
        """Matching steps of each expert."""
        return next((tuple(made["steps"]) for made in self.made.values() if "steps" in made), ())

    @property
    def dependence(self) -> Summary | None:
        """Unbiased squared distance correlation between the features of the experts' images, as
        the manifests of the sets have it (docs/diversity.md); None with one expert or none."""
        found = {seed: made.get("unbiased") for seed, made in self.made.items()}
        values = {seed: [float(value)] for seed, value in found.items() if value is not None}
        return summary(values) if values else None

    def sets(self, network: str) -> Sets:
        """Accuracies in percent by set."""
        found = self.networks.get(network, {})
        return {seed: [100 * r.accuracy for r in group] for seed, group in found.items()}

    def summary(self, network: str) -> Summary | None:
        """Of one network; None where none was trained."""
        sets = self.sets(network)
        return summary(sets) if sets else None

    def records(self, network: str | None = None) -> list[Record]:
        """All records, or those of one network."""
        chosen = self.networks if network is None else {network: self.networks.get(network, {})}
        return [r for groups in chosen.values() for group in groups.values() for r in group]

    def at_chance(self, network: str) -> int:
        """How many of its networks are no better than guessing."""
        records = self.records(network)
        if not records:
            return 0
        values = [100 * record.accuracy for record in records]
        return at_chance(values, 100 * records[0].chance, records[0].test_images)


@dataclass
class Section:
    """All lines of one setting."""

    setting: Setting
    lines: dict[LineKey, Line] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        return [record for line in self.lines.values() for record in line.records()]

    @property
    def networks(self) -> list[str]:
        """Networks in the paper's order, then others."""
        found = {record.network for record in self.records}
        return [n for n in NETWORKS if n in found] + sorted(found - set(NETWORKS))

    def of(self, identity: Identity) -> list[Line]:
        """Lines of one identity, by rising fraction."""
        lines = [line for key, line in self.lines.items() if key.identity == identity]
        return sorted(lines, key=lambda line: line.key.fraction)


def sections(records: Iterable[Record]) -> list[Section]:
    """Records of cells by setting; settings with more records first.

    Real images have no settings of sets: their lines stand in every section of their recipe.
    """
    found: dict[Setting, Section] = {}
    for record in sorted(records, key=lambda r: (r.seed, r.config.get("repeat", 0), r.created)):
        setting = setting_of(record)
        _add(found.setdefault(setting, Section(setting)), record)
    for setting, section in list(found.items()):
        if setting == setting.recipe:
            beside = [s for key, s in found.items() if key != setting and key.recipe == setting]
            for other in beside:
                other.lines |= section.lines
            if beside:
                del found[setting]
    return sorted(found.values(), key=lambda s: (-len(s.records), s.setting))


def _add(section: Section, record: Record) -> None:
    key = line_key(record)
    line = section.lines.setdefault(key, Line(key))
    seed = record.seed if record.variant == "distilled" else int(record.config.get("draw", 0))
    line.networks.setdefault(record.network, {}).setdefault(seed, []).append(record)
    if record.config.get("set"):
        line.made[seed] = record.config["set"]


def setting_of(record: Record) -> Setting:
    """The setting of a record."""
    config, made = record.config, record.config.get("set") or {}
    return Setting(
        record.data, record.data_fingerprint, record.protocol, record.epochs,
        int(config.get("width", 128)), str(config.get("precision", "float32")),
        str(made.get("precision", "")), tuple(made.get("settings", ())),
    )  # fmt: skip


def line_key(record: Record) -> LineKey:
    """The line of a record."""
    made = record.config.get("set") or {}
    methods = list(dict.fromkeys(record.methods)) if record.variant == "distilled" else []
    identity = Identity(
        record.variant, "+".join(methods), record.ipc, record.experts, tuple(made.get("row", ())),
        record.fuse, int(record.config.get("factor", 1)),
    )  # fmt: skip
    return LineKey(identity, float(made.get("fraction", 1.0)))
