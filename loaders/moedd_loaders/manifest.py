"""`moedd.json`, the manifest of a set: its schema, reading it, and its exact bytes.

The manifest is written last: its presence means that the set is whole. Readers accept the same
major schema and ignore keys they do not know; a newer major is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moedd_loaders.errors import InvalidSetError, NonFiniteError

__all__ = [
    "CHECKSUMS",
    "MANIFEST",
    "PREVIEW",
    "RESULTS",
    "SCHEMA",
    "TENSORS",
    "Budget",
    "DecodeRule",
    "Diversity",
    "ExpertEntry",
    "FileEntry",
    "Labels",
    "Manifest",
    "NoDecode",
    "PairDiversity",
    "Part",
    "Provenance",
    "Shuffled",
    "Source",
    "TilesDecode",
    "TrainedIn",
    "manifest_bytes",
    "parquet_path",
    "parse_manifest",
    "read_manifest",
    "tar_path",
    "tensor_files",
]

MANIFEST = "moedd.json"
CHECKSUMS = "checksums.sha256"
TENSORS = "tensors/distilled.safetensors"
RESULTS = "benchmarks/results.jsonl"
PREVIEW = "assets/preview.png"
SCHEMA = "moedd/1"
_MAJOR = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class NoDecode(_Model):
    """Stored images are the training images."""

    kind: Literal["none"] = "none"


class TilesDecode(_Model):
    """Each stored image is a grid of factor x factor small images (see `decode.py`)."""

    kind: Literal["tiles"] = "tiles"
    factor: int = Field(ge=1, le=64)
    order: Literal["row-major", "column-major"] = "row-major"
    resize: Literal["bilinear"] = "bilinear"
    pad: Literal["mean"] = "mean"


DecodeRule = Annotated[NoDecode | TilesDecode, Field(discriminator="kind")]


class Part(_Model):
    """Which part of the real data an expert was distilled from."""

    rule: str = "all"
    of: int = Field(default=1, ge=1)
    index: int = Field(default=0, ge=0)
    fingerprint: str = ""


class TrainedIn(_Model):
    """The space an expert was optimised in; stored pixels are always converted to unit space.

    `mean`/`std` are per channel (normalised = (unit - mean) / std). `matrix` names the file inside
    the set that holds a whitening matrix (its name carries the content's hash).
    """

    space: Literal["unit", "normalized", "zca"] = "unit"
    mean: list[float] | None = None
    std: list[float] | None = None
    matrix: str | None = None


class ExpertEntry(_Model):
    """One expert: its method, its part, how many images per class, and how to decode them."""

    id: int = Field(ge=0)
    method: str
    config: dict[str, Any] = {}
    part: Part = Part()
    stored_per_class: list[int]
    decoded_per_class: list[int]
    decode: DecodeRule
    trained_in: TrainedIn = TrainedIn()
    step_size: float | None = None
    shards: list[int]


class Source(_Model):
    """The real data a set was distilled from; `shape` is (C, H, W), `mean`/`std` per channel."""

    data: str
    hub_id: str | None = None
    revision: str | None = None
    fingerprint: str = ""
    split: str = "train"
    license: str = "unknown"
    classes: list[str] = Field(min_length=1)
    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    class_order: str = "as given"
    notes: list[str] = []


class Labels(_Model):
    """Hard labels are class numbers; soft labels are stored besides as (N, classes) floats."""

    kind: Literal["hard", "soft"] = "hard"


class Budget(_Model):
    """What the set costs: stored images, bytes of their float pixels, bytes of labels."""

    images: int = Field(ge=0)
    image_bytes: int = Field(ge=0)
    label_bytes: int = Field(ge=0)


class Shuffled(_Model):
    """The values of a pair whose rows are in random order over all classes.

    What nothing but chance gives: mean and standard deviation over `orders` orders.
    """

    biased: float
    biased_std: float
    unbiased: float
    unbiased_std: float
    cka: float
    cka_std: float
    orders: int = Field(ge=2)


class PairDiversity(_Model):
    """Dependence between two experts: squared distance correlation, its floor, linear CKA.

    Rows are paired at random within classes, many times. In the order they are stored in, the
    unbiased value is `between` (what sharing the classes explains) plus `within` (what the order
    adds: likeness of k-th image and k-th image). With one image per class nobody can tell them
    apart, and with unequal numbers no k-th meets the k-th: None. `rows` is how many images of each
    expert were compared.
    """

    experts: tuple[int, int]
    biased: float
    unbiased: float
    floor: float
    cka: float
    between: float | None = None
    within: float | None = None
    shuffled: Shuffled | None = None
    rows: int | None = None


class Diversity(_Model):
    """Dependence between experts, averaged over all pairs of them (see `PairDiversity`).

    `pairs` holds each pair where there are several, `rows` is then the smallest of theirs; `layer`
    says which features. Sets of earlier versions have the first four numbers only.
    """

    biased: float
    unbiased: float
    floor: float
    cka: float
    between: float | None = None
    within: float | None = None
    shuffled: Shuffled | None = None
    pairs: list[PairDiversity] = []
    rows: int | None = None
    layer: str | None = None


class Provenance(_Model):
    """How, where and in how long the set was made (not part of any content hash).

    `notes` say where an expert had to do with less than its method asks for; `ranks` is how many
    processes worked on it together (when it was finished).
    """

    moedd: str = ""
    torch: str = ""
    device: str = "cpu"
    profile: str = ""
    ranks: int = 1
    seed: int | None = 0
    seconds: float | None = 0.0
    iterations: dict[str, Any] = {}
    schedule_fraction: dict[str, Any] = {}
    peak_memory_bytes: int = 0
    losses: dict[str, Any] = {}
    notes: list[str] = []


class FileEntry(_Model):
    """Hash and size (bytes) of a payload file."""

    sha256: str
    size: int = Field(ge=0)


class Manifest(_Model):
    """Everything that a reader must know about a set (`moedd.json`)."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    name: str
    version: str = "1.0.0"
    created: str
    source: Source
    experts: list[ExpertEntry] = Field(min_length=1)
    labels: Labels = Labels()
    budget: Budget
    evaluation: dict[str, Any] = {}
    diversity: Diversity | None = None
    provenance: Provenance = Provenance()
    files: dict[str, FileEntry]
    content_sha256: str
    view_sha256: str
    training_sha256: str

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape


def parquet_path(shard: int, shards: int) -> str:
    """Path inside a set of a Parquet shard, in the form that `datasets` recognises."""
    return f"data/train-{shard:05d}-of-{shards:05d}.parquet"


def tar_path(shard: int) -> str:
    """Path inside a set of a WebDataset shard."""
    return f"webdataset/train-{shard:05d}.tar"


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of the set in `folder`.

    Raises:
        InvalidSetError: no manifest, not JSON, not of this schema, or of a newer major schema.
    """
    path = Path(folder) / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidSetError(
            f"{folder} holds no {MANIFEST}: it is not a set, or its writing was never finished"
        ) from None
    except IsADirectoryError:
        raise InvalidSetError(f"{path} is a folder, expected a JSON file") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path | str) -> Manifest:
    """A manifest from its bytes; `path` is what messages call it. Raises as `read_manifest`."""
    try:
        raw = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidSetError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidSetError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidSetError(f"{path} holds a JSON {type(raw).__name__}, expected an object")
    _check_schema(path, raw.get("schema"))
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InvalidSetError(f"{path} does not follow {SCHEMA}: {where}: {first['msg']}") from None


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of `moedd.json`: UTF-8, indent 1, keys in the schema's order, newline at the end.

    Raises:
        NonFiniteError: a number is not finite (JSON has no NaN).
    """
    plain = manifest.model_dump(by_alias=True)
    try:
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise NonFiniteError(
            f"the manifest of {manifest.name} would hold NaN or infinity, which JSON cannot"
        ) from None
    return (text + "\n").encode()


def tensor_files(manifest: Manifest) -> list[str]:
    """Paths of the files that reading a set needs besides the manifest.

    Raises:
        InvalidSetError: one would lie outside of tensors/ (the manifest may come from anywhere).
    """
    found = [path for path in manifest.files if path.startswith("tensors/")]
    for path in found:
        if not re.fullmatch(r"tensors/[\w+-][\w.+-]*", path):
            raise InvalidSetError(
                f"{MANIFEST} of {manifest.name} lists {path!r}, expected tensors/NAME"
            )
    return found


def _check_schema(path: Path | str, schema: Any) -> None:
    match = re.fullmatch(r"moedd/(\d+)(?:\.\d+)*", schema) if isinstance(schema, str) else None
    if match is None:
        raise InvalidSetError(f"{path} has schema {schema!r}, expected '{SCHEMA}'")
    if int(match[1]) > _MAJOR:
        raise InvalidSetError(
            f"{path} has schema {schema}, this version reads moedd/{_MAJOR}: "
            "it needs a newer moedd: pip install -U moedd"
        )
    if int(match[1]) < _MAJOR:
        raise InvalidSetError(f"{path} has schema {schema}, which was never released")
