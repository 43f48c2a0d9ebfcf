"""Class order by name, against the class list of somebody else's test set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import make_set
from images_in_memory import epoch, memory

from moedd_loaders import load_distilled
from moedd_loaders.align import class_numbers
from moedd_loaders.errors import UsageError
from moedd_loaders.fuse import ExpertMix


def test_labels_follow_the_names() -> None:
    ds = memory()
    before = [ds.classes[target] for target in ds.targets]
    other = ["c", "zebra", "a", "b"]
    assert ds.align_to(other) is ds
    assert ds.classes == other
    assert ds.class_to_idx == {"c": 0, "zebra": 1, "a": 2, "b": 3}
    assert [other[target] for target in ds.targets] == before
    assert [other[ds[i][1]] for i in range(len(ds))] == before
    batches = list(ds.batches(5, shuffle=False))
    assert [other[t] for _, labels in batches for t in labels.tolist()] == before


@pytest.mark.parametrize("fuse", [None, "mixup"])
def test_batches_made_before_follow_as_well(fuse: str | None) -> None:
    ds, other = memory(fuse=fuse), memory(fuse=fuse)
    batches = ds.batches(5, shuffle=False)
    list(batches), epoch(other)
    ds.align_to(["c", "b", "new", "a"])
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, epoch(other.align_to(["c", "b", "new", "a"]))[1])


@pytest.mark.parametrize("same_class", [False, True])
def test_fused_labels_follow_too(same_class: bool) -> None:
    order = ["b", "more", "c", "a"]
    columns = torch.tensor([3, 0, 2])
    plain, aligned = (memory(24, fuse=ExpertMix(None, same_class=same_class)) for _ in range(2))
    images, labels = epoch(plain)
    got, moved = epoch(aligned.align_to(order))
    assert torch.equal(got, images)
    if same_class:
        assert torch.equal(moved, columns[labels])
    else:
        assert moved.shape == (24, 4)
        assert torch.equal(moved[:, columns], labels)
        assert (moved[:, 1] == 0).all()


def test_soft_labels_follow_too(tmp_path: Path) -> None:
    make_set(tmp_path / "soft", soft=True)
    ds, plain = load_distilled(tmp_path / "soft"), load_distilled(tmp_path / "soft")
    ds.align_to(["x", "class c", "class a", "class b"])
    assert ds.soft_labels is not None
    assert plain.soft_labels is not None
    assert torch.equal(ds.soft_labels[:, [2, 3, 1]], plain.soft_labels)
    assert ds[0][1].shape == (4,)


def test_names_that_do_not_agree() -> None:
    with pytest.raises(UsageError, match=r"class 'dog' of the set.*did you mean 'dogs'"):
        class_numbers(["cat", "dog"], ["dogs", "cat"])
    with pytest.raises(UsageError, match=r"\(and 1 more\)"):
        class_numbers(["cat", "dog"], ["0", "1"])
    with pytest.raises(UsageError, match="hold 'a' twice"):
        class_numbers(["a"], ["a", "b", "a"])
    for wrong in ("cat", [0, 1]):
        with pytest.raises(UsageError, match=r"test_set\.classes"):
            class_numbers(["cat"], wrong)  # type: ignore[arg-type]
    ds = memory()
    with pytest.raises(UsageError):
        ds.align_to(["a", "b"])
    assert ds.classes == ["a", "b", "c"]
