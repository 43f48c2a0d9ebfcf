"""Sets too large for memory: images are read from the tars when they are needed.

Labels, experts and where each row lies are held in memory (some 60 bytes per training image), of
the pixels only a bounded cache. A training image costs one range of its tar, on disk or by HTTP
range request, and so does its partner: any row of any expert is within reach, so draws are the same
as those of the set in memory.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moedd_loaders.adapt import Form
from moedd_loaders.decode import decode_factor
from moedd_loaders.entries import check_entries
from moedd_loaders.errors import InvalidSetError, SetNotFoundError
from moedd_loaders.identity import check_rules
from moedd_loaders.manifest import (
    CHECKSUMS,
    MANIFEST,
    TENSORS,
    Manifest,
    NoDecode,
    parse_manifest,
    tar_path,
)
from moedd_loaders.partners import Ints
from moedd_loaders.ranges import ByteRanges, LocalRanges, RemoteRanges
from moedd_loaders.read import check_soft_labels, expected_rows
from moedd_loaders.resolve import resolve
from moedd_loaders.streamed import Place, StreamedImages, npy_prefix
from moedd_loaders.sums import check_manifest_sum
from moedd_loaders.tarindex import Shard, check_sizes, index_shards
from moedd_loaders.training import TrainingRows

__all__ = ["open_files", "open_manifest", "stream"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.+")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?")
_INFO = "webdataset/_info.json"
_LONGEST_HEAD = 100 << 20


def open_files(name: str | os.PathLike[str]) -> tuple[ByteRanges, str]:
    """The files of a set, and where it was found ("url", "hub", or as `resolve` says).

    `name` is an address (https://..., any that fsspec knows), `ns/name[@revision]` on the Hub, or
    what `resolve` takes.
    """
    text = os.fspath(name)
    if _ADDRESS.fullmatch(text):
        return RemoteRanges(text), "url"
    if isinstance(name, str) and _HUB.fullmatch(text) and not os.path.isdir(text):
        return RemoteRanges(f"hf://datasets/{text}"), "hub"
    found = resolve(name)
    return LocalRanges(found.folder), found.origin


def open_manifest(files: ByteRanges) -> Manifest:
    """The manifest of a set that may be remote.

    Raises:
        SetNotFoundError: there is none. NetworkError: it cannot be reached, or only as a whole.
    """
    try:
        # A server that ignores ranges would send whole tars: better to learn it from a small file.
        files.read([(MANIFEST, 0, 1)])
        return parse_manifest(files.fetch(MANIFEST), files.where(MANIFEST))
    except FileNotFoundError:
        raise SetNotFoundError(
            f"there is no {files.where(MANIFEST)}: give the address of the folder that holds it"
        ) from None


def stream(
    files: ByteRanges,
    manifest: Manifest,
    experts: Sequence[int],
    *,
    decode: bool = True,
    form: Form | None = None,
    verify: bool = True,
) -> TrainingRows:
    """The training rows of the chosen experts, in the order in which they are when loaded whole.

    Args:
        verify: compare the sizes of the tars with the manifest, the manifest with the hash of its
            rules and with `checksums.sha256` where there is one. The manifest and the rows are
            checked either way, the rows as far as they are read: ids, form, finite pixels.

    Raises:
        InvalidSetError: a manifest that cannot be meant; a tar is missing, of another size, or does
            not hold the rows that the manifest counts.
    """
    described = files.where(MANIFEST)
    check_entries(described, manifest)
    sizes = _tar_sizes(files, manifest, experts)
    if verify:
        check_sizes(files, sizes)
    labels, ids, k = expected_rows(manifest, described)
    soft = None
    if manifest.labels.kind == "soft":
        soft = _soft_labels(files, manifest)
        check_soft_labels(files.where(TENSORS), soft, ids, labels, k)
    if verify:
        check_rules(described, manifest, soft)
        _check_sum(files)
    shards = _shards(files, manifest, labels.numpy(), k.numpy(), experts)
    pixel_bytes = len(npy_prefix(manifest.shape)) + 4 * int(np.prod(manifest.shape))
    offsets = index_shards(files, shards, pixel_bytes)
    place = Place(len(labels))
    for shard, where in zip(shards, offsets, strict=True):
        place.add(shard.name, shard.rows, where)
    rules = {e.id: e.decode if decode else NoDecode() for e in manifest.experts if e.id in experts}
    rows, cells = [], []
    for expert, rule in rules.items():
        own, tiles = torch.nonzero(ids == expert)[:, 0], decode_factor(rule) ** 2
        rows.append(own.repeat(tiles))
        cells.append(torch.arange(tiles).repeat_interleave(len(own)))
    chosen = torch.cat(rows)
    images = StreamedImages(
        files,
        place,
        rows=chosen.numpy(),
        cells=torch.cat(cells).numpy(),
        experts=ids.numpy(),
        rules=rules,
        fill=manifest.source.mean,
        form=form or Form(manifest.shape),
    )
    return TrainingRows(images, labels[chosen], ids[chosen], None if soft is None else soft[chosen])


def _tar_sizes(files: ByteRanges, manifest: Manifest, experts: Sequence[int]) -> dict[str, int]:
    """Bytes of the tars of the chosen experts; each expert's must have room for its rows.

    Only then is memory taken for the rows.
    """
    sizes: dict[str, int] = {}
    for entry in manifest.experts:
        tars = [tar_path(number) for number in entry.shards]
        unlisted = next((name for name in tars if name not in manifest.files), None)
        if unlisted is not None:
            raise InvalidSetError(
                f"{files.where(MANIFEST)} does not list {unlisted}: fetch the set again"
            )
        listed = {name: manifest.files[name].size for name in tars}
        rows, room = sum(entry.stored_per_class), sum(listed.values())
        needed = 4 * rows * math.prod(manifest.shape)
        if room < needed:
            raise InvalidSetError(
                f"{files.where(MANIFEST)} counts {rows:,} images of expert {entry.id}, whose "
                f"pixels are {needed:,} bytes, and lists its tars with {room:,}"
            )
        if entry.id in experts:
            sizes.update(listed)
    return sizes


def _check_sum(files: ByteRanges) -> None:
    try:
        sums = files.fetch(CHECKSUMS)
    except FileNotFoundError:
        return
    described = files.fetch(MANIFEST)
    check_manifest_sum(described, files.where(MANIFEST), sums, files.where(CHECKSUMS))


def _shards(
    files: ByteRanges, manifest: Manifest, labels: Ints, k: Ints, experts: Sequence[int]
) -> list[Shard]:
    """The tars of the chosen experts, with the rows that each must hold."""
    lengths = _shard_lengths(files)
    shards, start = [], 0
    for entry in manifest.experts:
        end = start + sum(entry.stored_per_class)
        for number in entry.shards:
            name = tar_path(number)
            rows = range(start, min(end, start + lengths.get(name, 0)))
            entered = manifest.files[name]
            if not rows:
                raise InvalidSetError(
                    f"{files.where(_INFO)} does not list {name}: fetch the set again"
                )
            if entry.id in experts:
                part = slice(rows.start, rows.stop)
                shards.append(
                    Shard(name, entered.sha256, entered.size, rows, entry.id, labels[part], k[part])
                )
            start = rows.stop
        if start != end:
            raise InvalidSetError(
                f"{files.where(_INFO)} counts {end - start} rows too few for expert {entry.id}: "
                "fetch the set again"
            )
    return shards


def _shard_lengths(files: ByteRanges) -> dict[str, int]:
    try:
        split = json.loads(files.fetch(_INFO))["splits"]["train"]
        return {
            f"webdataset/{name}": int(length)
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
    except FileNotFoundError:
        raise InvalidSetError(
            f"there is no {files.where(_INFO)}: streaming needs the set's tars; fetch it again"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidSetError(f"{files.where(_INFO)} is damaged: {error!r}") from None


def _soft_labels(files: ByteRanges, manifest: Manifest) -> Tensor:
    """(N, classes) float32, out of the tensors' file; the images in it stay where they are."""
    where, shape = files.where(TENSORS), [len(manifest.classes)]
    shape.insert(0, sum(sum(entry.stored_per_class) for entry in manifest.experts))
    try:
        head = int.from_bytes(files.read([(TENSORS, 0, 8)])[0], "little")
        if head > _LONGEST_HEAD:
            raise ValueError("its header is too long")
        described = json.loads(files.read([(TENSORS, 8, 8 + head)])[0])["soft_labels"]
        start, end = (8 + head + int(place) for place in described["data_offsets"])
        whole = described["shape"] == shape and described["dtype"] == "F32"
        if not whole or end - start != 4 * shape[0] * shape[1]:
            raise ValueError("its soft labels are not those that the manifest counts")
        data = bytearray(files.read([(TENSORS, start, end)])[0])
    except FileNotFoundError:
        raise InvalidSetError(f"{where} is missing: fetch or make the set again") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidSetError(f"{where} is damaged: {error}") from None
    return torch.frombuffer(data, dtype=torch.float32).view(shape)
