"""The preview picture of a set: one row of images per class, one block of columns per expert."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from moedd_loaders.files import put
from moedd_loaders.hashes import to_view

__all__ = ["preview_grid"]

_SIDE = 96  # pixels that a thumbnail aims at: small images are enlarged by whole factors
_LARGEST = 128  # larger images are reduced to this
_WIDTH = 1600  # pixels that all thumbnails of a row may take
_CLASSES, _EXPERTS, _PER_CLASS = 20, 10, 10  # at most shown
_GAP, _BLOCK_GAP, _MARGIN, _LINE = 3, 18, 14, 26
_LABEL_WIDTH = 240
_INK, _PAPER, _EMPTY = (32, 32, 32), (255, 255, 255), (236, 238, 243)


def preview_grid(
    images: Tensor,
    labels: Tensor,
    experts: Tensor,
    classes: Sequence[str],
    path: Path,
    *,
    headings: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Write a PNG that shows a person what is in a set.

    Small images are enlarged with nearest neighbours, so that their pixels are seen as they are.
    Where there are too many, the first images of each class and expert, evenly spaced classes and
    the first experts are shown, and the title says so.

    Args:
        images: (N, C, H, W) float in unit space (clipped for the picture), C 1 or 3.
        labels, experts: (N,) int64.
        classes: class names, written at the left.
        path: where the PNG goes (replaced atomically).
        headings: text over each expert's columns; "expert e" by default.
        title: first line, before the note on what is shown.
    """
    shown = _Shown.choose(images, labels, experts)
    font, small = _font(18), _font(15)
    names = [_short(classes[c], small) for c in shown.classes]
    left = _MARGIN + round(max(small.getlength(name) for name in names)) + 12
    heads = [headings[e] if headings else f"expert {e}" for e in shown.experts]
    width, height = shown.thumb
    block = shown.per_class * (width + _GAP) - _GAP
    step = max(block, *(round(small.getlength(head)) for head in heads)) + _BLOCK_GAP
    top = _MARGIN + 2 * _LINE + 4
    first_line = _title(title, shown, len(classes), int(experts.max()) + 1)
    size = (
        max(
            left + step * len(heads) - _BLOCK_GAP + _MARGIN,
            round(font.getlength(first_line)) + 2 * _MARGIN,
        ),
        top + len(names) * (height + _GAP) - _GAP + _MARGIN,
    )
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), first_line, fill=_INK, font=font)
    for column, (expert, head) in enumerate(zip(shown.experts, heads, strict=True)):
        x0 = left + column * step
        draw.text((x0, _MARGIN + _LINE), head, fill=_INK, font=small)
        for line, label in enumerate(shown.classes):
            y = top + line * (height + _GAP)
            rows = torch.nonzero((labels == label) & (experts == expert)).flatten()
            for k in range(shown.per_class):
                x = x0 + k * (width + _GAP)
                if k < len(rows):
                    canvas.paste(_thumbnail(images[rows[k]], shown.thumb), (x, y))
                else:
                    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_EMPTY)
    for line, name in enumerate(names):
        middle = top + line * (height + _GAP) + height // 2
        draw.text((left - 12, middle), name, fill=_INK, font=small, anchor="rm")
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    put(Path(path), buffer.getvalue())


@dataclass(frozen=True)
class _Shown:
    classes: list[int]
    experts: list[int]
    per_class: int  # images of a class of an expert
    most: int  # how many there are of the fullest
    thumb: tuple[int, int]  # width, height

    @staticmethod
    def choose(images: Tensor, labels: Tensor, experts: Tensor) -> _Shown:
        thumb = _thumb_size(images.shape[-1], images.shape[-2])
        present = labels.unique().tolist()
        n = min(len(present), _CLASSES)
        classes = [present[i * len(present) // n] for i in range(n)]
        shown = experts.unique().tolist()[:_EXPERTS]
        pairs = torch.stack([labels, experts]).unique(dim=1, return_counts=True)[1]
        most = int(pairs.max())
        fit = _WIDTH // ((thumb[0] + _GAP) * len(shown))
        return _Shown(classes, shown, max(1, min(most, _PER_CLASS, fit)), most, thumb)


def _thumb_size(width: int, height: int) -> tuple[int, int]:
    side = max(width, height)
    if side <= _LARGEST:
        factor = max(1, _SIDE // side)
        return width * factor, height * factor
    return max(1, round(width * _LARGEST / side)), max(1, round(height * _LARGEST / side))


def _thumbnail(image: Tensor, size: tuple[int, int]) -> Image.Image:
    pixels = to_view(image.float().nan_to_num(0.0)).cpu()
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    enlarged = size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)


def _title(title: str | None, shown: _Shown, classes: int, experts: int) -> str:
    notes = [
        f"{few} of {all_} {what}"
        for few, all_, what in (
            (len(shown.classes), classes, "classes"),
            (len(shown.experts), experts, "experts"),
            (shown.per_class, shown.most, "images per class and expert"),
        )
        if few < all_
    ]
    note = f"({', '.join(notes)} shown)" if notes else ""
    return " ".join(part for part in (title, note) if part)


def _short(text: str, font: ImageFont.FreeTypeFont) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= _LABEL_WIDTH:
        return text
    while text and font.getlength(text + "…") > _LABEL_WIDTH:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib ships this font; Pillow's own knows few letters beyond Latin. Imported here, as
    # machines that only distil may lack it.
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)
