"""Running one cell: a function of the cell and of the places, and of nothing else.

What is finished is found by its address and not done again; what was killed goes on: a set from its
checkpoint, a network from its own. Two processes that need the same set wait for each other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moedd.distill import Effort, Places, distill
from moedd.evaluate import (
    Images,
    Job,
    Row,
    Sight,
    Tested,
    distilled_images,
    full_images,
    measured,
    network_config,
    network_streams,
    random_images,
    train_and_test,
)
from moedd.experts.observer import Observer
from moedd.papertables.alone import alone
from moedd.papertables.cells import (
    Cell,
    Facts,
    FullCell,
    RandomCell,
    SetCell,
    cell_address,
    set_address,
    set_config,
    set_name,
    teacher_config,
)
from moedd.papertables.cost import network_operations, set_cost
from moedd.papertables.handover import hand, handed, take
from moedd.papertables.places import CellPlaces, read_data
from moedd.papertables.store import find_cell
from moedd.profile import Profile, choose_profile
from moedd.progress import Reporter
from moedd.protocols import data_recipe, set_recipe
from moedd.realdata import RealData
from moedd.streams import Streams
from moedd.teacher import load_teacher
from moedd.train import Recipe
from moedd.trainstate import TrainingState
from moedd.zca import space_of
from moedd_loaders.errors import UsageError
from moedd_loaders.hashes import content_sha256
from moedd_loaders.manifest import (
    MANIFEST,
    ExpertEntry,
    Manifest,
    NoDecode,
    TilesDecode,
    read_manifest,
)
from moedd_loaders.read import read_tensors
from moedd_loaders.records import Record, append_records


def set_folder(cell: SetCell, facts: Facts, places: CellPlaces) -> Path:
    """Where a cell's set lies, or will lie: under its configuration's name, seed and address."""
    address = set_address(cell, facts)
    return places.home / "sets" / f"{set_name(cell, facts.data)}-s{cell.seed}-{address[:8]}"


def make_set(
    cell: SetCell, data: str, places: CellPlaces, reporter: Reporter | None = None
) -> tuple[Path, Manifest]:
    """The folder and manifest of a cell's set, distilled unless it is there.

    A run that was killed goes on; two processes that want the same set wait for each other.
    """
    real = read_data(places.of(data))
    facts = Facts.of(real)
    target = set_folder(cell, facts, places)
    with alone(places.home, target.name), _threads(places):
        if not (target / MANIFEST).is_file():
            distill(
                set_config(cell, facts), real, Places(places.home, target, target.name),
                Effort(cell.fraction, None, places.checkpoint_seconds, f"fraction {cell.fraction}"),
                choose_profile(cell.arithmetic.profile),
                resume=True, reporter=reporter or Reporter(quiet=True),
            )  # fmt: skip
    return target, read_manifest(target)


def run_cell(cell: Cell, places: CellPlaces, reporter: Reporter | None = None) -> Record:
    """The record of one cell: the one that is there, else of a network trained now on its set,
    which is made if it is not there."""
    record = hand_cell(cell, places, reporter)
    take(places, record)
    return record


def hand_cell(cell: Cell, places: CellPlaces, reporter: Reporter | None = None) -> Record:
    """As `run_cell`, and a record that is new is left for the caller to `take`: this may be another
    machine than the one whose folder of records it is."""
    facts = Facts.of(read_data(places.of(cell.data)))
    address, name = cell_address(cell, facts), record_name(cell)
    with alone(places.home, f"cell-{address}", leave=False):
        # In this order: what is taken in between is found in the folder.
        found = handed(places.home, address) or find_cell(places.records, name, address)
        return found or _trained(cell, address, places, reporter or Reporter(quiet=True))


def record_name(cell: Cell) -> str:
    """What the records of a cell are kept under: the name of its set, or of its real images."""
    if isinstance(cell.on, SetCell):
        return str(set_name(cell.on, cell.data))
    if isinstance(cell.on, RandomCell):
        return f"{cell.data}-random-{cell.on.budget}x1"
    return f"{cell.data}-full"


def _trained(cell: Cell, address: str, places: CellPlaces, reporter: Reporter) -> Record:
    real, job = read_data(places.of(cell.data)), _job(cell)
    profile = choose_profile(cell.evaluation.arithmetic.profile)
    ground = _ground(cell, real, places, profile, reporter)
    path = places.home / "training" / f"{address}.safetensors"
    state = TrainingState(path, address, places.checkpoint_seconds)
    with _threads(places):
        tested = train_and_test(
            job, ground.images, real, ground.recipe,
            network_streams(cell.seed, cell.network, cell.repeat, job.row.draw), profile,
            width=cell.evaluation.width, sight=ground.sight, state=state,
        )  # fmt: skip
        record = _record(cell, address, ground, tested, real, profile)
    if ground.folder is not None:
        with alone(places.home, f"records-of-{ground.folder.name}"):
            append_records(ground.folder, [record], record.set_hash)
    hand(places.home, record)
    state.forget()
    return record


@dataclass(frozen=True)
class _Ground:
    """What a cell's network is trained on, and what its record says of that."""

    images: Images
    recipe: Recipe
    sight: Sight
    set_hash: str
    methods: list[str]
    folder: Path | None = None
    fractions: tuple[float, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)


def _ground(
    cell: Cell, real: RealData, places: CellPlaces, profile: Profile, reporter: Reporter
) -> _Ground:
    how, teacher = cell.evaluation, None
    if how.protocol == "rded":
        teacher = load_teacher(
            real, teacher_config(how, Facts.of(real)), places.home,
            width=how.width, profile=profile, reporter=reporter,
        )  # fmt: skip
    if isinstance(cell.on, SetCell):
        return _distilled_ground(cell, cell.on, real, teacher, places, reporter)
    if how.protocol == "mtt":
        raise UsageError(
            "protocol mtt trains with the step size that a set learned, and real images have "
            "none: give --protocol common, or --rows paper --only mtt"
        )
    images = _real_images(cell.on, real)
    return _Ground(
        images, data_recipe(how.protocol, real.shape, how.epochs, how.best),
        Sight(None, teacher, how.best), _hash(cell.on, images, real), [cell.identity.variant],
    )  # fmt: skip


def _distilled_ground(
    cell: Cell, on: SetCell, real: RealData, teacher: Observer | None, places: CellPlaces,
    reporter: Reporter,
) -> _Ground:  # fmt: skip
    how = cell.evaluation
    folder, manifest = make_set(on, cell.data, places, reporter)
    whitening = space_of(manifest, folder) if how.protocol == "mtt" else None
    return _Ground(
        distilled_images(read_tensors(folder, manifest)),
        set_recipe(manifest, how.protocol, how.epochs, how.best),
        Sight(whitening, teacher, how.best),
        manifest.training_sha256,
        [entry.method for entry in manifest.experts],
        folder,
        tuple(float(f) for f in manifest.provenance.schedule_fraction.values()),
        _made(on, folder, manifest, Facts.of(real)),
    )


def _made(on: SetCell, folder: Path, manifest: Manifest, facts: Facts) -> dict[str, Any]:
    """What a record says of the set that its network was trained on."""
    provenance, cost = manifest.provenance, set_cost(on, facts)
    computed = json.loads((folder / "recipe" / "config.json").read_text())["profile"]
    return {
        "cell": set_address(on, facts),
        "seed": on.seed,
        "fraction": on.fraction,
        "row": list(on.row),
        "settings": list(on.settings),
        "steps": list(cost.steps),
        "operations": cost.operations,
        "seconds": provenance.seconds,
        "hardware": provenance.device.removeprefix("cpu: ").removeprefix("cuda: "),
        "threads": computed["threads"],
        "precision": computed["precision"],
        "unbiased": None if manifest.diversity is None else manifest.diversity.unbiased,
    }


def _real_images(on: RandomCell | FullCell, real: RealData) -> Images:
    """Random images of the cell's own draw, or all."""
    if isinstance(on, FullCell):
        return full_images(real)
    counts = [on.budget] * len(real.classes)
    rule = TilesDecode(factor=on.factor) if on.factor > 1 else NoDecode()
    entry = ExpertEntry(
        id=0, method="random", stored_per_class=counts,
        decoded_per_class=[n * on.factor**2 for n in counts], decode=rule, shards=[0],
    )  # fmt: skip
    return random_images([entry], real, Streams(0).scope("random", on.draw))


def _hash(on: RandomCell | FullCell, images: Images, real: RealData) -> str:
    """Identity of real images that a network trained on: of their content, and of all of them
    that of the data."""
    if isinstance(on, FullCell):
        return real.fingerprint.removeprefix("sha256:")
    pixels, labels, experts = images
    assert isinstance(pixels, torch.Tensor)  # only all of them may be anything else
    return content_sha256([str(n) for n in range(len(labels))], labels, experts, pixels)


def _record(
    cell: Cell, address: str, ground: _Ground, tested: Tested, real: RealData, profile: Profile
) -> Record:
    job, fractions = _job(cell), ground.fractions
    config = {
        **network_config(job, tested, profile, cell.evaluation.width, ground.sight),
        "cell": address,
        "operations": network_operations(cell, Facts.of(real)),
        "threads": torch.get_num_threads(),
        "precision": cell.evaluation.arithmetic.precision,
        "factor": cell.identity.factor,
        "notes": real.notes,
        "set": ground.made,
    }
    return Record(
        data=cell.data,
        set_name=record_name(cell),
        methods=ground.methods,
        ipc=cell.identity.ipc,
        experts=cell.identity.experts,
        variant=cell.identity.variant,
        fuse=cell.fuse,
        network=cell.network,
        epochs=cell.evaluation.epochs,
        schedule_fraction=min(fractions, default=1.0),
        seed=cell.seed,
        set_hash=ground.set_hash,
        config=config,
        **measured(tested, real, profile),
    )


def _job(cell: Cell) -> Job:
    draw = cell.on.draw if isinstance(cell.on, RandomCell) else 0
    return Job(Row(cell.identity.variant, cell.fuse, draw), cell.network, cell.repeat)


@contextmanager
def _threads(places: CellPlaces) -> Iterator[None]:
    """The threads of one cell; a set that goes on after a kill takes those it was begun with."""
    before = torch.get_num_threads()
    torch.set_num_threads(places.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
