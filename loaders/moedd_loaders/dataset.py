"""`load_distilled`: a set on disk, or far away, as a data set for training.

from moedd_loaders import load_distilled
ds = load_distilled("cifar10-idc-5x2", fuse="mixup")
image, label = ds[0]                      # float32 (C, H, W), float32 (classes,)
DataLoader(ds, batch_size=64, shuffle=True, num_workers=2)
for images, labels in ds.batches(64, device="cuda"): ...   # no worker, nothing copied
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

import numpy as np
import torch

from moedd_loaders.adapt import Form, as_size, check_channels, check_dtype, fit_statistics
from moedd_loaders.distilled import DistilledDataset
from moedd_loaders.errors import UsageError, unknown
from moedd_loaders.fuse import ExpertMix
from moedd_loaders.serving import Transform

if TYPE_CHECKING:
    from moedd_loaders.manifest import Manifest
    from moedd_loaders.training import TrainingRows

__all__ = ["DistilledDataset", "FusionSettings", "load_distilled"]


class FusionSettings(TypedDict, total=False):
    """Settings of the fusion that `load_distilled` passes on to `ExpertMix`."""

    alpha: float
    lam: str
    prob: float
    partner: str
    same_class: bool
    fallback: str
    off_epoch: int | None


def load_distilled(
    name: str | os.PathLike[str],
    *,
    fuse: str | ExpertMix | None = None,
    transform: Transform | None = None,
    target_transform: Transform | None = None,
    normalize: bool = False,
    experts: Sequence[int] | None = None,
    decode: bool = True,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
    return_expert: bool = False,
    streaming: bool = False,
    seed: int = 0,
    verify: bool = True,
    offline: bool | None = None,
    **fusion: Unpack[FusionSettings],
) -> DistilledDataset:
    """Load a distilled set by name, folder or address.

    Args:
        name: a folder that holds a set, or the name of a set in `$MOEDD_HOME/sets` or of a bundled
            one, looked up in this order; "ns/name" or "ns/name@revision" on the Hub; "s3://..." or
            another URL that fsspec reads.
        fuse, transform, target_transform, normalize, return_expert, seed: see `DistilledDataset`;
            in short, fuse is None, "none", "mixup" (across experts), "vanilla", "same", "cutmix",
            "dirichlet".
        experts: ids of the experts to load; all by default.
        decode: False gives stored images as they are, undecoded tiles included.
        size: side, or (height, width), that images are resized to after decoding (bilinear,
            antialiased, to cover it at their own aspect ratio; then centre-cropped).
        channels: 1 or 3; grey is repeated, colour reduced to its luma.
        dtype: float type of the images handed out. Transforms always get float32.
        streaming: leave the pixels where they are and read each image when it is needed, in bounded
            memory, with the same draws; for sets that do not fit.
        verify: compare the file's sha256 with the manifest; the files' sizes when streaming.
        offline: for sets that are not on this machine: True takes the copy fetched before and
            never uses the network, None does so where the network fails, False never.
        fusion: `alpha`, `lam`, `prob`, `partner`, `same_class`, `fallback` and `off_epoch`, as
            `ExpertMix` takes them; `fuse` must be one of the strings.

    Raises:
        SetNotFoundError: no such set; says where it looked.
        InvalidSetError: the set is damaged, edited, or of a newer format.
        AuthError, NetworkError, ConflictError: a set on the Hub that is private or gated, that
            cannot be reached, or whose tag was moved.
        UsageError: wrong arguments, such as `fuse="mixup"` with a single expert.
    """
    side, channels, dtype = as_size(size), check_channels(channels), check_dtype(dtype)
    fuse = _with_settings(fuse, fusion)
    load = _streamed if streaming else _in_memory
    rows, manifest, form, origin = load(name, experts, decode, (channels, side), verify, offline)
    mean, std = fit_statistics(manifest.source.mean, manifest.source.std, form.channels)
    return DistilledDataset(
        rows.images,
        rows.labels,
        rows.experts,
        classes=manifest.source.classes,
        mean=mean,
        std=std,
        soft_labels=rows.soft_labels,
        fuse=fuse,
        transform=transform,
        target_transform=target_transform,
        normalize=normalize,
        return_expert=return_expert,
        dtype=dtype,
        seed=seed,
        form=form,
        manifest=manifest,
        origin=origin,
    )


_Loaded: TypeAlias = "tuple[TrainingRows, Manifest, Form, str]"
_Asked: TypeAlias = "tuple[int | None, tuple[int, int] | None]"


def _in_memory(
    name: str | os.PathLike[str],
    experts: Sequence[int] | None,
    decode: bool,
    asked: _Asked,
    verify: bool,
    offline: bool | None,
) -> _Loaded:
    from moedd_loaders.manifest import read_manifest
    from moedd_loaders.read import read_tensors
    from moedd_loaders.resolve import resolve
    from moedd_loaders.training import training_rows

    found = resolve(name, offline=offline)
    manifest = read_manifest(found.folder)
    chosen = _chosen(experts, manifest)
    form = Form(manifest.shape, *asked)
    rows = training_rows(read_tensors(found.folder, manifest, verify), chosen, decode, form)
    return rows, manifest, form, found.origin


def _streamed(
    name: str | os.PathLike[str],
    experts: Sequence[int] | None,
    decode: bool,
    asked: _Asked,
    verify: bool,
    offline: bool | None,
) -> _Loaded:
    from moedd_loaders.streaming import open_files, open_manifest, stream

    files, origin = open_files(name)
    if offline and files.remote:
        raise UsageError(
            f"{os.fspath(name)} is not on this machine and offline is set: download the set and "
            "load its folder, or leave offline out"
        )
    manifest = open_manifest(files)
    chosen = _chosen(experts, manifest)
    form = Form(manifest.shape, *asked)
    rows = stream(files, manifest, chosen, decode=decode, form=form, verify=verify)
    return rows, manifest, form, origin


def _with_settings(
    fuse: str | ExpertMix | None, settings: Mapping[str, Any]
) -> str | ExpertMix | None:
    if not settings:
        return fuse
    unknown_names = [key for key in settings if key not in FusionSettings.__annotations__]
    if unknown_names:
        known = [*inspect.signature(load_distilled).parameters, *FusionSettings.__annotations__]
        raise unknown("argument of load_distilled", unknown_names[0], known)
    first, value = next(iter(settings.items()))
    if not isinstance(fuse, str):
        instead = "give it to ExpertMix" if fuse is not None else 'add fuse="mixup"'
        raise UsageError(
            f"{first}={value!r} is a setting of fusion and fuse is {fuse!r}, expected one of the "
            f"strings: {instead}"
        )
    return ExpertMix.named(fuse, **settings)


def _chosen(experts: Sequence[int] | None, manifest: Manifest) -> list[int]:
    known = [entry.id for entry in manifest.experts]
    if experts is None:
        return known
    if isinstance(experts, (str, int)) or not all(
        isinstance(e, (int, np.integer)) for e in experts
    ):
        raise UsageError(f"experts is {experts!r}, expected a list of expert ids such as [0]")
    missing = [int(e) for e in experts if e not in known]
    if missing or not len(experts):
        given = f"no expert {missing[0]}" if missing else "no expert for an empty list"
        raise UsageError(f"{manifest.name} has {given}: choose among {known}")
    return [e for e in known if e in set(experts)]
