"""A network trained on real data while images are matched under it: the published IDC form."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moedd.networks import fresh_network
from moedd.parts import PartData
from moedd.pool import Pool, network_recipe, real_batch
from moedd.profile import Profile
from moedd.ranks import ALONE
from moedd.streams import Streams
from moedd.teamtrain import team_trainer
from moedd.train import Trainer, shuffled_batches

_PREFIX = "live."


class LiveNetwork:
    """Fresh at every outer iteration, then trained on `images` real images after each step.

    The recipe is the pool's, by default IDC's: batches of 64, colour and crop, CutMix half of the
    time. Until the first
    use nothing is built, so experts with stored networks pay nothing for it.
    """

    def __init__(
        self, pool: Pool, part: PartData, images: int, streams: Streams, profile: Profile
    ) -> None:
        self.pool, self.part, self.profile = pool, part, profile
        self.config = pool.config
        self.per_step = -(-images // self.config.batch)
        self.streams = streams.scope("live")
        self.outer = -1
        self.trainer: Trainer | None = None
        self.team = ALONE

    def use(self, profile: Profile) -> None:
        """Train in the form of `profile` from now on, a resumed network too."""
        self.profile = profile
        if self.trainer is not None:
            self.trainer.use(profile)

    def _begin(self, outer: int) -> Trainer:
        network = fresh_network(self.pool.network, self.streams.generator("init", outer))
        self.outer = outer
        self.trainer = team_trainer(
            self.team, network, network_recipe(self.config), self.streams.scope(outer),
            self.part.flip, self.profile,
        )  # fmt: skip
        return self.trainer

    def parameters(self, outer: int) -> dict[str, Tensor]:
        """Current parameters of the network of this outer iteration."""
        trainer = self.trainer if outer == self.outer else None
        trainer = trainer or self._begin(outer)
        return {name: p.detach() for name, p in trainer.network.named_parameters()}

    def train(self, done: int) -> None:
        """Train after the matching step with index `done`; the data order is never restarted."""
        assert self.trainer is not None
        n = len(self.part.labels)
        batches = shuffled_batches(n, self.config.batch, self.streams, done * self.per_step)
        for _ in range(self.per_step):
            self.trainer.step(real_batch(self.part, next(batches)))

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, momenta and position; empty before the first use."""
        if self.trainer is None:
            return {}
        state = {
            f"{_PREFIX}outer": torch.tensor(self.outer),
            f"{_PREFIX}steps": torch.tensor(self.trainer.steps),
        }
        for name, parameter in self.trainer.network.named_parameters():
            state[f"{_PREFIX}p.{name}"] = parameter.detach()
            momentum = self.trainer.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                state[f"{_PREFIX}m.{name}"] = momentum
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        if f"{_PREFIX}outer" not in state:
            self.trainer, self.outer = None, -1
            return
        trainer = self._begin(int(state[f"{_PREFIX}outer"]))
        trainer.steps = int(state[f"{_PREFIX}steps"])
        with torch.no_grad():
            for name, parameter in trainer.network.named_parameters():
                parameter.copy_(state[f"{_PREFIX}p.{name}"])
                if f"{_PREFIX}m.{name}" in state:
                    trainer.optimizer.state[parameter]["momentum_buffer"] = state[
                        f"{_PREFIX}m.{name}"
                    ].to(parameter.device, copy=True)
