"""npz files by the names of Keras and MedMNIST, whole and damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import GOOD, Array, names, noise, write_npz

from edgecnn.data import DataOptions, open_data
from edgecnn.data.npz import list_npz
from edgecnn.errors import DataError


def test_keras_names_are_read(tmp_path: Path) -> None:
    """Keras' names are read, the test split stays, and the validation comes from train."""
    images, test = noise(40, 9, 9), noise(12, 9, 9, seed=2)
    source = write_npz(
        tmp_path / "a.npz", x_train=images, y_train=np.arange(40) % 4, x_test=test, y_test=np.arange(12) % 4
    )
    dataset = open_data(source, DataOptions(test=0.5, seed=2))
    np.testing.assert_array_equal(dataset.test.pixels[..., 0], test)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(12) % 4)
    rest = sorted(names(dataset.train) + names(dataset.val))
    assert rest == [f"train-{index:05d}" for index in range(40)]
    where = [int(name[-5:]) for name in names(dataset.train)]
    np.testing.assert_array_equal(dataset.train.pixels[..., 0], images[where])
    assert dataset.labels == ("0", "1", "2", "3")


@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_names_and_label_columns_are_read(tmp_path: Path, channels: int) -> None:
    """MedMNIST's names are read, with its labels in one column and all three of its splits."""
    arrays = {}
    for seed, (name, count) in enumerate({"train": 30, "val": 9, "test": 12}.items()):
        arrays[f"{name}_images"] = noise(count, 9, 9, channels, seed=seed)
        arrays[f"{name}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    dataset = open_data(write_npz(tmp_path / "a.npz", **arrays))
    for name, part in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test)):
        np.testing.assert_array_equal(part.pixels, arrays[f"{name}_images"])
        np.testing.assert_array_equal(part.labels, arrays[f"{name}_labels"][:, 0])
    assert dataset.split == "train 30, val 9, test 12; as the source has it"


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int16])
def test_whole_numbers_of_other_types_are_read(tmp_path: Path, dtype: Any) -> None:
    """Pixels from 0 to 255 in a wider integer type are read as they are."""
    images = noise(40, 9, 9)
    dataset = open_data(write_npz(tmp_path / "a.npz", x_train=images.astype(dtype), y_train=np.arange(40) % 2))
    where = [int(name[-5:]) for name in names(dataset.train)]
    np.testing.assert_array_equal(dataset.train.pixels[..., 0], images[where])


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "float images": ({"x_train": GOOD["x_train"] / np.float32(255)}, "train images are float32; whole numbers"),
    "bool images": ({"x_train": GOOD["x_train"] > 99}, "train images are bool"),
    "over 255": ({"x_train": GOOD["x_train"].astype(np.int64) + 100}, "whole numbers from 0 to 255"),
    "negative": ({"x_train": GOOD["x_train"].astype(np.int64) - 100}, "whole numbers from 0 to 255"),
    "vectors": ({"x_train": noise(20, 64)}, r"shape \(20, 64\)"),
    "channels first": ({"x_train": noise(20, 3, 8, 8)}, r"shape \(20, 3, 8, 8\)"),
    "alpha": ({"x_train": noise(20, 8, 8, 4)}, r"shape \(20, 8, 8, 4\)"),
    "float labels": ({"y_train": np.arange(20) % 2 * 1.0}, "train labels are float64"),
    "one-hot labels": ({"y_train": np.eye(2, dtype=np.uint8)[np.arange(20) % 2]}, r"labels are uint8 \(20, 2\)"),
    "negative labels": ({"y_train": np.arange(20) % 2 - 1}, "train labels are"),
    "huge labels": ({"y_train": np.arange(20) % 2 * 10**9}, "train labels are"),
    "text labels": ({"y_train": np.array(["a", "b"] * 10)}, "train labels are"),
    "too few labels": ({"y_train": np.arange(19) % 2}, "train has 20 images and 19 labels"),
    "one class": ({"y_train": np.zeros(20, dtype=np.uint8)}, "one class only"),
    "no images": ({"x_train": noise(0, 8, 8), "y_train": np.zeros(0, dtype=np.uint8)}, "x_train and y_train are needed"),
    "no pixels": ({"x_train": noise(20, 0, 0)}, "train images"),
    "other names": ({"x_train": None, "y_train": None, "data": noise(3, 3)}, "has data; x_train and y_train are needed"),
    "nothing": ({"x_train": None, "y_train": None}, "has nothing; x_train and y_train are needed"),
    "objects": ({"y_train": np.array([object()] * 20)}, r"cannot be read as \.npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_unusable_arrays_are_refused(tmp_path: Path, name: str) -> None:
    """Arrays of the wrong type, shape, range or name are refused with the file and what is wrong."""
    changes, message = BAD_ARRAYS[name]
    arrays = {key: array for key, array in {**GOOD, **changes}.items() if array is not None}
    source = write_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad\.npz: .*{message}"):
        open_data(source)


def npy(array: Array) -> bytes:
    """Encode one bare array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"PK\x03\x04", npy(noise(20, 8, 8)), b"\x80\x04N."],
    ids=["empty", "text", "zip", "npy", "pickle"],
)
def test_files_that_are_no_npz_are_refused(tmp_path: Path, data: bytes) -> None:
    """A file that is called .npz and is none, such as a bare array or a pickle, is refused by its path."""
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.npz: "):
        open_data(str(tmp_path / "bad.npz"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_npz_files_are_refused(tmp_path: Path) -> None:
    """An npz that is cut, or changed in any byte, is refused as data or still holds what it held."""
    file = tmp_path / "bad.npz"
    whole = Path(write_npz(file, **GOOD)).read_bytes()
    cuts = [whole[:size] for size in range(0, len(whole), 41)]
    flips = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in range(0, len(whole), 5)]
    refused = 0
    for data in cuts + flips:
        file.write_bytes(data)
        try:
            items = list_npz(file).items
        except DataError:
            refused += 1
        else:
            assert [item.label for item in items] == GOOD["y_train"].tolist()
            np.testing.assert_array_equal(np.array([item.content for item in items]), GOOD["x_train"])
    assert refused > len(cuts) + len(flips) / 2
