"""RDED: crops, scores, ranks, mosaics and labels, against a slow version of the notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enginefactories import digits, make_expert, make_parts, make_pool, random_data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from moedd.experts import rded
from moedd.experts.rded import RDED, RDEDConfig, draw_crops
from moedd.parts import normalize, whole
from moedd_loaders.decode import decode
from moedd_loaders.errors import DataError, UsageError
from moedd_loaders.manifest import TilesDecode

QUICK: dict[str, Any] = {"observer_steps": 40, "observer_lr": 0.1, "observer_batch": 16}


def make(data: Any = None, **settings: Any) -> RDED:
    expert = make_expert("rded", data or digits(2, 40), **{**QUICK, **settings})
    assert isinstance(expert, RDED)
    return expert


def noise_expert(shape: tuple[int, int, int], **settings: Any) -> RDED:
    """On noise nothing can be recognised: any observer will do."""
    untrained: dict[str, Any] = {"observer": "pool", "observer_floor": 0}
    real = random_data((40, 40), shape)
    for seed in range(20):
        try:
            return make(real, pool=make_pool(real, seed=seed), **untrained, **settings)
        except UsageError:  # below chance
            continue
    raise AssertionError("every one of 20 untrained observers is below chance")


@pytest.fixture
def cropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(images, crops) of every class, in order."""
    seen: list[tuple[Tensor, Tensor]] = []

    def recording(images: Tensor, *given: Any) -> Tensor:
        crops = draw_crops(images, *given)
        seen.append((images, crops))
        return crops

    monkeypatch.setattr(rded, "draw_crops", recording)
    return seen


# -- crops -------------------------------------------------------------------------------------
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_crops_lie_inside_the_image_and_have_the_asked_size(
    height: int, width: int, factor: int, seed: int
) -> None:
    size = (-(-height // factor), -(-width // factor))
    images = torch.full((3, 2, height, width), 200, dtype=torch.uint8)
    crops = draw_crops(images, 4, size, torch.Generator().manual_seed(seed))
    assert crops.shape == (3, 4, 2, *size)
    assert crops.dtype == torch.uint8
    assert (crops == 200).all()  # nothing from outside, nothing made darker by scaling


def test_areas_are_uniform_from_8_percent_to_all_and_places_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes: list[tuple[int, int, int, int]] = []

    def plain(crop: Tensor, size: tuple[int, int]) -> Tensor:
        # The pixels of the image below are their own coordinates.
        y, x = crop[0], crop[1]
        boxes.append((int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1))
        return torch.zeros(2, *size, dtype=torch.uint8)

    monkeypatch.setattr(rded, "_resized", plain)
    side = 100
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    images = grid.to(torch.uint8)[None].expand(10, -1, -1, -1)
    draw_crops(images, 300, (8, 8), torch.Generator().manual_seed(0))
    y0, y1, x0, x1 = (torch.tensor(edge).double() for edge in zip(*boxes, strict=True))
    assert torch.equal(y1 - y0, x1 - x0)  # square
    area = (y1 - y0) * (x1 - x0) / side**2
    assert 0.075 < area.min() < 0.1
    assert 0.98 < area.max() <= 1
    thirds = torch.histc(area.float(), 4, 0.08, 1.0) / len(area)
    torch.testing.assert_close(thirds, torch.full((4,), 0.25), rtol=0, atol=0.04)
    room = side - (y1 - y0)
    assert abs(float((y0 / room.clamp(min=1))[room > 5].mean()) - 0.5) < 0.03
    assert abs(float((x0 / room.clamp(min=1))[room > 5].mean()) - 0.5) < 0.03


def test_a_crop_is_resized_as_torchvision_does_it() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    generator = torch.Generator().manual_seed(1)
    crop = torch.randint(256, (3, 21, 17), generator=generator, dtype=torch.uint8)
    for size in ((8, 8), (32, 32), (21, 17)):
        wanted = functional.resize(crop.float(), list(size), antialias=True).round().clamp(0, 255)
        assert torch.equal(rded._resized(crop, size), wanted.to(torch.uint8))
    assert torch.equal(rded._resized(crop, (21, 17)), crop)


# -- the whole synthesis -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "mosaic"), [((1, 8, 8), 1), ((3, 8, 12), 2), ((3, 9, 11), 2), ((1, 12, 10), 3)]
)
def test_stored_images_equal_a_slow_version_of_the_notes(
    shape: tuple[int, int, int], mosaic: int, cropped: list[tuple[Tensor, Tensor]]
) -> None:
    expert = noise_expert(shape, mosaic=mosaic, images_per_class=30, num_crop=3)
    part, ipc = expert.part, expert.config.ipc
    h, w = -(-shape[1] // mosaic), -(-shape[2] // mosaic)
    mean = torch.tensor(part.mean).view(1, -1, 1, 1)
    for c, (images, crops) in enumerate(cropped[-2:]):
        assert len(images) == 30
        assert crops.shape == (30, 3, shape[0], h, w)
        scored = []
        for i in range(30):
            losses = []
            for crop in crops[i]:
                # In unit space the mean is what padding with 0 is in normalised space.
                canvas = mean.expand(1, *shape).clone()
                top, left = (shape[1] - h) // 2, (shape[2] - w) // 2
                canvas[0, :, top : top + h, left : left + w] = crop.float() / 255
                x = normalize(canvas, part.mean, part.std)
                logits = expert.observer.logits(x, part.classes)
                losses.append(float(-logits.double().log_softmax(1)[0, c]))
            best = min(range(3), key=losses.__getitem__)
            scored.append((losses[best], i, best))
        scored.sort()
        for k in range(ipc):
            stored = expert.images[expert.rows(c)][k]
            for cell in range(mosaic**2):
                _, i, best = scored[cell * ipc + k]
                row, column = divmod(cell, mosaic)
                found = stored[:, row * h : (row + 1) * h, column * w : (column + 1) * w]
                wanted = crops[i, best][:, : found.shape[1], : found.shape[2]].float() / 255
                assert torch.equal(found, wanted)


@pytest.mark.parametrize("mosaic", [1, 2])
def test_stored_pixels_are_multiples_of_1_over_255_exactly(mosaic: int) -> None:
    for shape in ((1, 8, 8), (3, 9, 11)):
        images = noise_expert(shape, mosaic=mosaic).unit_images()
        levels = (images * 255).round()
        assert images.dtype == torch.float32
        assert levels.min() >= 0
        assert levels.max() <= 255
        assert torch.equal(images, levels.to(torch.uint8).to(torch.float32) / 255)


def test_images_come_from_the_expert_s_own_part_one_crop_of_each_at_most(
    cropped: list[tuple[Tensor, Tensor]],
) -> None:
    for part in make_parts(digits(2, 60), 2):
        cropped.clear()
        make(part, images_per_class=12, ipc=3)
        for c, (images, _) in enumerate(cropped):
            own = {tuple(x.flatten().tolist()) for x in part.images[part.rows[c]]}
            drawn = {tuple(x.flatten().tolist()) for x in images}
            assert len(images) == 12
            assert drawn <= own


def test_the_chosen_crops_are_recognised_better_than_random_ones() -> None:
    expert = make(digits(4, 60), ipc=5)
    part = expert.part
    images, labels = expert.decoded()
    chosen = F.cross_entropy(expert.observer.logits(images, part.classes), labels)
    anything = draw_crops(part.images[:100], 1, part.shape[1:], torch.Generator().manual_seed(0))
    unit = anything.flatten(0, 1).float() / 255
    logits = expert.observer.logits(normalize(unit, part.mean, part.std), part.classes)
    assert chosen < 0.2 * F.cross_entropy(logits, part.labels[:100])


def test_images_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (make(seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


# -- decode rules and labels -------------------------------------------------------------------
def test_mosaics_are_trained_on_whole_unless_their_tiles_are_asked_for() -> None:
    whole_mosaic = make(mosaic=2)
    assert (whole_mosaic.decode_rule.kind, whole_mosaic.config.factor) == ("none", 1)
    assert len(whole_mosaic.decoded()[0]) == len(whole_mosaic.images)
    tiles = make(mosaic=2, decode_tiles=True)
    assert torch.equal(tiles.images, whole_mosaic.images)
    assert tiles.decode_rule == TilesDecode(factor=2, order="row-major")
    assert tiles.config.factor == 2
    images, labels = tiles.decoded()
    part = tiles.part
    wanted = normalize(decode(tiles.images, tiles.decode_rule), part.mean, part.std)
    torch.testing.assert_close(images, wanted)
    assert labels.tolist() == [0, 0, 1, 1] * 4
    assert make(decode_tiles=True).decode_rule.kind == "none"  # nothing to cut
    assert tiles.trained_in.space == "unit"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_the_observer_s_probabilities_of_each_stored_image(
    temperature: float,
) -> None:
    expert = make(digits(3, 40), labels="soft", temperature=temperature)
    hard = make(digits(3, 40))
    assert hard.soft_labels is None
    assert torch.equal(hard.images, expert.images)
    soft = expert.soft_labels
    assert soft is not None
    assert (soft.shape, soft.dtype) == ((6, 3), torch.float32)
    images = normalize(expert.unit_images(), expert.part.mean, expert.part.std)
    logits = expert.observer.logits(images, expert.part.classes).double()
    torch.testing.assert_close(soft.double(), (logits / temperature).softmax(1))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert soft.argmax(1).tolist() == expert.labels.tolist()
    assert expert.decoded()[1].tolist() == expert.labels.tolist()  # matching goes by class


def test_a_restored_state_has_the_same_images_and_labels() -> None:
    one, other = make(labels="soft"), make(labels="soft", seed=5)
    assert other.soft_labels is not None
    other.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    assert torch.equal(one.images, other.images)
    assert one.soft_labels is not None
    assert torch.equal(one.soft_labels, other.soft_labels)
    hard = make(seed=5)
    hard.load_state_dict(make().state_dict())
    assert "soft_labels" not in hard.state_dict()


# -- settings and failures ---------------------------------------------------------------------
def test_presets_are_the_published_rows() -> None:
    for data, shape, mosaic in [
        ("cifar10", (3, 32, 32), 1),
        ("tiny", (3, 64, 64), 1),
        ("imagenette", (3, 128, 128), 2),
        ("imagenette", (3, 224, 224), 2),
    ]:
        preset = RDEDConfig.preset(data, 10, shape)
        assert (preset.mosaic, preset.num_crop, preset.images_per_class) == (mosaic, 5, 300)
        assert (preset.labels, preset.steps, preset.observer) == ("hard", 0, "part")
        assert preset.factor == 1
    assert RDEDConfig.preset("imagenette", 100, (3, 224, 224)).images_per_class == 400
    assert RDEDConfig.preset("digits", 5, (1, 8, 8)).observer_steps == 300


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"images_per_class is 10 and 3 stored .* take 12"):
        RDEDConfig(ipc=3, mosaic=2, images_per_class=10)
    with pytest.raises(ValidationError, match="steps"):
        RDEDConfig(ipc=3, steps=10)
    with pytest.raises(ValidationError, match="labels"):
        RDEDConfig(ipc=3, labels="fuzzy")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 11])
def test_a_class_with_too_few_images_is_named_before_anything_is_trained(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rded, "load_observer", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match=f"class 'class 1' has {count} images .* at least 12"):
        make(random_data((40, count)), ipc=3, mosaic=2)


def test_an_observer_that_learned_nothing_stops_the_run() -> None:
    part = whole(digits(10, 20))
    object.__setattr__(part, "index", 3)
    with pytest.raises(UsageError, match=r"observer of expert 3 \(rded\) recognises"):
        make(part, observer_lr=1e-9)


@pytest.mark.parametrize("lr", [1e12, 1e30])
def test_an_observer_that_went_astray_stops_the_run(lr: float) -> None:
    with pytest.raises(UsageError, match="expected at least"):
        make(digits(10, 20), observer_lr=lr)


def test_the_observer_s_accuracy_is_measured_for_the_manifest() -> None:
    measured = make(digits(3, 40)).measured
    assert measured.keys() == {"observer_accuracy"}
    assert 0.5 < measured["observer_accuracy"] <= 1


def test_an_observer_of_another_network_and_with_batch_norm(tmp_path: Path) -> None:
    expert = make(digits(3, 40), observer_network="convnet1_bn", observer_steps=80)
    assert expert.observer.network.name == "convnet1_bn"
    assert any("running_mean" in name for name in expert.observer.state)
    with pytest.raises(UsageError, match="vgg11 needs images of at least"):
        make(observer_network="vgg11")
    with pytest.raises(UsageError, match="unknown network"):
        make(observer_network="convnet99")
