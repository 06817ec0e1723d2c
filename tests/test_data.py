"""Class folders and the built-in digits: labels, splits that the folders name, and what is told of broken files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from photos import all_names, names, noise, photos, save
from PIL import Image

from edgecnn.data import DataOptions, open_data
from edgecnn.data.folders import list_folders
from edgecnn.errors import DataError


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


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_bundle_or_run_called_digits_is_not_the_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside `bundles/digits` or `runs/digits`, where its own commands are typed, `digits` is still the data built in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "goldens").mkdir(parents=True)
    (tmp_path / "digits" / name).write_text("{}")
    assert len(open_data("digits").labels) == 10


def test_a_folder_called_digits_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the name `digits` is opened rather than the built-in set."""
    photos(tmp_path / "digits", {"a": 10, "b": 10})
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").labels == ("a", "b")


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


def test_folder_listings_are_sorted(tmp_path: Path) -> None:
    """Images are listed by class and then by name, so that a seed means the same on every file system."""
    photos(tmp_path, {"b": 3, "a": 2})
    listed = [item.name for item in list_folders(tmp_path).items]
    assert listed == ["a/000.png", "a/001.png", "b/000.png", "b/001.png", "b/002.png"]
