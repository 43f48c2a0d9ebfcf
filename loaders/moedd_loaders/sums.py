"""`checksums.sha256`, in the form of `sha256sum -c`, and whether it lists this very manifest."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from moedd_loaders.errors import InvalidSetError
from moedd_loaders.manifest import CHECKSUMS, MANIFEST

__all__ = ["check_manifest_sum", "parse_checksums"]


def parse_checksums(data: bytes, path: Path | str) -> dict[str, str]:
    """sha256 by path; `path` is what messages call the file.

    Raises:
        InvalidSetError: not text, a line of another form, a file that comes twice.
    """
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidSetError(f"{path} is not text") from None
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise InvalidSetError(f"{path}, line {number} is not '<sha256>  <path>'")
        if match[2] in sums:
            raise InvalidSetError(f"{path}, line {number} lists {match[2]} a second time")
        sums[match[2]] = match[1]
    return sums


def check_manifest_sum(
    described: bytes, path: Path | str, checksums: bytes, listed_in: Path | str
) -> None:
    """Check that a manifest was not edited: no hash of the rows covers class names or constants.

    Args:
        described, checksums: bytes of the two files; path, listed_in: what messages call them.

    Raises:
        InvalidSetError: it was, or is not listed.
    """
    said = parse_checksums(checksums, listed_in).get(MANIFEST)
    if said is None:
        raise InvalidSetError(f"{listed_in} does not list {MANIFEST}")
    if said != hashlib.sha256(described).hexdigest():
        raise InvalidSetError(f"{path} was edited: its sha256 is not that of {CHECKSUMS}")
