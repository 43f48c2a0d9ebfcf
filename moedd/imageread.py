"""Encoded images -> uint8 pixels, by stated rules.

Every rule that changed pixels is named in the result; `imagescan` counts them and the counts travel
to the manifest as notes, so that nobody has to guess what became of a transparent or a 16-bit
image. `RULES` is the list.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

__all__ = [
    "RULES",
    "Decoded",
    "Pixels",
    "UnreadableImageError",
    "decode_image",
    "fit_channels",
    "fit_size",
]

Pixels = npt.NDArray[np.uint8]

RULES: dict[str, str] = {
    "alpha": "transparency composited on white",
    "palette": "palette expanded to its colours",
    "bits16": "16 bits reduced to 8 by round(v / 257)",
    "bits1": "1 bit expanded to 0 and 255",
    "cmyk": "CMYK converted to RGB by Pillow, without a colour profile",
    "space": "YCbCr, LAB or HSV converted to RGB by Pillow",
    "exif": "turned or mirrored upright by the EXIF orientation",
    "exif_bad": "unreadable EXIF ignored",
    "frames": "first frame taken",
    "grey_to_rgb": "grey replicated to 3 channels",
    "rgb_to_grey": "colour reduced to grey by the ITU-R 601 luma 0.299 R + 0.587 G + 0.114 B",
    "resized": "scaled (bilinear, antialiased) to cover the size, then centre-cropped",
}
"""Every conversion that can change pixels, by the name under which it is counted."""


class UnreadableImageError(ValueError):
    """An image that cannot be turned into pixels; the message is the reason, a few words."""


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 (C, H, W) with C = 1 (grey) or 3 (RGB), and the names of the rules applied."""

    pixels: Pixels
    rules: tuple[str, ...]


def decode_image(data: bytes) -> Decoded:
    """Decodes one file's bytes by the rules above; grey stays grey, everything else becomes RGB.

    Raises UnreadableImageError for anything empty, truncated, corrupt or without a stated rule
    (32-bit float pixels). A palette image all of whose pixels are grey counts as grey.
    """
    if not data:
        raise UnreadableImageError("0 bytes")
    try:
        if _is_plain_jpeg(data):
            from torchvision.io import ImageReadMode, decode_jpeg

            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return Decoded(decode_jpeg(buffer, ImageReadMode.UNCHANGED).numpy(), ())
        with Image.open(io.BytesIO(data)) as image:
            return _decode_with_pillow(image, data)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image that Pillow can read") from None
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on
        # corrupt bytes; whatever it is, this one file is unreadable and the scan must go on.
        text = str(error)
        if "truncated" in text.lower():
            raise UnreadableImageError("truncated") from error
        raise UnreadableImageError(f"{type(error).__name__}: {text[:60]}") from error


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether these bytes are an 8-bit grey or YCbCr JPEG with neither EXIF nor Adobe marker.

    Such files decode three times faster through torchvision (no GIL, no plug-in look-up), to the
    same pixels; everything else takes Pillow's way.
    """
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker in (0xE1, 0xEE):
            return False
        if marker in (0xC0, 0xC1, 0xC2):
            return data[at + 4] == 8 and data[at + 9] in (1, 3)
        at += 2 + length
    return False


def _decode_with_pillow(image: Image.Image, data: bytes) -> Decoded:
    rules: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        rules.append("frames")
    image.load()
    pixels, alpha = _to_bytes(image, data, rules)
    if alpha is not None:
        pixels = _on_white(pixels, alpha)
        rules.append("alpha")
    pixels = _upright(image, pixels, rules)
    if "palette" in rules and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    return Decoded(np.ascontiguousarray(pixels.transpose(2, 0, 1)), tuple(rules))


def _to_bytes(
    image: Image.Image, data: bytes, rules: list[str]
) -> tuple[Pixels, npt.NDArray[np.uint8] | None]:
    """Pixels (H, W, 1 or 3) and, where there is transparency, alpha (H, W, 1)."""
    mode = image.mode
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16:
        # Pillow keeps only the upper byte of 16-bit colour: read all 16 bits instead.
        rules.append("bits16")
        from torchvision.io import decode_png

        raw = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return _split_alpha(_from_16_bits(raw.permute(1, 2, 0).numpy()))
    if mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableImageError("32-bit integer pixels outside 0..65535")
        rules.append("bits16")
        return _from_16_bits(wide[..., None]), None
    if mode == "F":
        raise UnreadableImageError("32-bit float pixels, which have no stated range")
    rules += {"1": ["bits1"], "P": ["palette"], "PA": ["palette"], "CMYK": ["cmyk"]}.get(mode, [])
    if mode in ("YCbCr", "LAB", "HSV"):
        rules.append("space")
    transparent = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    grey = mode in ("1", "L", "LA", "La")
    target = ("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB")
    if image.mode != target:
        image = image.convert(target)
    array = np.asarray(image)
    return _split_alpha(array if array.ndim == 3 else array[..., None])


def _split_alpha(array: Pixels) -> tuple[Pixels, Pixels | None]:
    if array.shape[2] in (2, 4):
        return array[..., :-1], array[..., -1:]
    return array, None


def _from_16_bits(array: npt.NDArray[Any]) -> Pixels:
    # 65535 = 257 * 255, so that 0 and white map exactly; + 128 rounds to nearest.
    return ((array.astype(np.int64) + 128) // 257).astype(np.uint8)


def _on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """round(a * x + (1 - a) * 255) with a = alpha / 255, in integers."""
    a = alpha.astype(np.int32)
    return ((pixels * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def _upright(image: Image.Image, pixels: Pixels, rules: list[str]) -> Pixels:
    """Applies the EXIF orientation (tag 274); EXIF that cannot be parsed leaves pixels alone."""
    if not any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp")):
        return pixels
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # any parser fault: the pixels are whole, only the metadata are not
        rules.append("exif_bad")
        return pixels
    if orientation not in range(2, 9):
        return pixels
    rules.append("exif")
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def fit_channels(pixels: Pixels, channels: int) -> tuple[Pixels, str | None]:
    """Pixels (C, H, W) as 1 or 3 channels, and the rule applied if any."""
    if pixels.shape[0] == channels:
        return pixels, None
    if channels == 3:
        return np.repeat(pixels, 3, axis=0), "grey_to_rgb"
    red, green, blue = pixels.astype(np.int64)
    # Pillow's fixed-point form of the luma, so that `convert("L")` gives the same bytes.
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(np.uint8)[None], "rgb_to_grey"


def fit_size(pixels: Pixels, size: tuple[int, int]) -> tuple[Pixels, str | None]:
    """Pixels (C, H, W) scaled to cover `size` = (H, W) at their own aspect ratio, centre-cropped.

    Bilinear with antialiasing (torchvision v2). An image that has the size is left alone.
    """
    height, width = pixels.shape[1:]
    if (height, width) == size:
        return pixels, None
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    scale = max(size[0] / height, size[1] / width)
    scaled = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    tensor = resize(tensor, scaled, interpolation=InterpolationMode.BILINEAR, antialias=True)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return tensor[:, top : top + size[0], left : left + size[1]].numpy(), "resized"
