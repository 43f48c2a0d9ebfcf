"""Training one network on several ranks: each takes its share of every batch, and the gradients are
summed before the optimiser's step, so that all of them hold the same network.

The draws of a batch are those of a single process; only the sums are taken in another order.
"""

from typing import Any

import torch
from torch import Tensor

from moedd.arithmetic import Arithmetic, Parameters
from moedd.networks import Network
from moedd.profile import Profile
from moedd.ranks import Ranks
from moedd.shares import blocks
from moedd.streams import Streams
from moedd.train import Recipe, Trainer


def team_trainer(
    team: Ranks,
    network: Network,
    recipe: Recipe,
    streams: Streams,
    flip: bool,
    profile: Profile,
    usual: int | None = None,
) -> Trainer:
    """A trainer whose batches are spread over `team`; a plain one where that is a single rank."""
    if team.size == 1:
        return Trainer(network, recipe, streams, flip, profile, usual)
    return _TeamTrainer(team, network, recipe, streams, flip, profile, usual)


class _TeamTrainer(Trainer):
    """The loss that `step` returns is this rank's share of it."""

    def __init__(self, team: Ranks, network: Network, *given: Any) -> None:
        self.team = team
        super().__init__(network, *given)

    def use(self, profile: Profile) -> None:
        super().use(profile)
        self.arithmetic = _Share(self.arithmetic, self.team)  # type: ignore[assignment]

    def restart(self) -> None:
        super().restart()
        self.optimizer.register_step_pre_hook(lambda *_: self._sum_gradients())

    def _sum_gradients(self) -> None:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        total = self.team.add_up(torch.cat([g.flatten() for g in gradients]), "gradients")
        for gradient, piece in zip(
            gradients, total.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(piece.view_as(gradient))


class _Share:
    """`training_loss` of this rank's rows of a batch, weighted so that the ranks' losses add up to
    that of the whole batch."""

    def __init__(self, functions: Arithmetic, team: Ranks) -> None:
        self.functions, self.team = functions, team
        # Batch norm needs the whole batch: every rank then takes all of it.
        self.whole_batches = any(True for _ in functions.network.buffers())

    def training_loss(
        self, state: Parameters, images: Tensor, targets: Tensor, whole: bool = True
    ) -> Tensor:
        n, size = len(images), self.team.size
        if self.whole_batches:
            return self.functions.training_loss(state, images, targets, whole) / size
        own = blocks(n, size)[self.team.place]
        if not own:  # a batch of fewer images than ranks: no gradient, but one of the right shape
            zeros = [p.sum() * 0 for p in state.values() if p.requires_grad]
            return torch.stack(zeros).sum()
        rows = slice(own.start, own.stop)
        loss = self.functions.training_loss(state, images[rows], targets[rows], whole)
        return loss * (len(own) / n)
