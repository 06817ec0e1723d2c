"""`manifest.json`: what a bundle holds, hashed, and what was measured of it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec

from edgecnn.errors import SchemaError
from edgecnn.spec import Format, Frozen, Preprocess, Target, TensorSpec, Tolerance

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"  # the one file that the manifest does not list, for it is made of the manifest
SCHEMA_VERSION = 1
LARGEST = 32 << 20  # bytes: no manifest is larger
LARGEST_FILE = 2 << 30  # bytes: ONNX files, being protobuf, cannot be larger


class FileRecord(Frozen, frozen=True):
    """The size in bytes and SHA-256 of one file."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class ArtifactRecord(Frozen, frozen=True):
    """One artifact; `path` is relative to the bundle, `details` is what its exporter has to say about it."""

    format: Format
    precision: str
    target: Target
    path: str
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class GoldensRecord(Frozen, frozen=True):
    """Images with their expected answers: encoded files, labels by index, and one npz of arrays.

    The npz holds `pixels` (uint8 NHWC), `logits_float64` (the truth), `logits_float32` (torch, whose error is the
    unit in which others are judged), and `recorded_NAME` for every runnable artifact, all in the order of `images`.
    """

    images: tuple[str, ...]
    labels: tuple[int, ...]
    arrays: str


class Provenance(Frozen, frozen=True):
    """Where the model comes from: data, seed, and the machine and packages that made it."""

    data: str
    test_sha256: str
    split: str
    seed: int
    host: dict[str, Any]
    training: dict[str, Any]


class Manifest(Frozen, frozen=True):
    """The whole description of a bundle."""

    schema_version: int
    edgecnn: str
    created: str
    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: dict[str, ArtifactRecord]
    default_artifact: str
    goldens: GoldensRecord
    tolerance: Tolerance
    provenance: Provenance
    evidence: dict[str, Any]
    files: dict[str, FileRecord]


def is_inside(name: str) -> bool:
    """Say whether a file's name in a manifest stays inside the bundle, as far as a name can tell."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


class _Version(msgspec.Struct):
    schema_version: int


class _Marks(_Version):
    edgecnn: str


_UNREADABLE = (msgspec.MsgspecError, RecursionError)


def is_manifest(data: bytes) -> bool:
    """Say whether this is edgecnn's manifest, of any version; other tools have a `manifest.json` too."""
    try:
        msgspec.json.decode(data, type=_Marks)
    except _UNREADABLE:
        return False
    return True


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read and validate a manifest, strictly.

    Raises:
        SchemaError: not JSON, an unknown version, a field missing, unknown or of the wrong type, or records that
            contradict each other.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except _UNREADABLE as error:
        raise SchemaError(
            f"{where}: not an edgecnn manifest ({error}); copy the bundle again, or name the folder of another"
        ) from None
    if version != SCHEMA_VERSION:
        newer = "; install a newer edgecnn" if version > SCHEMA_VERSION else ""
        raise SchemaError(f"{where}: schema version {version} is unknown, this edgecnn reads {SCHEMA_VERSION}{newer}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except _UNREADABLE as error:
        raise SchemaError(f"{where}: {error}") from None
    problem = _left_out(data) or _contradiction(manifest)
    if problem:
        raise SchemaError(f"{where}: {problem}")
    return manifest


def _left_out(data: bytes) -> str | None:
    """Name what a default would fill in: a box must not preprocess or judge by a guess."""
    raw = msgspec.json.decode(data)
    for name, kind in (("preprocess", Preprocess), ("tolerance", Tolerance)):
        missing = sorted(set(kind.__struct_fields__) - set(raw[name]))
        if missing:
            return f"Object missing required field `{missing[0]}` - at `$.{name}`"
    return None


def _contradiction(manifest: Manifest) -> str | None:
    goldens = manifest.goldens
    if len(manifest.labels) < 2:
        return "fewer than two labels"
    if manifest.default_artifact not in manifest.artifacts:
        return f"default_artifact {manifest.default_artifact!r} is not among the artifacts"
    if len(goldens.images) != len(goldens.labels) or not goldens.images:
        return "goldens need as many labels as images, and at least one"
    if not all(0 <= label < len(manifest.labels) for label in goldens.labels):
        return "a golden's label is out of range"
    named = [record.path for record in manifest.artifacts.values()] + [*goldens.images, goldens.arrays]
    missing = sorted(set(named) - set(manifest.files))
    own = sorted({MANIFEST, SIGNATURE} & set(manifest.files))
    if own:
        return f"{own[0]} cannot be one of the files that it lists"
    return f"no hash is recorded for {', '.join(missing)}" if missing else None
