"""From a set's name to a resolved run: experts, presets, overrides, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moedd.config import RunConfig, resolve_config, schedule_fraction
from moedd.experts.idc import IDCConfig
from moedd.experts.idm import IDMConfig
from moedd_loaders.errors import UsageError
from moedd_loaders.names import parse_name

CIFAR = (3, 32, 32)
DIGITS = (1, 8, 8)


def resolved(
    name: str, *overrides: str, shape: tuple[int, int, int] = CIFAR, seed: int = 0
) -> RunConfig:
    return resolve_config(parse_name(name), shape, seed=seed, overrides=list(overrides))


def test_the_name_is_the_configuration() -> None:
    config = resolved("cifar10-idm-10x3", seed=7)
    assert (config.data, config.ipc, config.seed) == ("cifar10", 10, 7)
    assert config.methods == ("idm", "idm", "idm")
    assert [expert.ipc for expert in config.experts] == [10, 10, 10]


def test_fewer_methods_than_experts_cycle() -> None:
    config = resolved("cifar10-idm+idc-5x4")
    assert config.methods == ("idm", "idc", "idm", "idc")
    assert [type(expert) for expert in config.experts] == [IDMConfig, IDCConfig] * 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10-idm-10x1", {"steps": 20_000, "expansion": 2, "batch_real": 256}),
        ("cifar10-idm-50x1", {"ce_weight": 0.1}),
        ("cifar10-idm_plain-10x1", {"expansion": 1, "ce_scale": "constant"}),
        ("cifar10-idc-10x1", {"steps": 200_000, "multiformation": 2, "metric": "mse"}),
        ("cifar10-idc-5x2", {"lr_img": 5e-2}),
        ("cifar100-idc-5x2", {"lr_img": 5e-3}),
        ("cifar10-idc_i-10x1", {"multiformation": 1, "lr_img": 5e-3}),
        ("mnist-idc-10x1", {"metric": "l1", "lr_img": 1e-4, "match_cutout": False}),
    ],
)
def test_presets(name: str, wanted: dict[str, object]) -> None:
    made = resolved(name).experts[0].model_dump()
    assert {key: made[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("idm", {"lr": 0.05, "ce_weight": 0.01, "steps": 20_000}),
        ("idm_plain", {"lr": 0.05, "ce_weight": 0.01, "steps": 20_000}),
        ("dc", {"lr": 1.0, "init": "noise", "steps": 10_000}),
        ("dsa", {"lr": 1.0, "init": "real", "steps": 10_000}),
        ("idc", {"lr_img": 2e-2, "base_side": 8, "steps": 200_000}),
        ("idc_i", {"lr_img": 2e-2, "base_side": 8, "steps": 200_000}),
    ],
)
def test_digits_have_rows_of_their_own(method: str, wanted: dict[str, object]) -> None:
    made = resolved(f"digits-{method}-10x1", shape=DIGITS).experts[0].model_dump()
    assert {key: made[key] for key in wanted} == wanted


def test_presets_of_cifar_and_of_the_embedded_digits_differ() -> None:
    large, small = resolved("cifar10-idm-5x2"), resolved("digits-idm-5x2", shape=DIGITS)
    assert (large.network, small.network) == ("convnet3", "convnet2")
    assert small.pool.steps < large.pool.steps
    assert small.evaluation.epochs < large.evaluation.epochs


def test_overrides_reach_every_level() -> None:
    config = resolved(
        "cifar10-idm+idc-5x4",
        *("network=convnet2", "width=16", "parts=all"),
        *("pool.steps=9", "pool.augment=none"),
        *("diversity.ratio=null", "diversity.within=block"),
        *("evaluation.protocol=idc", "idm.lr=0.5", "idm.augment=false"),
    )
    assert (config.network, config.width, config.parts) == ("convnet2", 16, "all")
    assert (config.pool.steps, config.pool.augment) == (9, "none")
    assert (config.diversity.ratio, config.diversity.within) == (None, "block")
    assert config.evaluation.protocol == "idc"
    # All experts of the method, and only those.
    assert [expert.model_dump().get("lr") for expert in config.experts] == [0.5, None] * 2
    assert config.experts[0].model_dump()["augment"] is False


def test_the_last_override_of_a_key_wins() -> None:
    assert resolved("cifar10-idm-5x2", "width=16", "width=32").width == 32


@pytest.mark.parametrize(
    "key", ["widht", "pool.step", "idc.lr_img", "idm.ipc", "seed", "experts.0.lr"]
)
def test_an_unknown_key_lists_the_known_ones(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolved("cifar10-idm-5x2", f"{key}=3")
    for known in (key, "width", "pool.steps", "diversity.every", "evaluation.epochs", "idm.lr"):
        assert known in str(caught.value)


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'width'\?"):
        resolved("cifar10-idm-5x2", "widht=3")


def test_a_key_without_a_value_says_the_form() -> None:
    with pytest.raises(UsageError, match=r"'width' given; expected KEY=VALUE"):
        resolved("cifar10-idm-5x2", "width")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("width=wide", r"width='wide' does not fit"),
        ("pool.steps=0", r"pool\.steps=0 does not fit"),
        ("diversity.within=classes", r"diversity\.within='classes' does not fit"),
        ("idm.lr=-1", r"idm\.lr=-1 does not fit"),
        ("parts=half", r"parts='half' does not fit"),
    ],
)
def test_a_wrong_value_is_one_sentence(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        resolved("cifar10-idm-5x2", setting)
    assert "\n" not in str(caught.value)


def test_batch_norm_cannot_be_matched_under() -> None:
    with pytest.raises(UsageError, match=r"batch norm.*distil with convnet3 "):
        resolved("cifar10-idm-5x2", "network=convnet3_bn")


def test_a_network_that_is_too_large_for_the_images_names_one_that_fits() -> None:
    with pytest.raises(UsageError, match=r"vgg11 needs .* not 16x16 .*use convnet3"):
        resolved("toy-idm-5x2", "network=vgg11", shape=(3, 16, 16))


def test_unknown_network_and_method() -> None:
    with pytest.raises(UsageError, match=r"unknown network 'convnet9'; known: .*convnet3"):
        resolved("cifar10-idm-5x2", "network=convnet9")
    with pytest.raises(UsageError, match=r"unknown method 'idx'; known: .*idm"):
        resolved("cifar10-idx-5x2")


def test_the_digest_covers_what_decides_the_result() -> None:
    name = parse_name("cifar10-idm-5x2")
    plain = resolve_config(name, CIFAR)
    assert resolve_config(name, CIFAR, data_path="/elsewhere").digest() == plain.digest()
    assert resolved("cifar10-idm-5x2", "evaluation.epochs=3").digest() == plain.digest()
    changed = {
        resolved("cifar10-idm-5x2", seed=1).digest(),
        resolved("cifar10-idm-6x2").digest(),
        resolved("cifar10-idm-5x3").digest(),
        resolved("cifar10-idm-5x2", shape=(3, 32, 40)).digest(),
        *(
            resolved("cifar10-idm-5x2", setting).digest()
            for setting in ("width=64", "pool.seed=1", "diversity.every=0", "idm.lr=0.1")
        ),
    }
    assert len(changed) == 8
    assert plain.digest() not in changed


@settings(max_examples=25, deadline=None)
@given(
    every=st.integers(0, 500),
    ratio=st.one_of(st.none(), st.floats(0, 10)),
    lr=st.floats(1e-6, 10),
    parts=st.sampled_from(["stratified", "all"]),
)
def test_a_configuration_survives_json(
    every: int, ratio: float | None, lr: float, parts: str
) -> None:
    shown = "null" if ratio is None else repr(ratio)
    config = resolved(
        "cifar10-idm-5x2",
        *(f"diversity.every={every}", f"diversity.ratio={shown}", f"idm.lr={lr!r}"),
        f"parts={parts}",
    )
    plain = config.model_dump(mode="json")
    again = RunConfig(
        **{**plain, "experts": tuple(IDMConfig(**expert) for expert in plain["experts"])}
    )
    assert again == config
    assert again.digest() == config.digest()


def test_schedules() -> None:
    assert schedule_fraction("paper") == 1.0
    assert 0 < schedule_fraction("smoke") < schedule_fraction("short") < 1
    with pytest.raises(UsageError, match="unknown schedule 'long'; known: paper, short, smoke"):
        schedule_fraction("long")
    assert schedule_fraction("0.01") == 0.01
    for wrong in ("0", "-0.1", "1.5", "nan"):
        with pytest.raises(UsageError, match="above 0 and at most 1"):
            schedule_fraction(wrong)
