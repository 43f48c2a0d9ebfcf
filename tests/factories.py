"""Small things that tests are made of: a real, small set with several experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moedd_loaders.manifest import (
    DecodeRule,
    Diversity,
    Manifest,
    NoDecode,
    Part,
    Provenance,
    Source,
    TilesDecode,
    TrainedIn,
)
from moedd_publish import ExpertRows, write_set

COLUMN_TILES = TilesDecode(factor=2, order="column-major")
ROW_TILES = TilesDecode(factor=2, order="row-major")


def make_source(classes: int = 3, shape: tuple[int, int, int] = (3, 8, 8)) -> Source:
    """A source with class names and per-channel constants that all differ."""
    channels = range(shape[0])
    return Source(
        data="toy",
        hub_id="someone/toy",
        fingerprint="sha256:00",
        license="mit",
        classes=[f"class {chr(ord('a') + c % 26)}{c // 26 or ''}" for c in range(classes)],
        shape=shape,
        mean=[0.4 + 0.05 * c for c in channels],
        std=[0.2 + 0.01 * c for c in channels],
    )


def make_rows(
    source: Source,
    counts: Sequence[int],
    decode: DecodeRule | None = None,
    *,
    method: str = "idm",
    seed: int = 0,
    **fields: Any,
) -> ExpertRows:
    """`counts[c]` random images of class c, normal around 0.5: a third lies outside of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.randn(len(labels), *source.shape, generator=generator) * 0.5 + 0.5
    given = {
        "config": {"lr": 0.1},
        "part": Part(rule="stratified", of=2, index=0, fingerprint="sha256:11"),
        "trained_in": TrainedIn(),
        "step_size": None,
        **fields,
    }
    rule = decode or NoDecode()
    return ExpertRows(method=method, decode=rule, images=images, labels=labels, **given)


def make_set(
    folder: Path,
    *,
    name: str | None = None,
    classes: int = 3,
    ipc: int = 2,
    shape: tuple[int, int, int] = (3, 8, 8),
    rules: Sequence[DecodeRule] = (COLUMN_TILES, NoDecode()),
    soft: bool = False,
    seed: int = 0,
    experts: Sequence[ExpertRows] | None = None,
    **given: Any,
) -> Manifest:
    """Write a set of random, unclipped images to `folder` and return its manifest.

    One expert per rule (by default one stores column-major tiles, one plain images), `ipc` images
    per class each; `soft` adds random soft labels; `given` goes to `write_set`.
    """
    source = make_source(classes, shape)
    if experts is None:
        experts = [
            make_rows(
                source,
                [ipc] * classes,
                rule,
                method="idm" if isinstance(rule, TilesDecode) else "idm_plain",
                seed=seed * 1000 + number,
                part=Part(rule="stratified", of=len(rules), index=number, fingerprint=f"{number}"),
                trained_in=TrainedIn(space="normalized", mean=source.mean, std=source.std),
            )
            for number, rule in enumerate(rules)
        ]
    soft_labels = None
    if soft:
        generator = torch.Generator().manual_seed(seed + 99)
        rows = sum(len(rows.labels) for rows in experts)
        soft_labels = torch.rand(rows, classes, generator=generator).softmax(dim=1)
    diversity = Diversity(biased=0.8, unbiased=0.1, floor=0.7, cka=0.3)
    arguments: dict[str, Any] = {
        "name": name or folder.name.lower(),
        "source": source,
        "evaluation": {"protocol": "common"},
        "diversity": diversity if len(experts) > 1 else None,
        "provenance": Provenance(moedd="0.1.0", torch=torch.__version__, seed=seed),
        "recipe": {"seed": seed},
        "created": "2026-12-01T00:00:00Z",
    }
    return write_set(folder, experts=experts, soft_labels=soft_labels, **{**arguments, **given})
