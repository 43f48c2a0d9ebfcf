"""Options that several commands have, and how their texts are read."""

from typing import Annotated

import typer

from moedd_loaders.errors import UsageError

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="Real data: a folder (Parquet, images, tars) or a Hub id."),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Resize images: 64, or 48x64 (height x width).")
]
ChannelsOption = Annotated[
    int | None, typer.Option("--channels", help="Convert images to 1 or 3 channels.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option(help="How the arithmetic runs: auto (default), float32 or fast (bfloat16)."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable images out instead of stopping.")
]


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """`64` or `48x64` (height x width); anything else is a UsageError."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() for part in parts) or len(parts) > 2:
        raise UsageError(f"--size {text!r} given; expected a side (64) or HEIGHTxWIDTH (48x64)")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45` as numbers; anything else is a UsageError."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(abs(number) < 1e6 for number in numbers):
        raise UsageError(f"{option} {text!r} given, expected numbers with commas: 0.49,0.48,0.45")
    return numbers
