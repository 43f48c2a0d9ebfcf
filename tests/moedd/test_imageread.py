"""Bytes -> pixels: every conversion rule against an independent formula or library."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagefactories import encoded, noise, png, png_of_16_bits
from PIL import Image, ImageOps

from moedd.imageread import (
    RULES,
    UnreadableImageError,
    decode_image,
    fit_channels,
    fit_size,
)


def chw(array: np.ndarray) -> np.ndarray:
    return (array if array.ndim == 3 else array[..., None]).transpose(2, 0, 1)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Compositing in float64, the oracle of the integer form."""
    a = alpha[..., None].astype(np.float64) / 255
    return np.round(a * pixels + (1 - a) * 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 13, 3), (8, 15)])
def test_plain_png_is_exact(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    decoded = decode_image(encoded(pixels))
    assert decoded.rules == ()
    np.testing.assert_array_equal(decoded.pixels, chw(pixels))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_fast_jpeg_path_gives_pillows_pixels(mode: str, options: dict[str, object]) -> None:
    image = Image.fromarray(noise(17, 23, 3)).convert(mode)
    data = encoded(image, "JPEG", quality=75, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data).pixels, chw(expected))


def test_rgba_and_la_are_composited_on_white() -> None:
    rgba = noise(11, 9, 4)
    decoded = decode_image(encoded(rgba))
    np.testing.assert_array_equal(decoded.pixels, chw(on_white(rgba[..., :3], rgba[..., 3])))
    assert decoded.rules == ("alpha",)
    la = decode_image(encoded(Image.fromarray(rgba[..., :2].copy(), "LA")))
    np.testing.assert_array_equal(la.pixels, chw(on_white(rgba[..., :1], rgba[..., 1])))


def test_transparent_pixels_become_white_whatever_they_hide() -> None:
    hidden = noise(8, 8, 4)
    hidden[..., 3] = 0
    assert (decode_image(encoded(hidden)).pixels == 255).all()


@pytest.mark.parametrize(("mode", "hole"), [("L", 77), ("RGB", (1, 2, 3))])
def test_transparent_colour_of_a_png_becomes_white(mode: str, hole: object) -> None:
    image = Image.new(mode, (8, 8), hole)
    image.putpixel((2, 3), 0 if mode == "L" else (0, 0, 0))
    decoded = decode_image(encoded(image, transparency=hole))
    assert decoded.rules == ("alpha",)
    assert decoded.pixels[:, 3, 2].max() == 0
    assert (decoded.pixels == 255).all(axis=0).sum() == 63


def test_palette_is_expanded_and_a_grey_palette_is_grey() -> None:
    colours = Image.fromarray(noise(8, 10, 3)).quantize(16)
    decoded = decode_image(encoded(colours))
    assert decoded.rules == ("palette",)
    np.testing.assert_array_equal(decoded.pixels, chw(np.asarray(colours.convert("RGB"))))
    grey = Image.fromarray(noise(8, 10)).convert("P")
    assert decode_image(encoded(grey)).pixels.shape == (1, 8, 10)


def test_palette_with_transparency_is_composited() -> None:
    image = Image.fromarray(noise(8, 8, high=4), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    decoded = decode_image(encoded(image, transparency=bytes([0, 255, 128, 255])))
    indices = np.asarray(image)
    assert (decoded.pixels[:, indices == 0] == 255).all()
    assert decoded.pixels[:, indices == 2][:, 0].tolist() == [127, 127, 255]
    assert set(decoded.rules) == {"palette", "alpha"}


def test_all_16_bit_values_are_divided_by_257() -> None:
    values = np.arange(65536).reshape(256, 256, 1)
    expected = np.round(values / 257).astype(np.uint8)
    for data in (
        png_of_16_bits(values),
        encoded(Image.fromarray(values[..., 0].astype(np.uint16)), "TIFF"),
    ):
        decoded = decode_image(data)
        assert decoded.rules == ("bits16",)
        np.testing.assert_array_equal(decoded.pixels, chw(expected))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_keeps_the_lower_byte_until_the_division(channels: int) -> None:
    values = noise(9, 12, channels, high=65536, dtype=np.int64)
    eight = np.round(values / 257).astype(np.uint8)
    decoded = decode_image(png_of_16_bits(values))
    if channels != 3:
        eight = on_white(eight[..., :-1], eight[..., -1])
    np.testing.assert_array_equal(decoded.pixels, chw(eight))


def test_bilevel_is_0_and_255_and_cmyk_follows_pillow() -> None:
    bits = Image.fromarray(noise(8, 9, high=2) * 255).convert("1")
    decoded = decode_image(encoded(bits))
    assert decoded.rules == ("bits1",)
    np.testing.assert_array_equal(decoded.pixels[0], np.asarray(bits) * 255)
    cmyk = Image.fromarray(noise(8, 8, 4), "CMYK")
    for form in ("TIFF", "JPEG"):
        data = encoded(cmyk, form)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert decode_image(data).rules == ("cmyk",)
        np.testing.assert_array_equal(decode_image(data).pixels, chw(expected))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(noise(8, 13, 3), form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data).pixels, chw(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("form", "exif", "rules"),
    [
        ("PNG", b"MM\0*\xff\xff\xff\xff", ()),
        ("PNG", b"garbage!!", ("exif_bad",)),
        ("JPEG", b"MM\0*\xff\xff\xff\xff", ()),
        ("JPEG", b"garbage!!", ()),  # Pillow has swallowed this fault when the file was opened
    ],
)
def test_broken_exif_is_ignored_not_fatal(form: str, exif: bytes, rules: tuple[str, ...]) -> None:
    pixels = noise(8, 9, 3)
    broken = decode_image(encoded(pixels, form, exif=b"Exif\0\0" + exif))
    np.testing.assert_array_equal(broken.pixels, decode_image(encoded(pixels, form)).pixels)
    assert broken.rules == rules


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (9, 8), colour) for colour in ("red", "blue")]
    decoded = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert "frames" in decoded.rules
    assert decoded.pixels[:, 4, 4].tolist() == [255, 0, 0]


def test_unreadable_files_say_why() -> None:
    whole = png(16, 16)
    jpeg = encoded(noise(16, 16, 3), "JPEG")
    rgba_jpeg_like = b"\xff\xd8\xff\xe0"
    cases = {
        b"": "0 bytes",
        b"not a picture": "not an image",
        whole[: len(whole) // 2]: "truncated",
        jpeg[: len(jpeg) // 2]: "truncated",
        encoded(np.zeros((8, 8), np.float32), "TIFF"): "float",
        encoded(np.full((8, 8), 70000, np.int32), "TIFF"): "0..65535",
    }
    for data, reason in cases.items():
        with pytest.raises(UnreadableImageError, match=reason):
            decode_image(data)
    with pytest.raises(UnreadableImageError):
        decode_image(rgba_jpeg_like)


@given(st.integers(9, 500))
def test_no_cut_of_a_file_raises_anything_else(cut: int) -> None:
    for data in (encoded(noise(12, 12, 3), "JPEG"), png(12, 12), encoded(noise(9, 9, 3), "GIF")):
        if cut < len(data) - 60:
            with pytest.raises(UnreadableImageError):
                decode_image(data[:cut])


def test_channels_are_converted_by_the_stated_rules() -> None:
    rgb = noise(32, 32, 3)
    grey, rule = fit_channels(chw(rgb), 1)
    assert rule == "rgb_to_grey"
    np.testing.assert_array_equal(grey[0], np.asarray(Image.fromarray(rgb).convert("L")))
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[0] - rgb.astype(np.float64) @ weights).max() <= 0.51
    back, rule = fit_channels(grey, 3)
    assert rule == "grey_to_rgb"
    assert (back == grey).all()
    assert fit_channels(grey, 1) == (grey, None)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(8, 40), st.integers(8, 40))
def test_any_image_fits_any_size(height: int, width: int, to_h: int, to_w: int) -> None:
    flat = np.full((3, height, width), 137, np.uint8)
    pixels, rule = fit_size(flat, (to_h, to_w))
    assert pixels.shape == (3, to_h, to_w)
    assert (pixels == 137).all()
    assert (rule is None) == ((height, width) == (to_h, to_w))


def test_resizing_is_antialiased_like_pillows() -> None:
    # A grid of single pixels: without antialiasing most of it would vanish or alias.
    grid = np.zeros((64, 64), np.uint8)
    grid[::2, ::2] = 255
    ours, _ = fit_size(grid[None], (16, 16))
    pillow = np.asarray(Image.fromarray(grid).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(ours[0].astype(int) - pillow).max() <= 1
    assert abs(float(ours.mean()) - grid.mean()) < 2


def test_longer_side_is_cropped_around_the_centre() -> None:
    # Columns 0..15 dark, 16..31 bright, 32..47 dark: a centre crop of 16 sees only the bright.
    wide = np.zeros((1, 16, 48), np.uint8)
    wide[:, :, 16:32] = 200
    pixels, rule = fit_size(wide, (16, 16))
    assert rule == "resized"
    assert (pixels == 200).all()


def test_every_rule_has_words() -> None:
    assert all(len(text) > 10 for text in RULES.values())
