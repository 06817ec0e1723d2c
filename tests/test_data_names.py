"""Names of classes from a text file beside arrays that only number them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgecnn.cli import cli
from edgecnn.data import DataOptions, open_data
from edgecnn.errors import DataError

CELLS = "basophil\neosinophil\nlymphocyte\n"


def write_npz(path: Path, classes: int = 3) -> str:
    """Write MedMNIST's arrays, with labels (N, 1)."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stubs take the arrays for its flag
    return str(path)


def write_idx(folder: Path) -> str:
    """Write MNIST's four files with three classes."""
    for prefix, count in (("train", 24), ("t10k", 12)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return str(folder)


@pytest.mark.parametrize("kind", ["npz", "idx"])
@pytest.mark.parametrize("text", [CELLS, CELLS.rstrip(), "\ufeff" + CELLS.replace("\n", "\r\n") + "\r\n"])
def test_the_lines_are_the_names(kind: str, text: str, tmp_path: Path) -> None:
    """Line by line the classes get their names, whatever ends the lines; images and labels stay as they are."""
    source = write_npz(tmp_path / "blood.npz") if kind == "npz" else write_idx(tmp_path)
    before = open_data(source)
    assert before.labels == ("0", "1", "2")
    (tmp_path / ("blood.labels.txt" if kind == "npz" else "labels.txt")).write_bytes(text.encode())
    after = open_data(source)
    assert after.labels == ("basophil", "eosinophil", "lymphocyte")
    for split in ("train", "val", "test"):
        assert getattr(before, split).sha256() == getattr(after, split).sha256()


def test_the_names_of_another_file_are_not_taken(tmp_path: Path) -> None:
    """Of several .npz in a folder each has its own names, or none."""
    blood, chest = write_npz(tmp_path / "blood.npz"), write_npz(tmp_path / "chest.64.npz", 2)
    (tmp_path / "blood.labels.txt").write_text(CELLS)
    (tmp_path / "labels.txt").write_text("x\ny\nz\n")
    assert open_data(chest).labels == ("0", "1")
    (tmp_path / "chest.64.labels.txt").write_text("normal\npneumonia\n")
    assert open_data(chest).labels == ("normal", "pneumonia")
    assert open_data(blood).labels[0] == "basophil"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a\nb\n", r"labels\.txt: names 2 classes, but there are 3; give each a line"),
        (b"", r"labels\.txt: names 0 classes, but there are 3"),
        (b"a\n\nc\n", r"labels\.txt, line 2: there is no name"),
        (b"a\nb\na \n", r"labels\.txt, line 3: 'a' is there twice"),
        (b"a\n\xff\nc\n", r"labels\.txt: cannot be read as UTF-8 text"),
        (b"a\nb\nc\nd\n", r"no training image of d"),
    ],
)
def test_names_that_do_not_fit_are_refused(text: bytes, told: str, tmp_path: Path) -> None:
    """Too few names, an empty one, one twice, or one without an image is one line that names the place."""
    source = write_npz(tmp_path / "blood.npz")
    (tmp_path / "blood.labels.txt").write_bytes(text)
    with pytest.raises(DataError, match=told) as caught:
        open_data(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    """A folder in the place of the names is an error, not a set without names."""
    source = write_npz(tmp_path / "blood.npz")
    (tmp_path / "blood.labels.txt").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        open_data(source, DataOptions())


def test_the_names_are_shown(tmp_path: Path) -> None:
    """`data check` counts the images of each name."""
    source = write_npz(tmp_path / "blood.npz")
    (tmp_path / "blood.labels.txt").write_text(CELLS)
    result = CliRunner().invoke(cli, ["data", "check", source])
    assert all(name in result.stdout for name in CELLS.split())
