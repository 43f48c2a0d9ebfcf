"""What people say about a release, what its files say themselves, and what is still unknown.

Nothing is guessed: where neither the files nor the person say what pixels mean, how images are cut
for training or which class is which, `settle` refuses and names every missing option with its
choices and with what speaks for one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from moedd.importers.labels import SOFT_KINDS, soft_kind
from moedd.importers.released import Released
from moedd_loaders.errors import UsageError
from moedd_loaders.manifest import DecodeRule, NoDecode, TilesDecode

__all__ = ["PLAIN", "Answers", "Question", "Settled", "questions", "refusal", "settle"]

PLAIN = frozenset(
    ["dc", "dsa", "dm", "mtt", "tesla", "ftd", "datm", "kip", "sre2l", "idc_i", "idm_plain"]
)
"""Methods whose stored images are their training images, by their own definition."""
ORDERS = {"idc": "row-major", "idm": "column-major"}
"""Methods that define in which order the tiles of a stored image are counted."""
_DECODE = re.compile(r"([2-9])(?:x\1)?(?:-(row-major|column-major))?")
_METHOD = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Answers:
    """Options of `moedd import`, as text; None where the person said nothing.

    Attributes:
        method: e.g. "dm"; "unknown" is an answer too.
        space: "unit", "normalized", "normalized:NAME", "zca" or "zca:PATH".
        mean, std: constants of the normalised space, one number per channel.
        decode: "none", "2x2-row-major", "3x3-column-major"; "2" where the method tells the order.
        classes: a file of class names, one a line, or the names with commas between.
        data: name of the real data; with one of moedd's table, class names and constants follow.
        soft_labels: how float labels are meant, one of `SOFT_KINDS`.
        step_size: the learned step size, where its file is missing.
    """

    method: str | None = None
    space: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    decode: str | None = None
    classes: str | None = None
    data: str | None = None
    soft_labels: str | None = None
    step_size: float | None = None

    def plain(self) -> dict[str, Any]:
        """What was said, for the manifest."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Question:
    """Something that must be told: the option, its choices, and why it is asked."""

    option: str
    choices: str
    why: str


@dataclass(frozen=True)
class Settled:
    """The answers to everything but classes and pixels: method, decode rule, kind of labels."""

    method: str
    decode: DecodeRule
    soft_labels: str | None


def questions(released: Released, said: Answers, *, names_known: bool) -> list[Question]:
    """What nobody has said yet, in the order of the options.

    Args:
        names_known: whether files or options name the classes in their order.
    """
    hints = released.hints
    asked = []
    method = said.method or released.method
    if not method:
        choices = f"{', '.join(released.methods)} or unknown"
        asked.append(Question("--method", choices, hints.get("method", "the files do not say it")))
    if said.space is None and released.images.dtype != torch.uint8:
        choices = "unit, normalized (with --data or --mean and --std) or zca:PATH"
        why = f"{_looks(released)}; {hints.get('space', 'the files do not say it')}"
        asked.append(Question("--space", choices, why))
    if said.decode is None and method not in PLAIN:
        choices = "none, 2x2-row-major or 2x2-column-major"
        why = hints.get("decode", "stored images may be tiles, and no file says so")
        if method or not PLAIN.issuperset(released.methods):
            asked.append(Question("--decode", choices, why))
    if not names_known:
        why = hints.get("classes", "the labels are numbers and no file says of which classes")
        asked.append(Question("--data NAME or --classes", "FILE|A,B,...", why))
    if released.labels.dim() == 2 and said.soft_labels is None and _kind(released) is None:
        why = hints.get("labels", "the rows are no probabilities")
        asked.append(Question("--soft-labels", " or ".join(SOFT_KINDS), why))
    return asked


def refusal(where: str, asked: list[Question]) -> UsageError:
    """The error that asks everything at once; the reasons are in the questions."""
    listed = "; ".join(f"{q.option} {q.choices}" for q in asked)
    return UsageError(f"{where} does not say all that must be known, and moedd does not guess: "
                      f"give {listed}")  # fmt: skip


def settle(released: Released, said: Answers) -> Settled:
    """Method, decode rule and kind of labels; call it when `questions` has none left.

    Raises:
        UsageError: an answer that is none of the choices, or contradicts the files.
    """
    method = said.method or released.method
    if _METHOD.fullmatch(method) is None:
        raise UsageError(
            f"--method {method!r} given, expected a word like {' or '.join(released.methods)}, "
            "lower case, or unknown"
        )
    kind = None
    if released.labels.dim() == 2:
        kind = said.soft_labels or _kind(released)
        if kind not in SOFT_KINDS:
            raise UsageError(
                f"--soft-labels {kind!r} given, expected {', '.join(SOFT_KINDS[:-1])} or "
                f"{SOFT_KINDS[-1]}"
            )
        if kind == "probabilities" and _kind(released) is None:
            raise UsageError(
                "--soft-labels probabilities given, and the rows of the labels have negative "
                "numbers or do not add up to 1: expected logits or argmax"
            )
    elif said.soft_labels is not None:
        raise UsageError(
            f"--soft-labels {said.soft_labels} given, and the labels are plain class numbers: "
            "leave it out"
        )
    return Settled(method, _decode(method, said.decode, released), kind)


def _decode(method: str, text: str | None, released: Released) -> DecodeRule:
    if text is None or text == "none":
        return NoDecode()
    match = _DECODE.fullmatch(text)
    order = (match and match[2]) or ORDERS.get(method)
    if match is None or order is None:
        extra = "" if match is None else f" (the order of tiles is not known of {method})"
        raise UsageError(
            f"--decode {text!r} given{extra}, expected none, 2x2-row-major or 2x2-column-major "
            "(or another factor)"
        )
    if match is not None and method in PLAIN:
        raise UsageError(
            f"--decode {text} given, and {method} stores its training images as they are: give "
            "--decode none, or the --method that cut them"
        )
    factor = int(match[1])
    if min(released.images.shape[2:]) < 2 * factor:
        height, width = released.images.shape[2:]
        raise UsageError(
            f"--decode {text} given for images of {height}x{width}, which leaves tiles of less "
            "than 2 pixels: expected a smaller factor or none"
        )
    return TilesDecode(factor=factor, order=order)


def _kind(released: Released) -> str | None:
    return soft_kind(released.labels)


def _looks(released: Released) -> str:
    """What the values look like, in words; a remark, never an answer."""
    found = released.detected
    low, high = found["range"]
    spread = sum(found["std"]) / len(found["std"])
    if low >= -0.5 and high <= 1.5 and spread < 0.5:
        like = "which looks like unit space (or whitened images)"
    elif spread > 0.6:
        like = "which looks normalised"
    else:
        like = "which may be normalised or whitened"
    return f"values go from {low:g} to {high:g} with a spread of {spread:.2g}, {like}"
