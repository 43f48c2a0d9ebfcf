"""The arithmetic of fusion: weighted sums of image and label rows, and pasted boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blend_images", "blend_labels"]


def blend_images(source: Tensor, index: Tensor, weight: Tensor, box: Tensor | None) -> Tensor:
    """(B, C, H, W): weighted sums of rows of `source` (R, C, H, W), or boxes pasted.

    Args:
        index: (B, 1 + M) int64 rows of source, the anchor first.
        weight: (B, 1 + M) float32; unused with boxes.
        box: (B, 4) int64 or None, as in `MixPlan`.
    """
    if index.shape[1] == 1:
        return source.index_select(0, index[:, 0])
    if box is None:
        return _weighted_rows(source.flatten(1), index, weight).view(-1, *source.shape[1:])
    y = torch.arange(source.shape[-2], device=source.device)[:, None]
    x = torch.arange(source.shape[-1], device=source.device)
    y0, y1, x0, x1 = (edge[:, None, None] for edge in box.unbind(1))
    inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    return torch.where(inside[:, None], source[index[:, 1]], source[index[:, 0]])


def blend_labels(labels: Tensor, index: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    """(B, num_classes) float32: weighted sums of (one-hot) label rows.

    `labels` is (R,) int64 or (R, num_classes) float; `index` and `weight` as in `blend_images`.
    """
    if labels.dim() == 2:
        return _weighted_rows(labels.float(), index, weight)
    rows = torch.zeros(len(index), num_classes, device=labels.device)
    return rows.scatter_add_(1, labels[index], weight)


def _weighted_rows(flat: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """(B, D) = sum over m of weight[:, m] * flat[index[:, m]], in one pass over memory."""
    if index.shape[1] == 1:
        return flat.index_select(0, index[:, 0]) * weight.to(flat)
    if flat.dtype in (torch.float32, torch.float64):
        return F.embedding_bag(index, flat, mode="sum", per_sample_weights=weight.to(flat))
    # Half precision is summed in float32: lam itself would be rounded otherwise.
    rows = flat[index.flatten()].float()
    place = torch.arange(len(rows), device=index.device).view_as(index)
    return _weighted_rows(rows, place, weight).to(flat.dtype)
