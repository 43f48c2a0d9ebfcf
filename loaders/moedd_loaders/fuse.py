"""Fusion: mixing training images across experts while a network trains (the paper's Eq. 4).

    x' = lam * x_p + (1 - lam) * x_q,  x_p of one expert, x_q of another,  lam ~ Beta(alpha, alpha)

and the labels with the same lam. Nothing new is stored. `ExpertMix` is the batch transform; the
data set (`dataset.py`) plans and blends through the same two steps, so all forms agree:

    plan   who is mixed with whom and how much (`plan.py`; NumPy on the host, a few numbers per row)
    blend  the arithmetic on images and labels (`blend.py`; torch, any device)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from moedd_loaders.blend import blend_images, blend_labels
from moedd_loaders.checks import check_batch
from moedd_loaders.draws import SWITCH, Draws, dirichlet
from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.partners import Bools, Groups, Ints
from moedd_loaders.plan import MixPlan, anybody, cut_boxes, no_partner, unmixed
from moedd_loaders.pool import Pool, hard_classes, on_host
from moedd_loaders.served import Calls

__all__ = [
    "FUSE_MODES",
    "ExpertMix",
    "MixInfo",
    "MixPlan",
    "Pool",
    "mix_for",
]

FUSE_MODES: dict[str, tuple[str, str]] = {
    "none": ("none", "mixup"),
    "mixup": ("cross", "mixup"),
    "vanilla": ("vanilla", "mixup"),
    "same": ("same", "mixup"),
    "cutmix": ("cross", "cutmix"),
    "dirichlet": ("cross", "dirichlet"),
}
"""The public strings, as (mode, op) of `ExpertMix`."""

_CHOICES = {
    "mode": ("cross", "vanilla", "same", "none"),
    "op": ("mixup", "cutmix", "dirichlet"),
    "lam": ("sample", "batch"),
    "partner": ("expert", "sample"),
    "fallback": ("error", "vanilla", "none"),
}


class MixInfo(NamedTuple):
    """What `ExpertMix` did, on the images' device.

    `lam` (B,) float32: weight of the row itself, 1 where not mixed; `partner` (B,) int64, row of
    the pool ((B, M) with dirichlet), without meaning where not mixed; `mixed` (B,) bool;
    `weights` (B, 1 + M) float32.
    """

    lam: Tensor
    partner: Tensor
    mixed: Tensor
    weights: Tensor


class ExpertMix(torch.nn.Module):
    """Batch transform that mixes images of different experts, and their labels.

    Call: `(images, labels, experts, pool=None) -> (images', labels')` with images (B, C, H, W)
    float, labels (B,) int64 or (B, classes) float, experts (B,) int64. Returns images of the same
    shape, dtype and device and labels (B, classes) float32, **also** with mode "none", so that
    the loss (`F.cross_entropy`) never branches. Inputs are never written to, and what is returned
    is new memory, mixed or not. It takes a place in
    `torchvision.transforms.v2.Compose` as `v2.MixUp` does, and may be called inside a
    `collate_fn` (see `MixCollate`): workers and ranks draw from streams of their own.

    Args:
        num_classes: number of classes; None if labels always come as (B, classes), or in a data
            set, which knows.
        mode: "cross" (a partner of another expert, Eq. 4), "vanilla" (any partner, itself
            included, as in mixup), "same" (the same expert only), "none" (no mixing).
        op: "mixup"; "cutmix" (a box of the partner is pasted; lam is the area really kept);
            "dirichlet" (one image of every expert, weights Dirichlet(alpha); mode "cross" only).
        alpha: of Beta(alpha, alpha) or Dirichlet; 0 is no mixing. 1 as in the original mixup code.
        lam: "sample" draws one lam (and box) per row; "batch" uses the first row's for all.
        prob: share of rows mixed, each by its own coin.
        partner: with several other experts, "expert" draws an expert first (Eq. 4), "sample"
            draws uniformly among all their rows.
        same_class: partners of the same class only; labels stay what they were. Soft labels count
            as the class of their maximum, and are mixed.
        fallback: for rows with no possible partner: "error", "vanilla" (anybody), "none" (as is).
        generator: CPU generator, advanced by one number per call whatever the settings; without
            one, the module owns a generator seeded with 0. Choices are drawn on the host: the same
            for CPU and GPU images. Never the global state. In a DataLoader's workers its seed,
            the worker and the worker's calls so far decide instead.
        off_epoch: nothing is mixed from this epoch (from 0) on, so that training ends on images as
            they are; labels stay float rows. Announce epochs with `set_epoch`; a data set counts
            for itself, if nobody calls its own `set_epoch`.

    Raises:
        UsageError (a ValueError): arguments or inputs that cannot be meant (integer images, labels
            out of range, mode "cross" with one expert, ...).
    """

    def __init__(
        self,
        num_classes: int | None,
        mode: str = "cross",
        op: str = "mixup",
        alpha: float = 1.0,
        lam: str = "sample",
        prob: float = 1.0,
        partner: str = "expert",
        same_class: bool = False,
        fallback: str = "error",
        generator: torch.Generator | None = None,
        off_epoch: int | None = None,
    ) -> None:
        super().__init__()
        given = {"mode": mode, "op": op, "lam": lam, "partner": partner, "fallback": fallback}
        for name, value in given.items():
            if value not in _CHOICES[name]:
                raise unknown(f"{name} of ExpertMix", str(value), _CHOICES[name])
        _check_numbers(num_classes, alpha, prob, off_epoch)
        if op == "dirichlet" and mode in ("vanilla", "same"):
            raise UsageError(
                f'op "dirichlet" takes one image of every expert and cannot be restricted to mode '
                f'"{mode}": use mode="cross", or op="mixup"'
            )
        if generator is not None and generator.device.type != "cpu":
            raise UsageError(
                f"the generator is on {generator.device}, expected one on the CPU: choices are "
                "drawn on the host so that they do not depend on the device"
            )
        self.num_classes, self.mode, self.op, self.alpha = num_classes, mode, op, float(alpha)
        self.lam, self.prob, self.partner = lam, float(prob), partner
        self.same_class, self.fallback = bool(same_class), fallback
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.off_epoch = off_epoch
        self._calls = Calls()

    @classmethod
    def named(cls, fuse: str, num_classes: int | None = None, **settings: Any) -> ExpertMix:
        """The transform of a public string, a key of `FUSE_MODES`, with other settings as given."""
        if fuse not in FUSE_MODES:
            raise unknown("fuse", str(fuse), FUSE_MODES)
        mode, op = FUSE_MODES[fuse]
        return cls(num_classes, mode=mode, op=op, **settings)

    def __getstate__(self) -> dict[str, Any]:
        # A generator pickles its state as a tensor that is gone before a spawned process opens it.
        state = self.__dict__.copy()
        state["generator"] = self.generator.get_state().numpy().tobytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = torch.frombuffer(bytearray(state["generator"]), dtype=torch.uint8)
        super().__setstate__({**state, "generator": torch.Generator().set_state(saved)})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

    def settings(self) -> dict[str, str | float | bool]:
        """Everything that decides what is mixed, for logs and records."""
        names = ["mode", "op", "alpha", "lam", "prob", "partner", "same_class", "fallback"]
        names += [] if self.off_epoch is None else ["off_epoch"]
        return {name: getattr(self, name) for name in names}

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0: only needed for `off_epoch`; workers hear of it too."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}, expected 0 or more")
        self._calls.epoch = epoch

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | None = None,
        experts: Tensor | None = None,
        pool: Pool | tuple[Tensor, Tensor, Tensor] | None = None,
        *,
        return_info: bool = False,
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, MixInfo]:
        """Mix a batch; partners come from `pool`, or from the batch itself without one.

        The batch may also be one tuple or list of its three tensors, as a DataLoader yields it.
        """
        images, labels, experts = _three(images, labels, experts)
        epoch = self._calls.epoch
        if self.off_epoch is not None and epoch is None:
            raise UsageError(
                f"off_epoch is {self.off_epoch} and no epoch was ever announced: call "
                "set_epoch(epoch) at the start of every epoch"
            )
        classes = check_batch(images, labels, experts, self.num_classes, "batch")
        if pool is not None and not isinstance(pool, Pool):
            pool = Pool(*pool)
        if pool is not None:
            check_batch(pool.images, pool.labels, pool.experts, classes, "pool")
            if pool.images.shape[1:] != images.shape[1:]:
                raise UsageError(
                    f"the pool holds images of {tuple(pool.images.shape[1:])} and the batch of "
                    f"{tuple(images.shape[1:])}: give both the same shape"
                )
        # One number per call, always: streams stay aligned whatever the settings.
        key = self._calls.seed(self.generator)
        rows = np.arange(len(images))
        plan = self.plan(
            Draws(key, rows, np.zeros_like(rows)),
            on_host(experts),
            hard_classes(labels) if self.same_class else rows,
            (pool or Pool(images, labels, experts)).groups(classes if self.same_class else 0),
            (images.shape[-2], images.shape[-1]),
            epoch or 0,
        )
        device = images.device
        own, partner = torch.arange(len(images), device=device), _tensor(plan.partner, device)
        index = torch.cat([own[:, None], partner], dim=1)
        if pool is None:
            source, source_labels = images, labels
        else:
            # Gather the partners only: the pool may be thousands of images.
            taken = partner.flatten()
            index[:, 1:] = torch.arange(len(taken), device=device).view_as(partner) + len(images)
            source = torch.cat([images, pool.images.to(images)[taken]])
            source_labels = _join_labels(labels, pool.labels.to(device)[taken], classes)
        weight = _tensor(plan.weight, device)
        box = None if plan.box is None else _tensor(plan.box, device)
        mixed = blend_images(source, index, weight, box) if plan.mixed.any() else images.clone()
        if self.same_class and labels.dim() == 1:
            index, weight = index[:, :1], torch.ones_like(weight[:, :1])
        targets = blend_labels(source_labels, index, weight, classes)
        if not return_info:
            return mixed, targets
        shown = partner if self.op == "dirichlet" or not partner.shape[1] else partner[:, 0]
        weights = _tensor(plan.weight, device)
        return mixed, targets, MixInfo(weights[:, 0], shown, _tensor(plan.mixed, device), weights)

    def plan(
        self,
        draws: Draws,
        experts: Ints,
        classes: Ints,
        groups: Groups,
        size: tuple[int, int],
        epoch: Ints | int = 0,
    ) -> MixPlan:
        """Who is mixed with whom and how much.

        Args:
            draws: random numbers of the B rows.
            experts: (B,) expert ids of the rows.
            classes: (B,) classes of the rows; read only if `groups` are by class.
            groups: the pool's rows.
            size: (H, W) of the images, for CutMix.
            epoch: of all rows, or (B,) of each; read only if there is an `off_epoch`.
        """
        rows = len(draws)
        over = self.off_epoch is not None and bool(np.all(np.greater_equal(epoch, self.off_epoch)))
        if self.mode == "none" or over:
            return unmixed(rows)
        partner, found = self._partners(draws, experts, classes, groups)
        weight = dirichlet(draws, self.alpha, 1 + len(partner)).astype(np.float32)
        if self.lam == "batch":
            weight = np.repeat(weight[:, :1], rows, axis=1)
        mixed: Bools = np.logical_and.reduce(found, axis=0)
        if self.prob < 1:
            mixed &= draws.uniform(SWITCH)[0] < self.prob
        if self.off_epoch is not None:
            mixed &= np.less(epoch, self.off_epoch)
        box = None
        if self.op == "cutmix":
            box = cut_boxes(draws, weight[0], size, self.lam == "batch")
            box[~mixed] = 0
            area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
            weight[0] = 1 - area / (size[0] * size[1])
        weight[0, ~mixed] = 1
        weight[1:, ~mixed] = 0
        if len(weight) == 2:
            # In float32: the pair then sums to exactly 1, so equal labels stay exactly one-hot.
            weight[1] = 1 - weight[0]
        return MixPlan(np.ascontiguousarray(partner.T), np.ascontiguousarray(weight.T), mixed, box)

    def _partners(
        self, draws: Draws, experts: Ints, classes: Ints, groups: Groups
    ) -> tuple[Ints, Bools]:
        """(M, B) rows of the pool, (M, B) whether there was any, after falling back."""
        if self.op != "dirichlet":
            one, has = groups.partner(draws, experts, classes, self.mode, self.partner)
            partner, found = one[None], has[None]
        elif len(groups.ids) > 1:
            partner, found = groups.others(draws, experts, classes)
        else:
            shape = (1, len(draws))
            partner, found = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        if not found.all() and self.fallback == "vanilla":
            partner, found = anybody(draws, experts, classes, groups, partner, found)
        if not found.all() and self.fallback != "none":
            alone = int(experts[~found.all(axis=0)][0])
            raise no_partner(self.mode, alone, groups.ids, self.same_class)
        return partner, found


def _check_numbers(
    num_classes: int | None, alpha: float, prob: float, off_epoch: int | None
) -> None:
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}, expected at least 1")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise UsageError(f"alpha is {alpha}, expected a finite number of at least 0")
    if not 0 <= prob <= 1:
        raise UsageError(f"prob is {prob}, expected a probability between 0 and 1")
    if off_epoch is not None and off_epoch < 0:
        raise UsageError(f"off_epoch is {off_epoch}, expected 0 or more, or None")


def _three(
    images: Tensor | Sequence[Tensor], labels: Tensor | None, experts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of a batch, given apart or as one sequence."""
    if not isinstance(images, Tensor):
        given = [*images, *(part for part in (labels, experts) if part is not None)]
    else:
        given = [part for part in (images, labels, experts) if part is not None]
    if len(given) != 3:
        raise UsageError(
            f"ExpertMix was called with {len(given)} tensors, expected images, labels and expert "
            "ids: load_distilled(name, return_expert=True) gives all three"
        )
    return given[0], given[1], given[2]


def _join_labels(labels: Tensor, others: Tensor, num_classes: int) -> Tensor:
    if labels.dim() != others.dim():
        labels, others = (
            F.one_hot(part, num_classes).float() if part.dim() == 1 else part.float()
            for part in (labels, others)
        )
    return torch.cat([labels, others])


def _tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def mix_for(fuse: str | ExpertMix | None, experts: Tensor, num_classes: int) -> ExpertMix | None:
    """The transform that `fuse` means, if this set has the experts that it needs."""
    if fuse is None:
        return None
    mix = fuse if isinstance(fuse, ExpertMix) else ExpertMix.named(fuse, num_classes)
    if mix.num_classes not in (None, num_classes):
        raise UsageError(
            f"fuse is an ExpertMix of {mix.num_classes} classes and the set has {num_classes}: "
            f"use ExpertMix({num_classes}, ...)"
        )
    present = experts.unique().tolist()
    if mix.mode == "cross" and mix.fallback == "error" and len(present) < 2:
        shown = f"fuse={fuse!r}" if isinstance(fuse, str) else 'mode "cross"'
        raise UsageError(
            f"{shown} mixes images of different experts and there is only expert {present[0]}: "
            'use fuse="vanilla" (any two images) or fuse="none" (no mixing)'
        )
    return mix
