"""Damaged bundles: content, sizes, files and goldens that are not what the manifest records."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import ARRAYS, NET, PIXELS, contents, npz, write

from edgecnn.bundle import MANIFEST, Bundle
from edgecnn.errors import BackendError, DamagedError
from edgecnn.manifest import SIGNATURE


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


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.EACCES, "give the person who runs this the right to read it"), (errno.EIO, "copy the bundle again")]
)  # fmt: skip
def test_files_that_cannot_be_read_say_what_helps(
    small: Path, code: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To copy a bundle again does not help who may not read it; a disk's error is another matter."""
    bundle, plain = Bundle.open(small), Path.open

    def failing(path: Path, *arguments: Any, **more: Any) -> Any:
        if path.name == "net.onnx":
            raise OSError(code, os.strerror(code), str(path))
        return plain(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DamagedError, match=rf"net\.onnx: cannot be read \({os.strerror(code)}\); {advice}$"):
        bundle.read("net.onnx")


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


@pytest.mark.parametrize(
    "data", [b"{", b"\xff\xfe", b'{"algorithm":"\xff"}', b"[" * 50_000], ids=["cut", "bytes", "text", "deep"]
)
def test_a_signature_that_cannot_be_read_names_no_key(small: Path, data: bytes) -> None:
    """Where no key was asked for, whatever lies in the signature's place is no reason to crash."""
    (small / SIGNATURE).write_bytes(data)
    assert Bundle.open(small).claimed_signer is None
