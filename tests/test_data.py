"""Sources, splits and checks of `edgecnn.data`, with folders, IDX and npz files made here."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecnn.bundle import Bundle
from edgecnn.data import DataOptions, Dataset, LabelledImages, open_data
from edgecnn.data.dataset import Item, Listing, SplitName
from edgecnn.data.folders import list_folders
from edgecnn.data.idx import list_idx
from edgecnn.data.npz import list_npz
from edgecnn.data.of_bundle import find_test_images
from edgecnn.data.splits import assign_splits
from edgecnn.errors import DataError, EdgecnnError

Array = npt.NDArray[Any]
MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def noise(*shape: int, seed: int = 0) -> Array:
    """Make random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: Array) -> Path:
    """Write an image, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photos(root: Path, classes: dict[str, int], shape: tuple[int, ...] = (12, 12), suffix: str = "png") -> Path:
    """Write `classes` folders with so many different images each."""
    for name, count in classes.items():
        for index in range(count):
            path = root / name / f"{index:03d}.{suffix}"
            save(path, noise(*shape, seed=zlib.crc32(str(path).encode())))
    return root


def names(images: LabelledImages) -> list[str]:
    """List where the images of a split came from."""
    return [images.name(index) for index in range(len(images))]


def all_names(dataset: Dataset) -> list[str]:
    """List where the images of all splits came from."""
    return names(dataset.train) + names(dataset.val) + names(dataset.test)


# Splits


def split(
    counts: dict[int, int], options: DataOptions, given: list[SplitName | None] | None = None
) -> tuple[dict[SplitName, list[int]], Array, str]:
    """Split items of so many of each label; `given` are the splits that the source has."""
    labels = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    labels = labels if given else np.random.default_rng(9).permutation(labels)
    marks = given or [None] * len(labels)
    items = [
        Item(str(index), int(label), np.zeros((1, 1), np.uint8), mark)
        for index, (label, mark) in enumerate(zip(labels, marks, strict=True))
    ]
    listing = Listing(labels=tuple(str(label) for label in counts), items=items)
    parts, statement, _ = assign_splits(items, labels, listing, options)
    return {name: where.tolist() for name, where in parts.items()}, labels, statement


def test_splits_have_their_shares_of_every_class() -> None:
    """Of every class a fifth goes to the test and a tenth of the whole to the validation, as worked out by hand."""
    parts, labels, statement = split({0: 100, 1: 50, 2: 10}, DataOptions())
    counts = {name: Counter(labels[where].tolist()) for name, where in parts.items()}
    assert counts["test"] == {0: 20, 1: 10, 2: 2}
    assert counts["val"] == {0: 10, 1: 5, 2: 1}
    assert counts["train"] == {0: 70, 1: 35, 2: 7}
    assert statement == "train 112, val 16, test 32; test and val split off by class with seed 0"


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.3, 0.3), (0.05, 0.5), (0.45, 0.45)])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_image_is_in_exactly_one_split(val: float, test: float, seed: int) -> None:
    """No image is in two splits, none is lost, and each share is met to within one image a class."""
    counts = {0: 41, 1: 23, 2: 5, 3: 90}
    parts, labels, _ = split(counts, DataOptions(val=val, test=test, seed=seed))
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(len(labels)))
    for label, count in counts.items():
        for name, share in (("test", test), ("val", val)):
            got = sum(labels[index] == label for index in parts[name])  # type: ignore[index]
            assert abs(got - share * count) <= 1
    assert set(labels[parts["train"]]) == set(counts)


def test_the_seed_alone_decides_the_split() -> None:
    """The same seed gives the same split and another seed another."""
    one, other, third = (split({0: 60, 1: 60}, DataOptions(seed=seed))[0] for seed in (4, 4, 5))
    assert one == other
    assert all(one[name] != third[name] for name in one)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["val", "test"])
def test_impossible_shares_are_refused(name: str, share: float) -> None:
    """A share that does not lie between 0 and 1 is refused with its value."""
    options = msgspec.structs.replace(DataOptions(), **{name: share})
    with pytest.raises(DataError, match=f"between 0 and 1, not {share}"):
        split({0: 20, 1: 20}, options)


@pytest.mark.parametrize(("val", "test"), [(0.6, 0.6), (0.5, 0.5), (0.2, 0.9)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    """Shares of validation and test that add up to everything are refused."""
    with pytest.raises(DataError):
        split({0: 40, 1: 40}, DataOptions(val=val, test=test))


def test_a_large_share_leaves_each_class_one_training_image() -> None:
    """However large the test's share, each class keeps an image to train on."""
    parts, labels, _ = split({0: 30, 1: 30, 2: 1}, DataOptions(test=0.9, val=0.05))
    assert set(labels[parts["train"]]) == {0, 1, 2}


def test_too_few_images_for_a_split_are_refused() -> None:
    """Where a split comes out empty, the counts and the way out are told."""
    with pytest.raises(DataError, match=r"too few images for a split \(train 4, val 0, test 0\)"):
        split({0: 2, 1: 2}, DataOptions())


def test_the_sources_own_splits_are_kept() -> None:
    """Splits that the source has are kept, whatever seed and shares are asked for."""
    given: list[SplitName | None] = ["train", "val", "test", "train", "val", "test", "train"]
    for options in (DataOptions(), DataOptions(seed=3, val=0.4, test=0.5)):
        parts, _, statement = split({0: 3, 1: 4}, options, given)
        assert parts == {"train": [0, 3, 6], "val": [1, 4], "test": [2, 5]}
        assert statement == "train 3, val 2, test 2; as the source has it"


@pytest.mark.parametrize("missing", ["val", "test"])
def test_only_the_missing_split_is_taken_from_train(missing: str) -> None:
    """Where the source lacks one split it is taken from train, and the other stays."""
    present: Any = "test" if missing == "val" else "val"
    given: list[SplitName | None] = [present if index % 4 == 0 else "train" for index in range(80)]
    parts, _, statement = split({0: 40, 1: 40}, DataOptions(val=0.2, test=0.2), given)
    held: Any = missing
    assert parts[present] == list(range(0, 80, 4))
    assert len(parts[held]) == 12
    assert sorted(parts["train"] + parts[held]) == [index for index in range(80) if index % 4]
    assert statement.endswith(f"; {missing} split off by class with seed 0")


# Digits


def test_digits_are_scikit_learns() -> None:
    """The digits are scikit-learn's 1,797, grey levels 0 to 16 stretched to 0 to 255, under their own numbers."""
    from sklearn.datasets import load_digits

    dataset = open_data("digits")
    images, labels = load_digits(return_X_y=True)
    want = ((images.astype(np.int64) * 255 + 8) // 16).reshape(-1, 8, 8, 1)
    seen = []
    for part in (dataset.train, dataset.val, dataset.test):
        where = [int(name.removeprefix("digit-")) for name in names(part)]
        np.testing.assert_array_equal(part.pixels, want[where])
        np.testing.assert_array_equal(part.labels, labels[where])
        seen += where
    assert sorted(seen) == list(range(1797))
    assert dataset.labels == tuple("0123456789")
    assert dataset.preprocess.shape == (8, 8, 1)
    assert dataset.warnings == ()


def test_digits_hold_two_in_five_out() -> None:
    """Two in five digits of each class are held out for the test and one in ten for the validation."""
    dataset = open_data("digits")
    for label in range(10):
        counts = [int((part.labels == label).sum()) for part in (dataset.train, dataset.val, dataset.test)]
        assert counts[2] == pytest.approx(0.4 * sum(counts), abs=0.5)
        assert counts[1] == pytest.approx(0.1 * sum(counts), abs=1)


def test_split_hashes_tell_splits_apart() -> None:
    """The hash of a split is the same when it is opened again and another for another seed or size."""
    one, again = open_data("digits"), open_data("digits", DataOptions())
    seed, size = open_data("digits", DataOptions(seed=1)), open_data("digits", DataOptions(size=10))
    assert one.test.sha256() == again.test.sha256()
    assert len({one.test.sha256(), one.val.sha256(), seed.test.sha256(), size.test.sha256()}) == 4


def test_a_folder_called_digits_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the name `digits` is opened rather than the built-in set."""
    photos(tmp_path / "digits", {"a": 10, "b": 10})
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").labels == ("a", "b")


# Folders of class folders


def test_class_folders_become_labels(tmp_path: Path) -> None:
    """Every image of every class folder is read once, under its folder's name, at any depth and suffix case."""
    root = photos(tmp_path / "set", {"cat": 20, "ant": 10})
    deep = save(root / "cat" / "indoors" / "night" / "x.png", noise(12, 12, seed=99))
    (root / "ant" / "000.png").rename(root / "ant" / "000.PNG")
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / "README.md").write_text("not a class")
    dataset = open_data(str(root))
    assert dataset.labels == ("ant", "cat")
    assert dataset.skipped == ()
    on_disk = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() == ".png"]
    assert sorted(all_names(dataset)) == sorted(on_disk)
    for part in (dataset.train, dataset.val, dataset.test):
        for index, name in enumerate(names(part)):
            assert dataset.labels[part.labels[index]] == name.split("/")[0]
            np.testing.assert_array_equal(part.pixels[index, :, :, 0], np.array(Image.open(root / name)))
    assert deep.relative_to(root).as_posix() in all_names(dataset)


@pytest.mark.parametrize("spelling", [("train", "val", "test"), ("Training", "valid", "Testing"), ("train", "validation", "test")])  # fmt: skip
def test_split_folders_are_kept(tmp_path: Path, spelling: tuple[str, str, str]) -> None:
    """Images in train, val and test folders stay in their split, whatever of the usual names these have."""
    for folder, count in zip(spelling, (6, 3, 4), strict=True):
        photos(tmp_path / folder, {"a": count, "b": count})
    dataset = open_data(str(tmp_path), DataOptions(seed=5, val=0.5, test=0.4))
    for folder, part, count in zip(spelling, (dataset.train, dataset.val, dataset.test), (6, 3, 4), strict=True):
        assert len(part) == 2 * count
        assert {name.split("/")[0] for name in names(part)} == {folder}
    assert dataset.split == "train 12, val 6, test 8; as the source has it"


def test_the_test_folder_stays_when_val_is_missing(tmp_path: Path) -> None:
    """With train and test folders only, the validation is taken from train and the test stays whole."""
    photos(tmp_path / "train", {"a": 20, "b": 20})
    photos(tmp_path / "test", {"a": 5, "b": 5})
    dataset = open_data(str(tmp_path))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (36, 4, 10)
    assert all(name.startswith("test/") for name in names(dataset.test))
    assert all(name.startswith("train/") for name in names(dataset.train) + names(dataset.val))


def test_split_folders_without_train_are_refused(tmp_path: Path) -> None:
    """A test folder without a train folder is refused, not taken for a class."""
    photos(tmp_path / "test", {"a": 5, "b": 5})
    with pytest.raises(DataError, match="has test but no train folder"):
        open_data(str(tmp_path))


def test_two_folders_for_one_split_lose_no_images(tmp_path: Path) -> None:
    """A set with both `train` and `training` is refused or read whole, but never read in half."""
    for folder in ("train", "training", "test"):
        photos(tmp_path / folder, {"a": 10, "b": 10})
    try:
        dataset = open_data(str(tmp_path))
    except DataError:
        return
    assert len(all_names(dataset)) == 60


@pytest.mark.parametrize("hidden", [".cache", "__MACOSX", "__pycache__"])
def test_hidden_folders_are_no_classes(tmp_path: Path, hidden: str) -> None:
    """Folders whose names begin with a dot or two underscores are not taken for classes."""
    photos(tmp_path, {"a": 10, "b": 10, hidden: 3})
    dataset = open_data(str(tmp_path))
    assert dataset.labels == ("a", "b")
    assert len(all_names(dataset)) == 20


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/007-checkpoint.png", "__MACOSX/007.png", "._007.png"])
def test_hidden_files_inside_a_class_are_ignored(tmp_path: Path, hidden: str) -> None:
    """Copies that tools leave in hidden folders and files of a class are not taken for images of it."""
    photos(tmp_path, {"a": 10, "b": 10})
    save(tmp_path / "a" / hidden, noise(12, 12, seed=7))
    assert [name for name in all_names(open_data(str(tmp_path))) if hidden in name] == []


def test_broken_files_are_listed_and_skipped(tmp_path: Path) -> None:
    """Broken images are left out and listed with their path and what is wrong, and the rest is read."""
    root = photos(tmp_path, {"a": 10, "b": 10})
    (root / "a" / "empty.png").touch()
    (root / "b" / "text.jpg").write_text("no image")
    (root / "b" / "cut.png").write_bytes((root / "b" / "000.png").read_bytes()[:60])
    dataset = open_data(str(root))
    assert sorted(line.split(": ")[0] for line in dataset.skipped) == [
        str(root / name) for name in ("a/empty.png", "b/cut.png", "b/text.jpg")
    ]
    assert "the file is empty" in dataset.skipped[0]
    assert len(all_names(dataset)) == 20
    assert not any(name.endswith(("empty.png", "text.jpg", "cut.png")) for name in all_names(dataset))


def test_strict_stops_at_broken_files(tmp_path: Path) -> None:
    """Strict reading refuses a set with broken files, counts them and names the first, and lets a whole set pass."""
    root = photos(tmp_path, {"a": 10, "b": 10})
    assert len(all_names(open_data(str(root), DataOptions(strict=True)))) == 20
    (root / "a" / "empty.png").touch()
    (root / "b" / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"2 broken files, the first: .*a/empty\.png: the file is empty"):
        open_data(str(root), DataOptions(strict=True))


def test_a_set_of_broken_files_only_is_refused(tmp_path: Path) -> None:
    """A set in which nothing can be read is refused."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        open_data(str(tmp_path))


def test_a_class_whose_images_are_all_broken_is_refused(tmp_path: Path) -> None:
    """A class that loses its last training image to damage is named."""
    photos(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_text("no image")
    with pytest.raises(DataError, match="no training image of c;"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("top", ["", "train"])
def test_a_class_folder_without_images_is_refused(tmp_path: Path, top: str) -> None:
    """An empty class folder is refused by name."""
    photos(tmp_path / top, {"a": 10, "b": 10})
    (tmp_path / top / "void").mkdir()
    with pytest.raises(DataError, match="class 'void' has no image"):
        open_data(str(tmp_path))


def test_a_class_of_the_test_that_train_lacks_is_refused(tmp_path: Path) -> None:
    """A class that only the test folder has is refused by name."""
    photos(tmp_path / "train", {"a": 10, "b": 10})
    photos(tmp_path / "test", {"a": 5, "b": 5, "new": 5})
    with pytest.raises(DataError, match="no training image of new;"):
        open_data(str(tmp_path))


def test_one_class_is_refused(tmp_path: Path) -> None:
    """A set of one class is refused, with its name."""
    photos(tmp_path, {"only": 10})
    with pytest.raises(DataError, match=r"one class only \(only\)"):
        open_data(str(tmp_path))


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    """Images that lie loose, without class folders, are refused with what to do."""
    save(tmp_path / "x.png", noise(8, 8))
    with pytest.raises(DataError, match="no class folders; put the images of each class into a folder of its name"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(None, "is not there"), (b"hello", "is neither a folder nor an .npz or .csv file")],
    ids=["absent", "file"],
)
def test_what_is_no_source_is_refused(tmp_path: Path, make: bytes | None, reason: str) -> None:
    """A path that leads to nothing, or to a file of another kind, is refused with what would do."""
    if make is not None:
        (tmp_path / "data").write_bytes(make)
    with pytest.raises(DataError, match=f"data: {reason}; give 'digits', a folder of class folders"):
        open_data(str(tmp_path / "data"))


def test_encoded_images_are_the_files_themselves(tmp_path: Path) -> None:
    """A split gives back the original file where there is one and a lossless PNG where there is none."""
    photos(tmp_path, {"a": 10, "b": 10}, suffix="bmp")
    test = open_data(str(tmp_path), DataOptions(size=8)).test
    assert test.encoded(0) == ((tmp_path / test.name(0)).read_bytes(), ".bmp")
    digits = open_data("digits").test
    data, suffix = digits.encoded(3)
    assert suffix == ".png"
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), digits.pixels[3, :, :, 0])


# Size and colour


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg", "pgm", "webp"])
def test_grey_sets_stay_grey(tmp_path: Path, suffix: str) -> None:
    """A set whose images are all grey is grey, of their own size; WebP has no grey and counts as colour."""
    dataset = open_data(str(photos(tmp_path, {"a": 10, "b": 10}, (14, 14), suffix)))
    assert dataset.preprocess.shape == (14, 14, 3 if suffix == "webp" else 1)
    assert dataset.skipped == ()


def test_sixteen_bit_sets_are_grey(tmp_path: Path) -> None:
    """A set of 16 bit grey images is grey."""
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 65536, (12, 12)).astype(np.uint16)
        save(tmp_path / "ab"[index % 2] / f"{index}.png", pixels)
    assert open_data(str(tmp_path)).preprocess.channels == 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif"])
def test_one_colour_image_makes_a_colour_set(tmp_path: Path, suffix: str) -> None:
    """One colour image among grey ones makes the whole set colour, and the grey ones repeat their channel."""
    photos(tmp_path, {"a": 10, "b": 10})
    save(tmp_path / "a" / f"colour.{suffix}", noise(12, 12, 3))
    dataset = open_data(str(tmp_path))
    assert dataset.preprocess.channels == 3
    assert dataset.skipped == ()
    grey = [index for index, name in enumerate(names(dataset.train)) if name.endswith("png") and "colour" not in name]
    assert grey
    assert (np.ptp(dataset.train.pixels[grey].astype(int), axis=3) == 0).all()


@pytest.mark.parametrize(("channels", "shape"), [(1, (12, 12, 3)), (3, (12, 12))])
def test_channels_asked_for_are_given(tmp_path: Path, channels: Any, shape: tuple[int, ...]) -> None:
    """The option decides between grey and colour against what the images are."""
    dataset = open_data(str(photos(tmp_path, {"a": 10, "b": 10}, shape)), DataOptions(channels=channels))
    assert dataset.train.pixels.shape[1:] == (12, 12, channels)


@pytest.mark.parametrize(
    ("shape", "side"), [((40, 30), 30), ((30, 60), 30), ((200, 300), 96), ((4, 4), 8), ((96, 97), 96)]
)
def test_the_default_size_is_the_images_own(tmp_path: Path, shape: tuple[int, int], side: int) -> None:
    """Images are squares of their shorter side, of at least 8 and at most 96."""
    dataset = open_data(str(photos(tmp_path, {"a": 10, "b": 10}, shape)))
    assert dataset.preprocess.shape == (side, side, 1)


def test_the_default_size_is_the_median(tmp_path: Path) -> None:
    """Where sizes differ the middle one is taken, so that one icon does not shrink the set."""
    photos(tmp_path, {"a": 10, "b": 10}, (32, 32))
    photos(tmp_path / "a" / "icons", {"x": 4}, (9, 9))
    photos(tmp_path / "b" / "posters", {"x": 4}, (90, 90))
    assert open_data(str(tmp_path)).preprocess.shape == (32, 32, 1)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_size_and_fit_reach_the_images(tmp_path: Path, fit: Any) -> None:
    """The options size and fit decide how images that are not square are read."""
    root = tmp_path / "set"
    wide = np.full((10, 30), 60, dtype=np.uint8)
    wide[:, 10:20] = 180
    for index in range(20):
        save(root / "ab"[index % 2] / f"{index}.png", wide)
    pixels = open_data(str(root), DataOptions(size=10, fit=fit)).train.pixels[0, :, :, 0]
    assert pixels.shape == (10, 10)
    if fit == "crop":
        assert (pixels == 180).all()
    else:
        assert pixels[5, 0] == 60
        assert pixels[5, 5] > 150
        assert (pixels[0] == 255).all() == (fit == "pad")


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    """A size beyond what is supported is refused as a matter of the data."""
    with pytest.raises(DataError, match="5000x5000 is not within 1 to 4096"):
        open_data("digits", DataOptions(size=5000))


# Checks


@pytest.mark.parametrize(("folder", "word"), [("val", "validation"), ("test", "test")])
def test_images_shared_with_train_are_warned_of(tmp_path: Path, folder: str, word: str) -> None:
    """An image that is also in train, pixel for pixel in another file, gives a warning with both names."""
    for name in ("train", "val", "test"):
        photos(tmp_path / name, {"a": 8, "b": 4})
    twin = np.array(Image.open(tmp_path / "train" / "a" / "003.png"))
    save(tmp_path / folder / "b" / "twin.bmp", twin)
    dataset = open_data(str(tmp_path))
    assert len(dataset.warnings) == 1
    assert dataset.warnings[0].startswith(f"1 of 13 {word} images are also in train, pixel for pixel")
    assert f"({folder}/b/twin.bmp = train/a/003.png)" in dataset.warnings[0]


def test_different_images_are_not_warned_of(tmp_path: Path) -> None:
    """A set in which no image is in two splits gives no warning, even where one pixel is all the difference."""
    for name in ("train", "val", "test"):
        photos(tmp_path / name, {"a": 8, "b": 4})
    near = np.array(Image.open(tmp_path / "train" / "a" / "003.png"))
    near[0, 0] ^= 1
    save(tmp_path / "test" / "b" / "near.png", near)
    assert open_data(str(tmp_path)).warnings == ()


# IDX


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


# npz


def write_npz(path: Path, **arrays: Any) -> str:
    """Write a compressed npz and return its name."""
    np.savez_compressed(path, **arrays)
    return str(path)


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


GOOD: dict[str, Array] = {"x_train": noise(20, 8, 8), "y_train": np.arange(20) % 2}
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


# Listings that open_data does not reach, and the data of a bundle


def test_folder_listings_are_sorted(tmp_path: Path) -> None:
    """Images are listed by class and then by name, so that a seed means the same on every file system."""
    photos(tmp_path, {"b": 3, "a": 2})
    listed = [item.name for item in list_folders(tmp_path).items]
    assert listed == ["a/000.png", "a/001.png", "b/000.png", "b/001.png", "b/002.png"]


def test_the_test_images_of_a_bundle_are_found(bundle_folder: Path) -> None:
    """The test split that a bundle was measured on is found where the manifest says, without a note."""
    manifest = Bundle.open(bundle_folder).manifest
    images, note = find_test_images(manifest, None)
    assert note is None
    assert images is not None
    assert images.sha256() == open_data("digits").test.sha256() == manifest.provenance.test_sha256


def test_other_images_for_a_bundle_are_told_apart(bundle_folder: Path, tmp_path: Path) -> None:
    """Another set of the same classes is used with a note, one of other classes is refused, a lost one is noted."""
    manifest = Bundle.open(bundle_folder).manifest
    same = write_npz(tmp_path / "same.npz", x_train=noise(100, 8, 8), y_train=np.arange(100) % 10)
    images, note = find_test_images(manifest, same)
    assert images is not None
    assert "not the images that the bundle was measured on" in str(note)
    with pytest.raises(DataError, match=r"its classes \(0, 1, \.\.\.\) are not the bundle's"):
        find_test_images(manifest, write_npz(tmp_path / "other.npz", **GOOD))
    provenance = msgspec.structs.replace(manifest.provenance, data=str(tmp_path / "gone"))
    images, note = find_test_images(msgspec.structs.replace(manifest, provenance=provenance), None)
    assert images is None
    assert "is not there" in str(note)
    provenance = msgspec.structs.replace(manifest.provenance, data=same)
    images, note = find_test_images(msgspec.structs.replace(manifest, provenance=provenance), None)
    assert images is None
    assert "is not the data of this bundle any more" in str(note)


@pytest.mark.parametrize("options", [{"seed": "x"}, {"surprise": 1}, 5], ids=str)
def test_foreign_data_options_are_an_error_of_ours(bundle_folder: Path, options: Any) -> None:
    """A manifest whose data options make no sense is one of edgecnn's errors, not a crash."""
    manifest = Bundle.open(bundle_folder).manifest
    training = {**manifest.provenance.training, "data_options": options}
    provenance = msgspec.structs.replace(manifest.provenance, training=training)
    with pytest.raises(EdgecnnError):
        find_test_images(msgspec.structs.replace(manifest, provenance=provenance), "digits")
