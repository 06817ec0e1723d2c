"""Manifests and the values in them: each that is missing, of another type, unknown or out of range is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from small_bundle import contents, describe

from edgecnn import bundle as bundle_module
from edgecnn.bundle import MANIFEST, Bundle
from edgecnn.errors import BundleError, SchemaError
from edgecnn.manifest import parse_manifest
from edgecnn.spec import Preprocess, TensorSpec


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe\0", b"{}", b'{"name": "my web app"}', b'{"schema_version": "1"}', b'{"schema_version": 1.5}'],
    ids=str,
)  # fmt: skip
def test_what_is_no_manifest_is_refused(small: Path, data: bytes) -> None:
    """A manifest that is not JSON, or has no whole number for its version, is refused by its path."""
    (small / MANIFEST).write_bytes(data)
    with pytest.raises(SchemaError, match=rf"small/{MANIFEST}: not an edgecnn manifest"):
        Bundle.open(small)


def test_a_manifest_of_endless_brackets_is_refused() -> None:
    """JSON nested too deeply to be read is refused like any other that cannot be read."""
    with pytest.raises(SchemaError, match="there"):
        parse_manifest(b'{"schema_version": 1, "evidence": ' + b'{"a":' * 50_000, "there")


def test_an_oversized_manifest_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest over the limit is refused before it is parsed."""
    monkeypatch.setattr(bundle_module, "LARGEST", 1 << 20)
    (small / MANIFEST).write_bytes((small / MANIFEST).read_bytes() + b" " * (1 << 20))
    with pytest.raises(BundleError, match="over 1 MB, which no manifest is"):
        Bundle.open(small)


@pytest.mark.parametrize(("version", "hint"), [(0, False), (-1, False), (2, True), (99, True), (10**30, True)])
def test_unknown_schema_versions_are_refused(small: Path, version: int, hint: bool) -> None:
    """Another schema version is refused with both numbers, and a newer one with what to do, whatever else is in it."""
    (small / MANIFEST).write_text(json.dumps({"schema_version": version, "brand": "new"}))
    with pytest.raises(SchemaError, match=f"schema version {version} is unknown, this edgecnn reads 1") as caught:
        Bundle.open(small)
    assert ("install a newer edgecnn" in str(caught.value)) is hint


def paths(value: Any, here: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the path of every named field in a JSON document."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else ():
        found += [(*here, key), *paths(inner, (*here, key))]
    return found


OPTIONAL = {"tolerance", "host", "training", "evidence"}
REQUIRED = [path for path in paths(describe(contents())) if path[0] not in ("files", "artifacts")]
REQUIRED += [("artifacts", "net", name) for name in ("format", "precision", "target", "path")]
REQUIRED += [("files", "net.onnx", name) for name in ("size", "sha256")]


def at(document: Any, path: tuple[str, ...]) -> Any:
    """Follow a path."""
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_missing_fields_are_named(path: tuple[str, ...]) -> None:
    """A manifest that lacks any one of its fields is refused with the name of it."""
    document = describe(contents())
    del at(document, path[:-1])[path[-1]]
    with pytest.raises(SchemaError, match=rf"^there: .*`{path[-1]}`") as caught:
        parse_manifest(json.dumps(document).encode(), "there")
    assert path[0] in str(caught.value)


@pytest.mark.parametrize("path", [*REQUIRED, ("goldens", "labels"), ("tolerance", "max_drop")], ids=".".join)
def test_fields_of_the_wrong_type_are_named(path: tuple[str, ...]) -> None:
    """A field whose value is of another type is refused with its place."""
    document = describe(contents())
    value = at(document, path[:-1]).get(path[-1])
    at(document, path[:-1])[path[-1]] = 5 if isinstance(value, (str, list, dict)) else "five"
    with pytest.raises(SchemaError, match=rf"^there: .*{path[-1]}"):
        parse_manifest(json.dumps(document).encode(), "there")


@pytest.mark.parametrize("path", [(), ("preprocess",), ("goldens",), ("tolerance",), ("provenance",), ("artifacts", "net"), ("files", "net.onnx")], ids=".".join)  # fmt: skip
def test_unknown_fields_are_named(path: tuple[str, ...]) -> None:
    """A field that the schema does not have is refused by its name, at any depth."""
    document = describe(contents())
    at(document, path)["surprise"] = 1
    with pytest.raises(SchemaError, match=r"^there: .*unknown field `surprise`"):
        parse_manifest(json.dumps(document).encode(), "there")


VALUES: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "an unknown format": (("artifacts", "net", "format"), "tflite", "tflite"),
    "an unknown target": (("artifacts", "net", "target"), "riscv", "riscv"),
    "two channels": (("preprocess", "channels"), 2, "channels"),
    "no height": (("preprocess", "height"), 0, "not within 1 to 4096"),
    "an unknown fit": (("preprocess", "fit"), "squeeze", "squeeze"),
    "a zero scale": (("preprocess", "scale"), 0.0, "scale 0.0 is not a positive"),
    "an infinite scale": (("preprocess", "scale"), 1e300, "is not a positive, finite number"),
    "a zero point out of range": (("preprocess", "zero_point"), 256, "zero_point"),
    "one label": (("labels",), ["ant"], "fewer than two labels"),
    "a default that is not there": (("default_artifact",), "int8", "default_artifact 'int8' is not among"),
    "too few golden labels": (("goldens", "labels"), [0], "as many labels as images"),
    "no goldens": (("goldens",), {"images": [], "labels": [], "arrays": "goldens/arrays.npz"}, "at least one"),
    "a golden label out of range": (("goldens", "labels"), [0, 3], "label is out of range"),
    "a negative golden label": (("goldens", "labels"), [0, -1], "label is out of range"),
    "an artifact without a hash": (("artifacts", "net", "path"), "gone.onnx", r"no hash is recorded for gone\.onnx"),
    "a golden without a hash": (("goldens", "arrays"), "gone.npz", r"no hash is recorded for gone\.npz"),
    "a negative size": (("files", "net.onnx", "size"), -1, "size"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_cannot_be_are_refused(name: str) -> None:
    """Values out of range, and records that contradict each other, are refused with what is wrong."""
    path, value, message = VALUES[name]
    document = describe(contents())
    at(document, path[:-1])[path[-1]] = value
    with pytest.raises(SchemaError, match=f"^there: .*{message}"):
        parse_manifest(json.dumps(document).encode(), "there")


def test_a_manifest_survives_its_round_trip(bundle_folder: Path) -> None:
    """A manifest that is written out and read back is the same."""
    manifest = Bundle.open(bundle_folder).manifest
    assert parse_manifest(msgspec.json.encode(manifest), "there") == manifest
    assert parse_manifest((bundle_folder / MANIFEST).read_bytes(), "there") == manifest


@pytest.mark.parametrize(
    ("field", "value"),
    [("confidence", 0.3), ("confidence", 1.0), ("max_drop", 1.0), ("noise_multiple", 1e308), ("recorded_share", 0.0)],
)
def test_a_tolerance_that_judges_nothing_is_refused(field: str, value: float) -> None:
    """A manifest cannot bring a tolerance by which everything, or nothing, would pass."""
    manifest = describe(contents())
    manifest["tolerance"][field] = value
    with pytest.raises(SchemaError, match="tolerance"):
        parse_manifest(json.dumps(manifest).encode(), "there")


@pytest.mark.parametrize(
    "fields",
    [{"height": 0}, {"width": 4097}, {"scale": 0.0}, {"scale": float("nan")}, {"scale": float("inf")}, {"scale": -1.0}, {"zero_point": -1}, {"zero_point": 256}, {"background": 300}],
    ids=str,
)  # fmt: skip
def test_impossible_preprocessing_is_refused(fields: dict[str, Any]) -> None:
    """A preprocessing with which nothing could run cannot be made."""
    with pytest.raises(ValueError, match=r"not within|pixel values|not a positive"):
        Preprocess(**{"height": 8, "width": 8, "channels": 1, **fields})


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((1, 4, 5, 1), True), ((9, 4, 5, 1), True), ((4, 5, 1), False), ((1, 5, 4, 1), False), ((1, 4, 5, 1, 1), False)],
)
def test_tensor_specs_accept_what_fits(shape: tuple[int, ...], fits: bool) -> None:
    """A specification accepts exactly the shapes that agree in number and in every fixed dimension."""
    assert TensorSpec(name="image", shape=(None, 4, 5, 1), dtype="uint8").accepts(shape) is fits
