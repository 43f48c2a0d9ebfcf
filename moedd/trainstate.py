"""A network's training on disk: a killed one goes on where it was, to the same bits.

Every draw of a `Trainer` is a function of its step, so parameters, buffers, the optimiser's state,
the learning rate and the number of epochs done are all there is to keep.
"""

import time
from pathlib import Path
from typing import Any

import torch

from moedd.arithmetic import state_of
from moedd.checkpoint import load_checkpoint, load_meta, save_checkpoint
from moedd.train import Trainer
from moedd_loaders.errors import MoeddError


class TrainingState:
    """The state of one network's training at `path`, saved every `seconds` at most.

    `identity` says which network it is: a file of another one is not taken up. `spent` is the
    seconds of training that lie before what this object has seen.
    """

    def __init__(self, path: Path, identity: str, seconds: float = 60.0) -> None:
        self.path, self.identity, self.seconds = path, identity, seconds
        self.spent = 0.0
        self._began = self._saved = time.monotonic()

    def load(self, trainer: Trainer) -> tuple[int, dict[str, Any]]:
        """Put what was kept into a fresh trainer: epochs done, and what was kept beside it.

        (0, {}) where nothing usable is there.
        """
        try:
            if not self.path.exists() or load_meta(self.path)["identity"] != self.identity:
                return 0, {}
            tensors, meta = load_checkpoint(self.path)
        except MoeddError:  # a damaged file costs what it held, not the run
            return 0, {}
        with torch.no_grad():
            for name, tensor in state_of(trainer.network).items():
                tensor.copy_(tensors[f"net.{name}"])
        trainer.set_rate(meta["lr"])
        trainer.steps, self.spent = meta["steps"], meta["seconds"]
        self._load_optimizer(trainer, tensors)
        return meta["epochs"], meta["beside"]

    def offer(self, trainer: Trainer, epochs: int, beside: dict[str, Any]) -> None:
        """Save after so many epochs, if the last time was long enough ago."""
        if time.monotonic() - self._saved < self.seconds:
            return
        tensors = {f"net.{name}": t for name, t in state_of(trainer.network).items()}
        for place, own in trainer.optimizer.state_dict()["state"].items():
            for name, value in own.items():
                if value is not None:  # the momentum of a first step that was never made
                    tensors[f"opt.{place}.{name}"] = torch.as_tensor(value)
        seconds = self.spent + time.monotonic() - self._began
        meta = {"identity": self.identity, "lr": trainer.lr, "steps": trainer.steps}
        meta |= {"epochs": epochs, "beside": beside, "seconds": seconds}
        save_checkpoint(self.path, tensors, meta)
        self._saved = time.monotonic()

    def forget(self) -> None:
        """The network is done."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _load_optimizer(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> None:
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith("opt."):
                _, place, name = key.split(".", 2)
                state.setdefault(int(place), {})[name] = tensor
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
