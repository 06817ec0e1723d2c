"""Bundles that are read: what is in them comes back, and what is none is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_bundle import ARRAYS, NET, PIXELS, contents, record

from edgecnn.bundle import MANIFEST, Bundle
from edgecnn.errors import BundleError, DamagedError, UsageError
from edgecnn.images import encode_png
from edgecnn.spec import Artifact


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


def test_an_artifact_without_a_hash_is_read_as_it_is(tmp_path: Path) -> None:
    """An artifact that has no recorded hash is read unchecked, and with one it is compared."""
    (tmp_path / "net.onnx").write_bytes(NET)
    artifact = Artifact(name="net", format="onnx", path=tmp_path / "net.onnx")
    assert artifact.read_bytes() == NET
    with pytest.raises(DamagedError):
        dataclasses.replace(artifact, sha256="0" * 64).read_bytes()
