"""Bundles, their manifests, and the atomic writing below them: what is refused, where, and what is left behind."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import json
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from small_bundle import ARRAYS, NET, PIXELS, contents, describe, entries, npz, pack, record, write

from edgecnn import bundle as bundle_module
from edgecnn.bundle import MANIFEST, Bundle, create_bundle
from edgecnn.errors import BackendError, BundleError, DamagedError, EdgecnnError, EscapeError, SchemaError, UsageError
from edgecnn.files import folder_atomic, write_atomic
from edgecnn.images import encode_png
from edgecnn.manifest import FileRecord, Manifest, parse_manifest
from edgecnn.spec import Artifact, Preprocess, TensorSpec


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return the folder of a small bundle."""
    return write(tmp_path / "small")


# Reading


def test_a_bundle_gives_back_what_is_in_it(small: Path) -> None:
    """Files, artifact and goldens are read as they were written."""
    bundle = Bundle.open(small)
    bundle.verify()
    assert {name: bundle.read(name) for name in bundle.manifest.files} == contents()
    artifact = bundle.artifact()
    assert (artifact.name, artifact.format, artifact.path) == ("net", "onnx", small / "net.onnx")
    assert artifact.sha256 == hashlib.sha256(NET).hexdigest()
    assert artifact.read_bytes() == NET
    goldens = bundle.goldens()
    assert goldens.names == ("goldens/000.png", "goldens/001.png")
    assert goldens.encoded == (encode_png(PIXELS[0]), encode_png(PIXELS[1]))
    np.testing.assert_array_equal(goldens.pixels, PIXELS)
    np.testing.assert_array_equal(goldens.labels, [0, 2])
    np.testing.assert_array_equal(goldens.logits_float64, ARRAYS["logits_float64"])
    np.testing.assert_array_equal(goldens.logits_float32, ARRAYS["logits_float32"])
    assert list(goldens.recorded) == ["net"]
    np.testing.assert_array_equal(goldens.recorded["net"], ARRAYS["recorded_net"])


def test_a_real_bundle_verifies(bundle_folder: Path) -> None:
    """An exported bundle holds exactly the files of its manifest, with the sizes and hashes recorded there."""
    Bundle.open(bundle_folder).verify()
    described = json.loads((bundle_folder / MANIFEST).read_bytes())
    on_disk = {path.relative_to(bundle_folder).as_posix(): path for path in bundle_folder.rglob("*") if path.is_file()}
    del on_disk[MANIFEST]
    assert {name: record(path.read_bytes()) for name, path in on_disk.items()} == described["files"]
    assert {"goldens/arrays.npz", "model.safetensors", "labels.txt"} < set(on_disk)


def test_a_moved_bundle_opens(bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that was moved, and is named by a relative path, opens and verifies as before."""
    moved = tmp_path / "other place" / "späte Bilder"
    moved.parent.mkdir()
    bundle_copy.rename(moved)
    monkeypatch.chdir(moved.parent)
    bundle = Bundle.open(Path("späte Bilder"))
    bundle.verify()
    assert len(bundle.goldens().names) == len(bundle.manifest.goldens.images)
    assert str(tmp_path) not in (moved / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("kind", "message"), [("absent", "is not there"), ("empty", "holds no manifest.json"), ("file", "is no bundle")]
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    """A path to nothing, to another folder or to another file is refused with what to give."""
    path = tmp_path / "bundle"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("hello")
    with pytest.raises(BundleError, match=rf"bundle: {message}; give a folder \(or its zip\)"):
        Bundle.open(path)


def test_unknown_artifacts_are_refused(small: Path) -> None:
    """An artifact that the bundle does not have is the user's mistake, and those there are get listed."""
    with pytest.raises(UsageError, match="no artifact is called 'int8'; it has net"):
        Bundle.open(small).artifact("int8")


def test_only_recorded_files_are_read(small: Path) -> None:
    """A file that lies in the folder but not in the manifest is not read."""
    (small / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin is not in the manifest"):
        Bundle.open(small).read("extra.bin")


# The manifest


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


# Damage


@pytest.mark.parametrize("name", contents())
def test_changed_content_is_refused(small: Path, name: str) -> None:
    """A file of the right size whose content was changed by one bit is refused by its path."""
    data = bytearray((small / name).read_bytes())
    data[len(data) // 2] ^= 1
    (small / name).write_bytes(data)
    for act in (lambda bundle: bundle.read(name), Bundle.verify):
        with pytest.raises(DamagedError, match=rf"{name}: the content does not have the recorded SHA-256"):
            act(Bundle.open(small))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\n", lambda data: b""], ids=["cut", "longer", "empty"])  # fmt: skip
def test_changed_sizes_are_refused(small: Path, change: Callable[[bytes], bytes]) -> None:
    """A file of another size is refused with both sizes."""
    (small / "net.onnx").write_bytes(change(NET))
    size = len(change(NET))
    with pytest.raises(DamagedError, match=rf"net\.onnx: {size} bytes, the manifest says {len(NET)}; copy it again"):
        Bundle.open(small).verify()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_missing_files_are_refused(small: Path, kind: str) -> None:
    """A file that is not there, or has become a folder, is refused as missing."""
    (small / "net.onnx").unlink()
    if kind == "directory":
        (small / "net.onnx").mkdir()
    with pytest.raises(DamagedError, match=r"net\.onnx: missing; copy the bundle again"):
        Bundle.open(small).verify()


@pytest.mark.parametrize("name", ["extra.txt", "goldens/extra.png", "deep/er/extra", ".hidden", f"goldens/{MANIFEST}"])
def test_extra_files_are_refused(small: Path, name: str) -> None:
    """A file that the manifest does not know is refused by its name, wherever it lies."""
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_bytes(b"x")
    with pytest.raises(DamagedError, match=f"holds {name}, which the manifest does not know"):
        Bundle.open(small).verify()


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_extra_links_are_refused(small: Path, tmp_path: Path, target: str) -> None:
    """A link that the manifest does not know is refused, whether it leads to a file, a folder or nowhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (small / "extra").symlink_to(tmp_path / target)
    with pytest.raises(DamagedError, match="holds extra, which the manifest does not know"):
        Bundle.open(small).verify()


def test_damage_after_opening_is_seen(small: Path) -> None:
    """A file that is changed after the bundle was opened is refused when it is read, by bundle and artifact alike."""
    bundle = Bundle.open(small)
    artifact = bundle.artifact()
    (small / "net.onnx").write_bytes(NET.upper())
    with pytest.raises(DamagedError, match=r"net\.onnx"):
        bundle.read("net.onnx")
    with pytest.raises(DamagedError, match=r"net\.onnx: the content is not what the manifest recorded"):
        artifact.read_bytes()
    (small / "net.onnx").unlink()
    with pytest.raises(BackendError, match=r"net\.onnx: cannot be read"):
        artifact.read_bytes()


WRONG_ARRAYS: dict[str, dict[str, Any]] = {
    "no pixels": {"pixels": None},
    "no truth": {"logits_float64": None},
    "no float32": {"logits_float32": None},
    "pixels of another size": {"pixels": PIXELS[:, :3]},
    "pixels without channels": {"pixels": PIXELS[..., 0]},
    "pixels of one image": {"pixels": PIXELS[:1]},
    "truth of another class count": {"logits_float64": np.zeros((2, 4))},
    "truth of one image": {"logits_float64": np.zeros((1, 3))},
    "float32 transposed": {"logits_float32": np.zeros((3, 2), dtype=np.float32)},
    "float32 flat": {"logits_float32": np.zeros(6, dtype=np.float32)},
    "records of one image": {"recorded_net": np.zeros((1, 3), dtype=np.float32)},
    "objects": {"logits_float64": np.array([[object()] * 3] * 2)},
    "float pixels": {"pixels": PIXELS.astype(np.float32)},
    "whole-number truth": {"logits_float64": np.zeros((2, 3), dtype=np.int64)},
    "a truth that is not finite": {"logits_float64": np.full((2, 3), np.nan)},
    "records that are not finite": {"recorded_net": np.full((2, 3), np.inf, dtype=np.float32)},
    "text as records": {"recorded_net": np.full((2, 3), "1.0")},
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_goldens_of_another_shape_are_refused(tmp_path: Path, name: str) -> None:
    """Golden arrays that are missing, of another shape or type than described, or not finite, are refused although their hash fits."""
    folder = write(tmp_path / "small", contents(**WRONG_ARRAYS[name]))
    with pytest.raises(DamagedError, match=r"goldens/arrays\.npz: "):
        Bundle.open(folder).goldens()


def bare_array() -> bytes:
    """Encode one array that is not in an npz."""
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"no arrays", bare_array(), npz(ARRAYS)[:300], npz(ARRAYS)[:-30]], ids=["empty", "text", "npy", "head", "tail"])  # fmt: skip
def test_goldens_that_are_no_arrays_are_refused(tmp_path: Path, data: bytes) -> None:
    """A golden file that holds no npz is refused although its hash fits."""
    folder = write(tmp_path / "small", {**contents(), "goldens/arrays.npz": data})
    with pytest.raises(DamagedError, match=r"goldens/arrays\.npz: not the goldens' arrays"):
        Bundle.open(folder).goldens()


# Escapes

OUTSIDE = [
    "../secret",
    "goldens/../../secret",
    "/etc/hostname",
    "..",
    "a\\..\\..\\secret",
    "..\\secret",
    "",
    "a\0b",
    "//etc/hostname",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("zipped", [False, True])
def test_names_that_leave_the_bundle_are_refused(tmp_path: Path, name: str, zipped: bool) -> None:
    """A name that leads out of the bundle is refused when it is opened, as a folder and as a zip, and is quoted."""
    secret = b"secret"
    (tmp_path / "secret").write_bytes(secret)
    document = describe(contents())
    document["files"][name] = record(secret)
    if zipped:
        path = pack(
            tmp_path / "small.zip", {**entries(), MANIFEST: json.dumps(document).encode(), "../secret": b"overwritten"}
        )
    else:
        path = write(tmp_path / "small", None, document)
    with pytest.raises(EscapeError) as caught:
        Bundle.open(path)
    assert f"names {name!r}, which leaves the bundle; do not use it" in str(caught.value)
    assert str(path) in str(caught.value)
    assert (tmp_path / "secret").read_bytes() == secret


@pytest.mark.parametrize("place", ["artifacts", "goldens"])
def test_records_that_leave_the_bundle_are_refused(tmp_path: Path, place: str) -> None:
    """An artifact or golden that leads out of the bundle is refused, with a hash for it and without."""
    document = describe(contents())
    if place == "artifacts":
        document["artifacts"]["net"]["path"] = "../secret"
    else:
        document["goldens"]["arrays"] = "../secret"
    folder = write(tmp_path / "small", None, document)
    with pytest.raises(BundleError, match=r"\.\./secret"):
        Bundle.open(folder)
    document["files"]["../secret"] = record(b"")
    with pytest.raises(EscapeError, match=r"\.\./secret"):
        Bundle.open(write(tmp_path / "small", None, document))


def test_a_linked_file_is_refused(small: Path, tmp_path: Path) -> None:
    """A file that is a link out of the bundle is refused, although it has the content recorded."""
    (tmp_path / "outside.onnx").write_bytes(NET)
    (small / "net.onnx").unlink()
    (small / "net.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(EscapeError, match=r"names 'net\.onnx', which leaves the bundle"):
        Bundle.open(small)


def test_a_linked_folder_is_refused(small: Path, tmp_path: Path) -> None:
    """A folder inside the bundle that is a link out of it is refused."""
    (small / "goldens").rename(tmp_path / "outside")
    (small / "goldens").symlink_to("../outside")
    with pytest.raises(EscapeError, match=r"names 'goldens/000\.png', which leaves the bundle"):
        Bundle.open(small)


def test_a_link_made_after_opening_is_refused(small: Path, tmp_path: Path) -> None:
    """A file that becomes a link out of the bundle after it was opened is refused when it is read."""
    bundle = Bundle.open(small)
    (small / "net.onnx").rename(tmp_path / "outside.onnx")
    (small / "net.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(EscapeError, match=r"names 'net\.onnx'"):
        bundle.read("net.onnx")


def test_a_link_in_circles_is_an_error_of_ours(small: Path) -> None:
    """A file that is a link to itself is one of edgecnn's errors, not a crash."""
    (small / "net.onnx").unlink()
    (small / "net.onnx").symlink_to("net.onnx")
    with pytest.raises(BundleError, match=r"net\.onnx"):
        Bundle.open(small).verify()


def test_the_bundle_itself_may_be_linked(small: Path, tmp_path: Path) -> None:
    """A link to a bundle's folder is opened like the folder, for nothing in it leads out."""
    (tmp_path / "latest").symlink_to(small)
    Bundle.open(tmp_path / "latest").verify()


@pytest.mark.parametrize("name", ["x" * 300, "net.onnx/inside", "."], ids=["long", "below a file", "dot"])
@pytest.mark.parametrize("zipped", [False, True])
def test_names_that_cannot_be_are_an_error_of_ours(tmp_path: Path, name: str, zipped: bool) -> None:
    """A name that no file can have is one of edgecnn's errors, not a crash."""
    document = describe(contents())
    document["files"][name] = record(b"x")
    if zipped:
        made = {**entries(), MANIFEST: json.dumps(document).encode(), name: b"x"}
        path = pack(tmp_path / "small.zip", made)
    else:
        path = write(tmp_path / "small", None, document)
    with pytest.raises(BundleError):
        Bundle.open(path).verify()


# Zips


@pytest.mark.parametrize("prefix", ["", "small/", "späte Bilder/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_equals_its_folder(small: Path, tmp_path: Path, prefix: str, compression: int) -> None:
    """A bundle's zip, at its top or one folder down, gives the same manifest, files and goldens as the folder."""
    folder, zipped = Bundle.open(small), Bundle.open(pack(tmp_path / "x.zip", entries(prefix), compression))
    zipped.verify()
    assert zipped.manifest == folder.manifest
    assert {name: zipped.read(name) for name in zipped.manifest.files} == contents()
    np.testing.assert_array_equal(zipped.goldens().logits_float64, folder.goldens().logits_float64)
    assert zipped.artifact().read_bytes() == NET


@pytest.mark.parametrize("base", ["inside", "around"])
def test_a_zipped_real_bundle_equals_its_folder(bundle_folder: Path, tmp_path: Path, base: str) -> None:
    """A real bundle that is zipped from inside its folder, or from around it, gives the same answers as the folder."""
    start = bundle_folder if base == "inside" else bundle_folder.parent
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in sorted(bundle_folder.rglob("*")):
            archive.write(path, path.relative_to(start))
    bundle, folder = Bundle.open(tmp_path / "packed.zip"), Bundle.open(bundle_folder)
    bundle.verify()
    assert bundle.manifest == folder.manifest
    np.testing.assert_array_equal(bundle.goldens().pixels, folder.goldens().pixels)
    assert bundle.artifact().read_bytes() == folder.artifact().read_bytes()


@pytest.mark.parametrize(("prefixes", "count"), [(["a/b/"], 0), ([], 0), (["a/", "b/"], 2), (["", "a/"], 2)], ids=str)
def test_a_zip_has_one_manifest(tmp_path: Path, prefixes: list[str], count: int) -> None:
    """A zip without a manifest at its top or one folder down, or with two, is refused with their number."""
    made = {name: data for prefix in prefixes for name, data in entries(prefix).items()}
    path = pack(tmp_path / "x.zip", {"readme": b"x", **made})
    with pytest.raises(BundleError, match=rf"x\.zip: holds {count} manifests"):
        Bundle.open(path)


def test_only_listed_entries_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a zip holds beyond its manifest is not unpacked, however its names try to get out."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = pack(tmp_path / "x.zip", {**entries(), "../evil": b"x", "extra": b"x", "/tmp/edgecnn-evil": b"x"})
    bundle = Bundle.open(path)
    bundle.verify()
    found = {file.relative_to(bundle.root).as_posix() for file in bundle.root.rglob("*") if file.is_file()}
    assert found == {MANIFEST, *contents()}
    assert [file.name for file in (tmp_path / "temporary").iterdir()] == [bundle.root.name]
    assert not Path("/tmp/edgecnn-evil").exists()


def test_entries_larger_than_recorded_are_refused(tmp_path: Path) -> None:
    """An entry that unpacks to more bytes than the manifest records is refused by its name."""
    path = pack(tmp_path / "x.zip", {**entries(), "net.onnx": b"\0" * 10_000_000})
    with pytest.raises(DamagedError, match=r"x\.zip: net\.onnx is larger than recorded"):
        Bundle.open(path)


def test_entries_smaller_than_recorded_are_refused(tmp_path: Path) -> None:
    """An entry with fewer bytes than the manifest records, or with others, is refused when it is read."""
    with pytest.raises(DamagedError, match=r"net\.onnx: 4 bytes, the manifest says"):
        Bundle.open(pack(tmp_path / "x.zip", {**entries(), "net.onnx": b"tiny"})).verify()
    with pytest.raises(DamagedError, match=r"net\.onnx: the content does not have"):
        Bundle.open(pack(tmp_path / "y.zip", {**entries(), "net.onnx": NET.upper()})).verify()


def test_a_zip_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    """A file of the manifest that the zip does not hold is named."""
    made = entries()
    del made["labels.txt"]
    with pytest.raises(DamagedError, match=r"x\.zip: .*labels\.txt"):
        Bundle.open(pack(tmp_path / "x.zip", made))


@pytest.mark.parametrize("size", [3 << 30, 1 << 62])
def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, size: int) -> None:
    """A zip whose manifest promises gigabytes is refused before anything of it is unpacked."""
    files = {**describe(contents())["files"], "huge.bin": {"size": size, "sha256": "0"}}
    with pytest.raises(BundleError, match=r"x\.zip: unpacks to over 2 GB"):
        Bundle.open(pack(tmp_path / "x.zip", entries(files=files)))


def test_a_negative_size_does_not_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative size in the manifest does not pay for a file beyond the limit."""
    monkeypatch.setattr("edgecnn.archive._UNPACKED_LIMIT", 1 << 20)
    written: list[int] = []
    write_bytes = Path.write_bytes

    def count(path: Path, data: bytes) -> int:
        written.append(len(data))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", count)
    huge = b"\0" * (5 << 20)
    files = {
        "huge.bin": record(huge),
        **describe(contents())["files"],
        "minus.bin": {"size": -(8 << 20), "sha256": "0"},
    }
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**entries(files=files), "huge.bin": huge, "minus.bin": b""}.items():
            archive.writestr(name, data)
    with pytest.raises(BundleError):
        Bundle.open(path)
    assert sum(written) < 1 << 20


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_zip_is_refused(tmp_path: Path, share: float) -> None:
    """A zip that ends too early is refused by its path."""
    path = pack(tmp_path / "x.zip", entries())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BundleError, match=r"x\.zip"):
        Bundle.open(path)


def test_a_zip_damaged_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    """Whichever byte of a zip is damaged, it is one of edgecnn's errors or it still holds the same files."""
    path = pack(tmp_path / "x.zip", entries())
    data = path.read_bytes()
    refused = 0
    places = range(0, len(data), 7)
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            bundle = Bundle.open(path)
            assert {name: bundle.read(name) for name in bundle.manifest.files} == contents()
        except EdgecnnError:
            refused += 1
    assert refused > len(places) / 2


def test_unpacked_zips_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that a zip is unpacked into goes with the bundle, and at once when opening fails."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    bundle = Bundle.open(pack(tmp_path / "x.zip", entries()))
    assert len(list(temporary.iterdir())) == 1
    with pytest.raises(DamagedError):
        Bundle.open(pack(tmp_path / "y.zip", {**entries(), "net.onnx": b"\0" * 10**6}))
    gc.collect()
    assert [folder.name for folder in temporary.iterdir()] == [bundle.root.name]
    del bundle
    gc.collect()
    assert list(temporary.iterdir()) == []


# Writing


def make(
    path: Path, name: str = "made", fail: BaseException | None = None, files: dict[str, FileRecord] | None = None
) -> None:
    """Write a small bundle with edgecnn; `fail` is raised before its end, `files` replace the hashes recorded."""
    with create_bundle(path) as writer:
        for file, data in contents().items():
            assert writer.add(file, data) == file
        manifest = msgspec.convert({**describe(contents()), "name": name}, type=Manifest)
        writer.finish(msgspec.structs.replace(manifest, files=files or writer.files()))
        if fail:
            raise fail


def tree(folder: Path) -> dict[str, bytes]:
    """Read all that lies below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_written_bundle_is_what_was_added(tmp_path: Path) -> None:
    """What was added is in the folder with its hash in the manifest, parents are made, and nothing else is left."""
    make(tmp_path / "new" / "place" / "bundle")
    assert [path.name for path in (tmp_path / "new" / "place").iterdir()] == ["bundle"]
    found = tree(tmp_path / "new" / "place" / "bundle")
    document = json.loads(found.pop(MANIFEST))
    assert found == contents()
    assert document["files"] == {name: record(data) for name, data in contents().items()}


def test_finish_reads_the_bundle_back(tmp_path: Path) -> None:
    """A bundle whose manifest does not fit its files is refused while it is written, and is not put in place."""
    files = {name: FileRecord(size=len(data), sha256=record(data)["sha256"]) for name, data in contents().items()}
    wrong = {**files, "net.onnx": FileRecord(size=len(NET), sha256="0" * 64)}
    for recorded in (wrong, {**files, "more.bin": FileRecord(size=1, sha256="0" * 64)}):
        with pytest.raises(DamagedError):
            make(tmp_path / "bundle", files=recorded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_leaves_things_as_they_were(tmp_path: Path, error: BaseException, old: bool) -> None:
    """An exception or an interrupt leaves the old bundle untouched, or nothing, and no temporary."""
    if old:
        make(tmp_path / "bundle", "old")
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        make(tmp_path / "bundle", "new", error)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if old else [])


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    """A bundle takes the place of an older one, whole, also where that one was damaged, and of an empty folder."""
    (tmp_path / "bundle").mkdir()
    make(tmp_path / "bundle", "first")
    (tmp_path / "bundle" / "net.onnx").write_bytes(b"damaged")
    make(tmp_path / "bundle", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.verify()
    assert bundle.manifest.name == "second"


FOREIGN = {
    "a folder of photos": {"photo.jpg": b"x"},
    "a web app": {MANIFEST: b'{"name": "my app", "icons": []}', "index.html": b"<html>"},
    "a broken manifest": {MANIFEST: b"\xff\xfe not JSON", "thesis.tex": b"x"},
    "a manifest one folder down": {f"inner/{MANIFEST}": b"{}"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_folders_are_not_replaced(tmp_path: Path, name: str) -> None:
    """A folder that is no bundle of edgecnn's, although it may hold a manifest.json, is neither replaced nor changed."""
    for file, data in FOREIGN[name].items():
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).write_bytes(data)
    with pytest.raises(UsageError, match="out: exists and is not a bundle, so it will not be replaced"):
        make(tmp_path / "out")
    assert tree(tmp_path / "out") == FOREIGN[name]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_are_not_replaced(tmp_path: Path) -> None:
    """A file in the place of the bundle is neither replaced nor changed."""
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="will not be replaced"):
        make(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("name", [".", ".."])
def test_the_working_folder_is_not_replaced(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be moved aside because one stands in it is the user's mistake, not a crash."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(EdgecnnError):
        make(Path(name))


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from edgecnn.bundle import create_bundle
with create_bundle(Path(sys.argv[1])) as writer:
    writer.add("net.onnx", b"half of it")
    writer.add("goldens/000.png", b"x")
    print("ready", flush=True)
    time.sleep(60)
"""
ROOT = str(Path(bundle_module.__file__).resolve().parents[1])


@pytest.mark.parametrize("old", [True, False])
def test_a_killed_write_leaves_the_old_bundle_or_nothing(tmp_path: Path, old: bool) -> None:
    """A process that is killed in the middle of writing leaves the old bundle whole in its place, or nothing."""
    path = tmp_path / "bundle"
    if old:
        make(path, "old")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path), ROOT], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert path.exists() is old
    if old:
        bundle = Bundle.open(path)
        bundle.verify()
        assert bundle.manifest.name == "old"
    make(path, "after")  # what the killed one left behind is in nobody's way
    assert Bundle.open(path).manifest.name == "after"


# In a child of its own, because it forks: kills a write at its first, second, third ... step on the file system.
# A killed process loses nothing that it handed to the system, so that fsync, which is slow, is left out.
STEPS = """
import os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from test_bundle import make
from edgecnn.bundle import Bundle
os.fsync = lambda descriptor: None
STEP = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
steps, limit = 0, None
def count(event, args):
    global steps
    if limit is not None and event in STEP:
        steps += 1
        if steps == limit:
            os.kill(os.getpid(), signal.SIGKILL)
def state(place):
    if not place.exists():
        return "nothing"
    try:
        bundle = Bundle.open(place)
        bundle.verify()
        return bundle.manifest.name
    except Exception as error:
        return type(error).__name__
sys.addaudithook(count)
base = Path(sys.argv[1])
make(base / "old", "old")
for number in range(1, 1000):
    folder = base / str(number)
    shutil.copytree(base / "old", folder / "bundle")
    child = os.fork()
    if not child:
        limit = number
        make(folder / "bundle", "new")
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(number, *(state(place) for place in (folder / "bundle", *folder.glob(".bundle.*.old"))), flush=True)
    if not killed:
        break
"""


def test_a_write_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    """At whichever step on the file system a write is killed, the old or the new bundle is whole, and never a half."""
    command = [sys.executable, "-c", STEPS, str(tmp_path), ROOT, str(Path(__file__).parent)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    states = [line.split()[1:] for line in out.splitlines()]
    assert len(states) > 20
    assert {state[0] for state in states} <= {"old", "nothing", "new"}
    assert states[0] == ["old"]
    assert states[-1] == ["new"]
    for state in states:
        assert "new" in state or "old" in state, f"killed there, neither bundle was left: {state}"
    kinds = [state[0] for state in states]
    assert kinds == sorted(kinds, key=["old", "nothing", "new"].index)


# Single files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file is replaced by new content, its folders are made, and no temporary stays."""
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two" * 1000)
    assert tree(tmp_path) == {"deep/er/file.bin": b"two" * 1000}


def test_readers_never_see_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the old file open keeps all of it, and a disk that is full leaves the old file in its place."""
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"newer")
        assert reader.read() == b"old"

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"newest")
    assert tree(tmp_path) == {"file.bin": b"newer"}


def test_a_file_that_cannot_be_placed_leaves_no_temporary(tmp_path: Path) -> None:
    """Where the new file cannot take its place, the error gets out, the old stays and no temporary does."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomic(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "inside"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    """A block that raises leaves the old folder as it was and no temporary beside it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")

    def fail() -> None:
        with folder_atomic(tmp_path / "folder") as temporary:
            assert temporary.parent == tmp_path
            (temporary / "new").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tree(tmp_path) == {"folder/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("target", ["old", "nothing"])
def test_a_link_is_replaced_by_the_folder(tmp_path: Path, target: str) -> None:
    """A link in the folder's place, also one to nothing, gives way to it; where it led to stays and nothing else does."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    (tmp_path / "latest").symlink_to(target)
    with folder_atomic(tmp_path / "latest") as temporary:
        (temporary / "file").write_text("new")
    assert tree(tmp_path) == {"old/file": b"old", "latest/file": b"new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "old"]


def test_a_finished_folder_replaces_the_old_one(tmp_path: Path) -> None:
    """A block that ends well puts its folder in place of the old one, of which nothing stays."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with folder_atomic(tmp_path / "folder") as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "in").mkdir()
        (temporary / "in" / "new").write_text("new")
        assert tree(tmp_path / "folder") == {"old": b"old"}
    assert tree(tmp_path) == {"folder/in/new": b"new"}


def test_a_folder_that_cannot_be_placed_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last rename fails, the old folder that was moved aside comes back."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError("not today")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError, match="not today"), folder_atomic(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
    assert tree(tmp_path) == {"folder/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# The value types


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


def test_an_artifact_without_a_hash_is_read_as_it_is(tmp_path: Path) -> None:
    """An artifact that has no recorded hash is read unchecked, and with one it is compared."""
    (tmp_path / "net.onnx").write_bytes(NET)
    artifact = Artifact(name="net", format="onnx", path=tmp_path / "net.onnx")
    assert artifact.read_bytes() == NET
    with pytest.raises(DamagedError):
        dataclasses.replace(artifact, sha256="0" * 64).read_bytes()


def test_what_a_killed_export_left_is_cleared_up(tmp_path: Path) -> None:
    """The next write restores a bundle that a killed process had moved aside and removes what it had half written."""
    gone = 2**22 + 12345  # above any process number that Linux gives out
    old, half = tmp_path / f".out.{gone}.old", tmp_path / f".out.{gone}.tmp"
    write(old)
    half.mkdir()
    (half / "fp32.onnx").write_bytes(b"half")
    other = tmp_path / ".outer.1.tmp"
    other.mkdir()
    with pytest.raises(RuntimeError, match="stop"), create_bundle(tmp_path / "out"):
        raise RuntimeError("stop")
    assert Bundle.open(tmp_path / "out").manifest.name == "small"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".outer.1.tmp", "out"]


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
