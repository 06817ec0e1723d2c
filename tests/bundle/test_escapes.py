"""Names and links that lead out of a bundle, as a folder and as a zip, before and after it was opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_bundle import NET, contents, describe, entries, pack, record, write

from edgecnn.bundle import MANIFEST, Bundle
from edgecnn.errors import BundleError, EscapeError

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
