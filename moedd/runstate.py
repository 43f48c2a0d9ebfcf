"""The state of a run on disk: `$MOEDD_HOME/runs/NAME` with checkpoint, log and preview.

runs/NAME/checkpoint.safetensors   everything to go on, written atomically
runs/NAME/log.jsonl                losses and norms, one line per tick
runs/NAME/preview.png              the images as they are now
"""

import contextlib
import shutil
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from moedd.checkpoint import load_checkpoint, load_meta, save_checkpoint
from moedd.config import RunConfig
from moedd.experts import Expert
from moedd.profile import Profile
from moedd.ranks import Ranks
from moedd_loaders.errors import ConflictError, UsageError
from moedd_loaders.files import remove_scratch


@dataclass
class RunState:
    """How far a run is, and what it was started with.

    `fraction` of the schedule, and the option that `asked` for it; `tick`: steps done of the
    longest expert; `notes` on the real data; `threads`, `profile`, `precision`, `device` and
    `compiled` (by expert) of the arithmetic, which decide its last bits.
    """

    fraction: float
    tick: int = 0
    log_position: int = 0
    seconds: float = 0.0
    losses: dict[str, float] | None = None
    asked: str | None = None
    notes: list[str] | None = None
    threads: int = 1
    profile: str = "float32"
    precision: str = "float32"
    device: str = "cpu"
    compiled: list[bool] | None = None


_ARITHMETIC = ("profile", "precision", "device")


class RunFolder:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.safetensors"
        self.log = folder / "log.jsonl"
        self.preview = folder / "preview.png"
        self.lock = folder.with_name(f".{folder.name}.lock")
        self._held = FileLock(self.lock)

    def prepare(self, config: RunConfig, real: str, resume: bool, overwrite: bool) -> bool:
        """Make the folder ready; True if there is a checkpoint to go on from.

        `real` is the real data's fingerprint. Raises ConflictError: an unfinished run and neither
        `resume` nor `overwrite`. UsageError: the checkpoint is of another configuration, or of
        other real data.
        """
        if self.checkpoint.exists() and not resume:
            if not overwrite:
                raise ConflictError(
                    f"an unfinished run lies in {self.folder}: go on with it by --resume, or start "
                    "anew with --overwrite"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_scratch(self.checkpoint)  # nobody else is at this run now
        if not self.checkpoint.exists():
            return False
        meta = load_meta(self.checkpoint)
        if meta["digest"] != config.digest():
            raise UsageError(
                f"the checkpoint {self.checkpoint} is of another configuration "
                f"({_difference(meta['config'], config)}): resume with the settings it was "
                "started with, or start anew with --overwrite"
            )
        if meta["data"] != real:
            raise UsageError(
                f"the checkpoint {self.checkpoint} was made from other real data than those given "
                f"(fingerprint {meta['data'][:19]}..., now {real[:19]}...): give the same data, or "
                "start anew with --overwrite"
            )
        return True

    def take(self) -> None:
        """Keep other processes out of this run until `release`.

        Raises ConflictError: one of them is at it.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._held.acquire(blocking=False)
        except Timeout:
            raise ConflictError(
                f"another process is working on the run in {self.folder}: let it end, call this "
                "one something else (--name), or start both as one run (torchrun)"
            ) from None

    def release(self) -> None:
        """Let others in, and take the folder away again if nothing came into it."""
        if self._held.is_locked:
            self.lock.unlink(missing_ok=True)
            self._held.release()
            with contextlib.suppress(OSError):  # not empty, or not there
                self.folder.rmdir()

    def require_seen(self, ranks: Ranks) -> None:
        """Raise UsageError, naming the rank, unless all ranks see what the first one writes."""
        if ranks.size == 1:
            return
        sign = self.folder / ranks.tell(lambda: f".seen-{uuid.uuid4().hex[:8]}")
        ranks.tell(sign.touch)
        seen = ranks.collect((sign.exists(), socket.gethostname()))

        def check() -> None:
            sign.unlink()
            for rank, (sees, host) in enumerate(seen):
                if not sees:
                    raise UsageError(
                        f"rank {rank} on {host} does not see {self.folder}, where rank 0 works: "
                        "set MOEDD_HOME to a folder that all hosts share"
                    )

        ranks.tell(check)

    def profile_name(self) -> str | None:
        """The profile of the unfinished run; None where there is none."""
        if not self.checkpoint.exists():
            return None
        return str(load_meta(self.checkpoint).get("profile", "float32"))

    def save(
        self, config: RunConfig, state: RunState, experts: Sequence[Expert], real: str
    ) -> None:
        """Write the checkpoint: every expert's state and the run's position."""
        tensors: dict[str, Tensor] = {}
        for e, expert in enumerate(experts):
            for name, tensor in expert.state_dict().items():
                tensors[f"{e}/{name}"] = tensor.cpu()
        meta: dict[str, Any] = {
            "digest": config.digest(),
            "config": config.model_dump(mode="json"),
            "data": real,
            **vars(state),
        }
        save_checkpoint(self.checkpoint, tensors, meta)

    def load(
        self, experts: Sequence[Expert], profile: Profile, asked: str | None = None
    ) -> RunState:
        """Put the checkpoint's state into the experts.

        Raises UsageError: `asked` (the schedule given now) or the profile is not what the run was
        started with.
        """
        tensors, meta = load_checkpoint(self.checkpoint)
        started = RunState(**{key: meta[key] for key in ("fraction", *_ARITHMETIC) if key in meta})
        began = started.profile, started.precision, started.device
        now = profile.name, profile.precision, profile.device
        if began != now:
            raise UsageError(
                f"the run in {self.folder} was started under --profile {began[0]} ({began[1]}, "
                f"{began[2]}) and it is {now[0]} ({now[1]}, {now[2]}) now: resume under the same "
                "profile on the same kind of machine, or start anew with --overwrite"
            )
        if asked is not None and meta["asked"] is not None and asked != meta["asked"]:
            raise UsageError(
                f"the run in {self.folder} was started with {meta['asked']} and {asked} is given "
                "now: resume without it, or start anew with --overwrite"
            )
        for e, expert in enumerate(experts):
            own = f"{e}/"
            expert.load_state_dict(
                {name[len(own) :]: t for name, t in tensors.items() if name.startswith(own)}
            )
        known = RunState.__dataclass_fields__
        return RunState(**{name: value for name, value in meta.items() if name in known})


def _difference(before: dict[str, Any], config: RunConfig) -> str:
    """The first setting that differs, as `key: was a, is b`."""
    old, new = _flat(before), _flat(config.model_dump(mode="json"))
    for key in [*old, *new]:
        if old.get(key) != new.get(key) and key.split(".")[0] not in ("data_path", "evaluation"):
            return f"{key}: was {old.get(key)!r}, is {new.get(key)!r}"
    return "settings of another version of moedd"


def _flat(plain: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(plain, dict):
        items: list[tuple[str, Any]] = [(str(k), v) for k, v in plain.items()]
    elif isinstance(plain, list):
        items = [(str(n), v) for n, v in enumerate(plain)]
    else:
        return {prefix: plain}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
