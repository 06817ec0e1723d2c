"""Bundles in a zip: the same answers as the folder, nothing unpacked but what is listed, nothing left behind."""

from __future__ import annotations

import gc
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from small_bundle import NET, contents, describe, entries, pack, record

from edgecnn.backends.base import Backend
from edgecnn.bundle import MANIFEST, Bundle
from edgecnn.errors import BundleError, DamagedError, EdgecnnError, UsageError
from edgecnn.predict import artifact_for
from edgecnn.spec import BackendRef


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


def test_messages_name_the_zip(tmp_path: Path) -> None:
    """What a backend cannot read lies in the zip that was given, not in a folder which is gone by then."""
    bundle, backend = Bundle.open(pack(tmp_path / "x.zip", entries())), SimpleNamespace(formats=("other",))
    with pytest.raises(UsageError) as caught:
        artifact_for(bundle, BackendRef(backend="somebody"), cast(Backend, backend))
    assert str(caught.value) == f"{tmp_path / 'x.zip'}: holds no artifact that somebody reads (other)"


def test_only_listed_entries_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a zip holds beyond its manifest is not unpacked, however its names try to get out."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = pack(tmp_path / "x.zip", {**entries(), "../evil": b"x", "extra": b"x", "/tmp/edgecnn-evil": b"x"})
    bundle = Bundle.open(path)
    assert all(bundle.read(name) for name in bundle.manifest.files)
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
