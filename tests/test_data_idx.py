"""IDX files, made here and the real MNIST, whole and damaged."""

from __future__ import annotations

import gzip
import os
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from photos import Array, names, noise

from edgecnn.data import DataOptions, open_data
from edgecnn.data.idx import list_idx
from edgecnn.errors import DataError

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def write_idx(root: Path, prefix: str, images: Array, labels: Array, zipped: bool = True, dot: str = "-") -> None:
    """Write one split as IDX files, by hand."""
    root.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images", images), ("labels", labels)):
        data = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        name = f"{prefix}-{kind}{dot}idx{array.ndim}-ubyte"
        (root / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """Return a small IDX set: 40 training and 12 test images of three classes, 10 high and 9 wide."""
    write_idx(tmp_path / "idx", "train", noise(40, 10, 9, seed=1), np.arange(40) % 3)
    write_idx(tmp_path / "idx", "t10k", noise(12, 10, 9, seed=2), np.arange(12) % 3)
    return tmp_path / "idx"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dot", ["-", "."])
def test_idx_files_are_read_by_any_of_their_names(tmp_path: Path, zipped: bool, dot: str) -> None:
    """IDX files are read, zipped or not, with a dash or a dot in their names, rows and columns in order."""
    write_idx(tmp_path, "train", noise(40, 10, 9, seed=1), np.arange(40) % 3, zipped, dot)
    write_idx(tmp_path, "t10k", noise(12, 10, 9, seed=2), np.arange(12) % 3, zipped, dot)
    listing = list_idx(tmp_path)
    assert listing.labels == ("0", "1", "2")
    assert [item.label for item in listing.items] == [*(np.arange(40) % 3), *(np.arange(12) % 3)]
    contents = [item.content for item in listing.items]
    np.testing.assert_array_equal(np.array(contents[:40]), noise(40, 10, 9, seed=1))
    np.testing.assert_array_equal(np.array(contents[40:]), noise(12, 10, 9, seed=2))


def test_the_official_idx_test_split_is_kept(idx_folder: Path) -> None:
    """The t10k images are the test, all of them and in order; the validation comes from train."""
    dataset = open_data(str(idx_folder), DataOptions(size=10, fit="pad", test=0.5, seed=3))
    assert names(dataset.test) == [f"t10k-{index:05d}" for index in range(12)]
    np.testing.assert_array_equal(dataset.test.labels, np.arange(12) % 3)
    assert sorted(names(dataset.train) + names(dataset.val)) == [f"train-{index:05d}" for index in range(40)]
    assert (
        dataset.split
        == f"train {len(dataset.train)}, val {len(dataset.val)}, test 12; val split off by class with seed 3"
    )


def damage(kind: str, data: bytes) -> bytes:
    """Damage an unzipped IDX file of images."""
    return {
        "magic": b"\0\0\x0d\x03" + data[4:],  # floats
        "dimensions": b"\0\0\x08\x01" + data[4:],
        "short": data[:-1],
        "long": data + b"\0",
        "header": data[:10],
        "empty": b"",
        "bomb": data[:4] + b"\xff" * 12 + data[16:],
    }[kind]


@pytest.mark.parametrize("kind", ["magic", "dimensions", "short", "long", "header", "empty", "bomb"])
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_idx_files_are_named(idx_folder: Path, kind: str, zipped: bool) -> None:
    """An IDX file that is not what its header says is refused by its path."""
    file = idx_folder / "train-images-idx3-ubyte.gz"
    data = damage(kind, gzip.decompress(file.read_bytes()))
    file.unlink()
    file = file if zipped else file.with_suffix("")
    file.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError, match=rf"{file.name}: (not an IDX file|damaged|the header promises)"):
        open_data(str(idx_folder))


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_gzip_is_refused(idx_folder: Path, name: str) -> None:
    """A gzip file that is cut, of other content, or changed in any byte of its data is refused by its path."""
    file = idx_folder / name
    whole = file.read_bytes()
    changed = [whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :] for place in range(10, len(whole), 97)]
    for data in (whole[: len(whole) // 2], whole[:-5], b"not gzip at all", b"", *changed, whole[:-8] + b"\0" * 8):
        file.write_bytes(data)
        with pytest.raises(DataError, match=name):
            open_data(str(idx_folder))
    file.write_bytes(whole)
    assert len(open_data(str(idx_folder)).test) == 12


def test_idx_label_counts_must_match(idx_folder: Path) -> None:
    """Another number of labels than of images is refused, with both numbers."""
    write_idx(idx_folder, "t10k", noise(12, 10, 9), np.arange(11) % 3)
    with pytest.raises(DataError, match="t10k has 12 images and 11 labels"):
        open_data(str(idx_folder))


@pytest.mark.parametrize("name", ["train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
def test_missing_idx_files_are_named(idx_folder: Path, name: str) -> None:
    """An IDX set that lacks one of its four files is refused with the name of it."""
    (idx_folder / f"{name}-ubyte.gz").unlink()
    with pytest.raises(DataError, match=rf"{name}-ubyte\(\.gz\) is missing"):
        open_data(str(idx_folder))


def test_idx_classes_without_training_images_are_refused(tmp_path: Path) -> None:
    """A gap in the label numbers is a class without images, and refused."""
    write_idx(tmp_path, "train", noise(40, 8, 8), np.arange(40) % 2 * 2)
    write_idx(tmp_path, "t10k", noise(12, 8, 8, seed=2), np.arange(12) % 2 * 2)
    with pytest.raises(DataError, match="no training image of 1;"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(("train", "test", "side"), [(0, 0, 8), (0, 12, 8), (40, 12, 0)])
def test_idx_sets_without_pixels_are_refused(tmp_path: Path, train: int, test: int, side: int) -> None:
    """An IDX set of no training images, or of images of no size, is refused."""
    write_idx(tmp_path, "train", noise(train, side, side), np.arange(train) % 3)
    write_idx(tmp_path, "t10k", noise(test, side, side, seed=2), np.arange(test) % 3)
    with pytest.raises(DataError):
        open_data(str(tmp_path))


@pytest.fixture(scope="module")
def mnist() -> Path:
    """Return the folder of the real MNIST, which CI must have."""
    if not MNIST.is_dir():
        message = f"the real MNIST is not at {MNIST}"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, and CI must have it")
        pytest.skip(message)
    return MNIST


def test_real_mnist_is_read(mnist: Path) -> None:
    """The real MNIST has 60,000 and 10,000 images whose labels and pixels are those in the files, byte for byte."""
    listing = list_idx(mnist)
    by_split = {name: [item for item in listing.items if item.split == name] for name in ("train", "test")}
    assert {name: len(items) for name, items in by_split.items()} == {"train": 60000, "test": 10000}
    assert listing.labels == tuple("0123456789")
    for name, prefix in (("train", "train"), ("test", "t10k")):
        labels = gzip.decompress((mnist / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        assert [item.label for item in by_split[name]] == list(labels[8:])
        images = gzip.decompress((mnist / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        for index in (0, 1, 777, len(by_split[name]) - 1):
            content = by_split[name][index].content
            assert isinstance(content, np.ndarray)
            assert content.tobytes() == images[16 + 784 * index : 16 + 784 * (index + 1)]
    assert [item.label for item in by_split["test"][:10]] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.slow
def test_real_mnist_keeps_its_test_split(mnist: Path) -> None:
    """MNIST opens as 28x28 grey with its own 10,000 test images and a validation from its training images."""
    dataset = open_data(str(mnist))
    assert dataset.preprocess.shape == (28, 28, 1)
    labels = gzip.decompress((mnist / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    tenth = {digit: round(count / 10) for digit, count in Counter(labels).items()}
    assert Counter(dataset.val.labels.tolist()) == tenth
    assert len(dataset.train) == 60000 - sum(tenth.values())
    assert names(dataset.test) == [f"t10k-{index:05d}" for index in range(10000)]
    raw = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert dataset.test.pixels.tobytes() == raw[16:]
