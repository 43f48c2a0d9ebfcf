from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moedd_loaders.errors import UsageError
from moedd_loaders.names import SetName, is_slug, parse_name

METHODS = ("idm", "idc", "idm_plain", "idc_i", "rded")


def test_name_is_the_configuration() -> None:
    name = parse_name("cifar10-idm+rded-10x2", METHODS)
    assert name == SetName("cifar10", ("idm", "rded"), 10, 2)
    assert name.budget == 20
    assert [name.method_of(e) for e in range(2)] == ["idm", "rded"]


def test_parsed_from_the_right() -> None:
    assert parse_name("my-own-2x2-idc_i-5x2").data == "my-own-2x2"


def test_methods_cycle_over_experts() -> None:
    name = parse_name("digits-idm+idc-1x4")
    assert [name.method_of(e) for e in range(4)] == ["idm", "idc", "idm", "idc"]
    with pytest.raises(IndexError):
        name.method_of(4)


@given(
    st.from_regex(r"[a-z0-9]([a-z0-9_.-]{0,8}[a-z0-9])?", fullmatch=True),
    st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), min_size=1, max_size=3),
    st.integers(1, 999),
    st.integers(1, 5),
)
def test_text_and_name_are_the_same_thing(
    data: str, methods: list[str], ipc: int, rounds: int
) -> None:
    name = SetName(data, tuple(methods), ipc, rounds * len(methods))
    assert parse_name(str(name)) == name
    assert is_slug(str(name))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "cifar10",
        "cifar10-idc",
        "cifar10-5x2",
        "-idc-5x2",
        "cifar10--5x2",
        "cifar10-idc-5",
        "cifar10-idc-5x",
        "cifar10-idc-x2",
        "cifar10-idc-05x2",
        "Cifar10-idc-5x2",
        "a/b-idc-5x2",
        "cifar10-idc+-5x2",
        "cifar10-idc-5x2\n",
        "cifar10-idc-٥x2",
        "cifar10-idc--5x2",
    ],
)
def test_what_does_not_parse_is_one_sentence_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"cifar10-idc-5x2") as caught:
        parse_name(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifar10-idc-0x2", "0 images per class"),
        ("cifar10-idc-5x0", "0 experts"),
        ("cifar10-idm+idc-5x3", "must be a multiple"),
        ("cifar10-idm+idc-5x1", "must be a multiple"),
        ("cifar10-idcc-5x2", "did you mean 'idc'"),
    ],
)
def test_what_parses_but_makes_no_sense(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_name(text, METHODS)


def test_slugs() -> None:
    assert is_slug("my_set+v1.0")
    assert not any(map(is_slug, ["", "-a", "A", "a b", "a/b", "a\n", ".a"]))
