"""The scan of a split: order, threads, and everything amiss collected instead of raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from imagefactories import encoded, noise, png, write_tar

from moedd.imagescan import CHUNK, BadImage, FileSlice, Item, Scanned, ScanProgress, scan


def scanned(items: list[Item], **options: object) -> Scanned:
    settings = {"channels": None, "convert": False, "size": None, **options}
    with ScanProgress(len(items)) as progress:
        return scan(iter(items), len(items), progress=progress, **settings)  # type: ignore[arg-type]


def test_order_survives_many_chunks() -> None:
    count = 5 * CHUNK + 3
    flat = [np.full((8, 8), k % 256, np.uint8) for k in range(count)]
    result = scanned([Item(str(k), k, encoded(flat[k])) for k in range(count)])
    assert result.images.shape == (count, 1, 8, 8)
    assert result.labels.tolist() == list(range(count))
    assert result.images[:, 0, 0, 0].tolist() == [k % 256 for k in range(count)]


def test_reads_bytes_files_and_members_of_a_tar(tmp_path: Path) -> None:
    data = png(9, 8)
    (tmp_path / "a.png").write_bytes(data)
    write_tar(tmp_path / "a.tar", [("x.txt", b"first"), ("a.png", data)])
    offset = (tmp_path / "a.tar").read_bytes().index(data)
    items = [
        Item("bytes", 0, data),
        Item("file", 1, tmp_path / "a.png"),
        Item("slice", 2, FileSlice(tmp_path / "a.tar", offset, len(data))),
    ]
    result = scanned(items)
    assert (result.images == result.images[:1]).all()
    assert result.images.shape == (3, 3, 9, 8)


def test_bad_files_are_listed_with_reasons_and_left_out(tmp_path: Path) -> None:
    items = [
        Item("good", 0, png(seed=1)),
        Item("empty", 1, b""),
        Item("gone", 2, tmp_path / "nothing.png"),
        Item("also good", 3, png(seed=2)),
    ]
    result = scanned(items)
    assert result.bad == [
        BadImage("empty", "0 bytes"),
        BadImage("gone", "No such file or directory"),
    ]
    assert result.labels.tolist() == [0, 3]
    assert len(result.images) == 2


def test_sizes_that_differ_are_reported_and_scanning_goes_on() -> None:
    items = [Item("a", 0, png(8, 8)), Item("b", 0, png(8, 9)), Item("c", 0, b"")]
    result = scanned(items)
    assert result.mixed_size == ("a", (8, 8), "b", (8, 9))
    assert [entry.where for entry in result.bad] == ["c"]
    fitted = scanned(items, size=(10, 12))
    assert fitted.mixed_size is None
    assert fitted.images.shape == (2, 3, 10, 12)
    assert fitted.rules["resized"] == 2


@pytest.mark.parametrize("grey_first", [True, False])
def test_undeclared_channels_follow_the_images(grey_first: bool) -> None:
    grey, colour = noise(8, 8, seed=1), noise(8, 8, 3, seed=2)
    pair = [Item("grey", 0, encoded(grey)), Item("colour", 1, encoded(colour))]
    result = scanned(pair if grey_first else pair[::-1])
    assert result.images.shape == (2, 3, 8, 8)
    replicated = result.images[0 if grey_first else 1]
    np.testing.assert_array_equal(replicated, np.repeat(grey[None], 3, axis=0))
    assert result.rules["grey_to_rgb"] == 1
    assert scanned(pair[:1]).images.shape == (1, 1, 8, 8)


def test_declared_channels_are_checked_or_converted() -> None:
    items = [
        Item("colour", 0, png()),
        *(Item(f"grey{k}", 0, png(channels=1, seed=k)) for k in range(2)),
    ]
    assert scanned(items, channels=3).wrong_channels == ("grey0", 2)
    assert scanned(items, channels=1).wrong_channels == ("colour", 1)
    converted = scanned(items, channels=3, convert=True)
    assert converted.wrong_channels is None
    assert converted.rules["grey_to_rgb"] == 2


def test_bar_appears_only_after_a_while() -> None:
    with ScanProgress(10, after=3600) as quiet:
        quiet.advance(5)
        assert not quiet.shown
    with ScanProgress(10, after=0) as loud:
        loud.advance(5)
        assert loud.shown


def test_nothing_to_read() -> None:
    result = scanned([])
    assert len(result.labels) == 0
    assert result.bad == []
