"""Boards as CSV and as JSON: one row, or one object, for each set, way of training and network."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from moedd_publish.leaderboard import Board

__all__ = ["boards_csv", "boards_rows"]


def boards_rows(boards: Sequence[Board]) -> Iterator[dict[str, Any]]:
    """Accuracy and its spread in percent; `std` is None for a single network."""
    for board in boards:
        for line in board.lines:
            entry = line.entry
            for network, score in line.scores.items():
                yield {
                    "data": board.recipe.data,
                    "protocol": board.recipe.protocol,
                    "epochs": board.recipe.epochs,
                    "data_fingerprint": board.recipe.fingerprint,
                    "set": entry.name if entry else None,
                    "where": entry.where if entry else None,
                    "version": entry.manifest.version if entry else None,
                    "training_sha256": entry.manifest.training_sha256 if entry else None,
                    "methods": entry.methods if entry else None,
                    "experts": len(entry.manifest.experts) if entry else None,
                    "images_per_class": entry.per_class if entry else None,
                    "images": entry.manifest.budget.images if entry else None,
                    "image_bytes": entry.manifest.budget.image_bytes if entry else None,
                    "trained_on": line.variant,
                    "fuse": line.fuse,
                    "network": network,
                    "accuracy": round(score.mean, 3),
                    "std": None if score.std is None else round(score.std, 3),
                    "n": score.n,
                    "chance": round(score.chance, 3),
                    "training_images": score.n_train,
                    "test_images": score.test_images,
                }


def boards_csv(boards: Sequence[Board]) -> str:
    """The rows with a header. Text that a spreadsheet would take for a formula gets a quote."""
    rows = list(boards_rows(boards))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["data"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return "" if value is None else value
