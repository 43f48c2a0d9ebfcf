"""Which benchmark records may be compared: those of one recipe on one real data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from moedd_loaders.records import Record

__all__ = ["Recipe", "Score", "network_title", "scores", "variant_title"]

_TITLES = {"random": "random real images", "full": "all real images"}
_ORDER = {"distilled": 0, "random": 1, "full": 2}


@dataclass(frozen=True, order=True)
class Recipe:
    """What must be equal for two accuracies to stand side by side.

    `protocol` names the training recipe with its number of epochs, `fingerprint` the very real
    data whose test split was used.
    """

    data: str
    protocol: str
    epochs: int
    fingerprint: str

    @property
    def title(self) -> str:
        named = self.protocol.endswith(f"-{self.epochs}")
        return self.protocol if named else f"{self.protocol}, {self.epochs} epochs"


@dataclass(frozen=True)
class Score:
    """Accuracy of the networks of one row: `values` in percent, one per trained network."""

    recipe: Recipe
    network: str
    variant: str
    fuse: str
    n_train: int
    chance: float
    test_images: int
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """Over networks (n - 1); None for a single one."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def text(self) -> str:
        """`52.0 ± 0.3`, without a spread for a single network."""
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


def scores(records: Iterable[Record]) -> list[Score]:
    """Records of one set as scores: by recipe, network, then distilled, random, all real images."""
    groups: dict[tuple[Recipe, str, str, str], list[Record]] = {}
    for record in records:
        recipe = Recipe(record.data, record.protocol, record.epochs, record.data_fingerprint)
        key = (recipe, network_title(record), record.variant, record.fuse)
        groups.setdefault(key, []).append(record)
    made = [_score(*key, group) for key, group in groups.items()]
    return sorted(made, key=_place)


def network_title(record: Record) -> str:
    """The network, with its width and its arithmetic where they are not the usual ones."""
    notes = []
    width = record.config.get("width")
    if record.network.startswith("convnet") and width not in (None, 128):
        notes.append(f"width {width}")
    profile = record.config.get("profile", "float32")
    if profile != "float32":
        notes.append(str(profile))
    return f"{record.network} ({', '.join(notes)})" if notes else record.network


def variant_title(variant: str, fuse: str) -> str:
    """A row's name: `distilled, fuse=mixup`, `random real images`, `all real images`."""
    if variant == "distilled":
        return "distilled, no fusion" if fuse == "none" else f"distilled, fuse={fuse}"
    return _TITLES.get(variant, variant)


def _score(recipe: Recipe, network: str, variant: str, fuse: str, group: Sequence[Record]) -> Score:
    return Score(
        recipe,
        network,
        variant,
        fuse,
        group[0].n_train,
        100 * group[0].chance,
        group[0].test_images,
        tuple(100 * record.accuracy for record in group),
    )


def _place(score: Score) -> tuple[object, ...]:
    rank = _ORDER.get(score.variant, 3)
    return (score.recipe, score.network, rank, score.fuse != "none", score.fuse)
