"""From a finished run to a set on disk: rows per expert, what made them, how long it took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moedd import __version__
from moedd.config import RunConfig
from moedd.diversify import report
from moedd.experts import Expert
from moedd.profile import Profile, peak_memory_bytes
from moedd.ranks import world
from moedd.realdata import RealData
from moedd.runstate import RunState
from moedd.streams import Streams
from moedd_loaders.manifest import Manifest, Part, Provenance, Source
from moedd_publish.write import ExpertRows, write_set


def source_of(real: RealData, notes: Sequence[str]) -> Source:
    """The manifest's description of the real data, with what was noted when the run began."""
    channels, height, width = real.shape
    return Source(
        data=real.data,
        hub_id=real.hub_id,
        revision=real.revision,
        fingerprint=real.fingerprint,
        split="train",
        license=real.license,
        classes=list(real.classes),
        shape=(channels, height, width),
        mean=list(real.mean),
        std=list(real.std),
        class_order=real.class_order,
        notes=list(notes),
    )


def rows_of(expert: Expert) -> ExpertRows:
    """One expert's stored images in unit space, with everything a reader must know."""
    part = expert.part
    return ExpertRows(
        method=expert.method,
        config=expert.config.model_dump(mode="json"),
        part=Part(rule=part.rule, of=part.of, index=part.index, fingerprint=part.fingerprint),
        decode=expert.decode_rule,
        trained_in=expert.trained_in,
        step_size=expert.step_size,
        images=expert.unit_images().cpu(),
        labels=expert.labels.cpu(),
        files=expert.files,
    )


def soft_labels_of(experts: Sequence[Expert]) -> Tensor | None:
    """Label probabilities float32 (N, classes) of all rows in order, None where no expert has any.

    In a set with soft labels the rows of an expert with hard ones are one-hot.
    """
    soft = [expert.soft_labels for expert in experts]
    if all(labels is None for labels in soft):
        return None
    rows = [
        F.one_hot(expert.labels, len(expert.part.classes)).float() if own is None else own
        for expert, own in zip(experts, soft, strict=True)
    ]
    return torch.cat([own.detach().cpu() for own in rows])


def measured_by(experts: Sequence[Expert]) -> dict[str, float]:
    """What the experts measured of their own means, by `expert.name`."""
    return {
        f"{e}.{name}": value
        for e, expert in enumerate(experts)
        for name, value in expert.measured.items()
    }


def _made_with(experts: Sequence[Expert]) -> dict[str, Any]:
    made = [expert.made_with for expert in experts]
    return {"made_with": made} if any(made) else {}


def write_result(
    config: RunConfig,
    real: RealData,
    experts: Sequence[Expert],
    target: Path,
    name: str,
    state: RunState,
    profile: Profile,
    overwrite: bool,
) -> Manifest:
    """Write the set of a finished run."""
    ids = [f"{e}.{expert.method}" for e, expert in enumerate(experts)]
    provenance = Provenance(
        moedd=__version__,
        torch=str(torch.__version__),
        device=f"{profile.device}: {profile.processor}",
        profile=profile.name,
        ranks=world().size,
        seed=config.seed,
        seconds=round(state.seconds, 1),
        iterations={key: expert.done for key, expert in zip(ids, experts, strict=True)},
        schedule_fraction={
            key: expert.done / expert.steps if expert.steps else 1.0
            for key, expert in zip(ids, experts, strict=True)
        },
        peak_memory_bytes=peak_memory_bytes(),
        losses={**(state.losses or {}), **measured_by(experts)},
        notes=[note for expert in experts for note in expert.notes],
    )
    return write_set(
        target,
        name=name,
        source=source_of(real, real.notes if state.notes is None else state.notes),
        experts=[rows_of(expert) for expert in experts],
        evaluation=config.evaluation.model_dump(mode="json"),
        diversity=report(experts, config.diversity, Streams(config.seed)),
        provenance=provenance,
        soft_labels=soft_labels_of(experts),
        recipe={
            **config.model_dump(mode="json", exclude={"data_path"}),
            "pool_keys": list(dict.fromkeys(expert.pool.key for expert in experts)),
            **_made_with(experts),
            "fraction": state.fraction,
            "profile": {
                **profile.describe(),
                "threads": state.threads,
                "compiled": state.compiled,
            },
        },
        overwrite=overwrite,
    )
