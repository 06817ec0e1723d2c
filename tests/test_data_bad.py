"""Bad sets of every kind of source, through `open_data`: one line that says what, where and what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import DataOptions, open_data
from edgecnn.errors import DataError

Labels = list[int]


def noise(count: int) -> np.ndarray[Any, Any]:
    """Make different images."""
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def folder(root: Path, train: Labels, test: Labels | None) -> Path:
    """Write class folders, below train and test if there is a test."""
    for name, labels in (("train", train), ("test", test)):
        for index, (pixels, label) in enumerate(zip(noise(len(labels or [])), labels or [], strict=True)):
            path = (root / name if test is not None else root) / str(label) / f"{name}{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def table(root: Path, train: Labels, test: Labels | None) -> Path:
    """Write images and a CSV that lists them."""
    lines = ["path,label,split"]
    for name, labels in (("train", train), ("test", test)):
        for index, (pixels, label) in enumerate(zip(noise(len(labels or [])), labels or [], strict=True)):
            Image.fromarray(pixels).save(root / f"{name}{index}.png")
            lines.append(f"{name}{index}.png,{label},{name if test is not None else ''}")
    (root / "set.csv").write_text("\n".join(lines) + "\n")
    return root / "set.csv"


def npz(root: Path, train: Labels, test: Labels | None) -> Path:
    """Write arrays by Keras' names."""
    arrays = {"x_train": noise(len(train)), "y_train": np.array(train)}
    if test is not None:
        arrays |= {"x_test": noise(len(test)), "y_test": np.array(test)}
    np.savez(root / "set.npz", **arrays)  # type: ignore[arg-type]
    return root / "set.npz"


def idx(root: Path, train: Labels, test: Labels | None) -> Path:
    """Write IDX files."""
    for prefix, labels in (("train", train), ("t10k", test or [])):
        for kind, array in (("images", noise(len(labels))), ("labels", np.array(labels, dtype=np.uint8))):
            head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            (root / f"{prefix}-{kind}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
    return root


Maker = Callable[[Path, Labels, Labels | None], Path]
ALL: tuple[Maker, ...] = (folder, table, npz, idx)
UNSPLIT: tuple[Maker, ...] = (folder, table, npz)


def refused(source: Path, message: str, options: DataOptions | None = None) -> None:
    """Hold an error to one line that names the source and says so."""
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(source), options)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize("make", ALL)
def test_a_good_set_opens(make: Maker, tmp_path: Path) -> None:
    """What the makers of bad sets write is good where nothing is wrong with it."""
    dataset = open_data(str(make(tmp_path, [0, 1] * 10, [0, 1])))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (18, 2, 2)
    assert dataset.labels == ("0", "1")


@pytest.mark.parametrize("make", ALL)
def test_one_class_is_refused(make: Maker, tmp_path: Path) -> None:
    """A set of one class is refused by its name, whatever it comes as."""
    refused(make(tmp_path, [0] * 20, [0] * 5), r"one class only \(0\); there is nothing to tell apart")


@pytest.mark.parametrize("make", UNSPLIT)
def test_fewer_images_than_classes_and_splits_need_are_refused(make: Maker, tmp_path: Path) -> None:
    """One image of each class leaves nothing to hold out, and the error counts what there is."""
    refused(make(tmp_path, [0, 1, 2, 3], None), r"too few images for a split \(train 4, val 0, test 0\): add images")


@pytest.mark.parametrize("make", [npz, idx])
def test_label_numbers_beyond_the_images_are_refused(make: Maker, tmp_path: Path) -> None:
    """Labels numbered past the classes that have images mean classes without any, which are named."""
    refused(make(tmp_path, [0, 1, 4] * 8, [0, 1]), "no training image of 2, 3; every class needs some")


@pytest.mark.parametrize("make", ALL)
def test_a_class_that_only_the_test_has_is_refused(make: Maker, tmp_path: Path) -> None:
    """A label of the test that no training image has is refused by its name."""
    refused(make(tmp_path, [0, 1] * 10, [0, 1, 2]), "no training image of 2; every class needs some")


@pytest.mark.parametrize(("labels", "what"), [([-1, 0], "labels are int64"), ([0, 70000], "labels are int64")])
def test_label_numbers_out_of_range_are_refused(labels: Labels, what: str, tmp_path: Path) -> None:
    """Negative and absurdly large label numbers are refused before anything is made of them."""
    refused(npz(tmp_path, labels * 10, None), what)


@pytest.mark.parametrize("make", UNSPLIT)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions(val=0.6, test=0.6), "val and test together ask for a share of 1.2, which leaves nothing"),
        (DataOptions(val=0.5, test=0.5), "val and test together ask for a share of 1, which leaves nothing"),
        (DataOptions(test=1.0), "a split's share must lie between 0 and 1, not 1.0"),
        (DataOptions(val=-0.1), "a split's share must lie between 0 and 1, not -0.1"),
        (DataOptions(val=0.001), r"too few images for a split \(train 16, val 0, test 4\)"),
        (DataOptions(group_from="["), r"--group-from '\[' is not a regular expression"),
        (DataOptions(group_from="never"), "--group-from 'never' matches none of 20 names"),
        (DataOptions(group_from=r"train|test"), r"too few groups, 1, for a split \(train 20, val 0, test 0\)"),
        (DataOptions(group_from="[3-9]"), r"matches only \d+ of 20 names; the first it does not is"),
    ],
    ids=str,
)
def test_impossible_splits_are_refused(make: Maker, options: DataOptions, message: str, tmp_path: Path) -> None:
    """Shares and groups by which nothing can be split are refused, and the error names the source."""
    refused(make(tmp_path, [0, 1] * 10, None), message, options)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("stream", [False, True])
def test_no_image_at_all_is_refused(make: Maker, stream: bool, tmp_path: Path) -> None:
    """A set without a single image is refused, streamed or not."""
    refused(make(tmp_path, [], []), "no class folders|no line below|needed|empty one", DataOptions(stream=stream))
