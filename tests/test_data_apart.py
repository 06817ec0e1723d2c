"""`--test-from`: a source of its own gives the test images, and nothing else does."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgecnn.cli import cli
from edgecnn.data import DataOptions, open_data
from edgecnn.data.quality import check_data
from edgecnn.errors import DataError
from edgecnn.runs import open_run_data, read_run
from edgecnn.spec import Preprocess


def photos(root: Path, counts: dict[str, int], seed: int, side: int = 8, colour: bool = False) -> str:
    """Write class folders of noise, and return the folder's name."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        for index in range(count):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (side, side, 3) if colour else (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"p{index // 2}_{index}.png")
    return str(root)


@pytest.fixture
def train(tmp_path: Path) -> str:
    """Give a set of two classes without splits."""
    return photos(tmp_path / "train", {"cat": 20, "dog": 30}, seed=1)


def loaded(root: str | Path, side: int = 8) -> list[bytes]:
    """Read all images below a folder with Pillow alone."""
    files = sorted(Path(root).rglob("*.png"))
    return sorted(Image.open(file).convert("L").resize((side, side)).tobytes() for file in files)


def test_all_images_of_the_other_source_are_the_test(train: str, tmp_path: Path) -> None:
    """The test split is the other source, image by image, and train and validation share out the first."""
    other = photos(tmp_path / "box", {"dog": 7, "cat": 5}, seed=2)
    data = open_data(train, DataOptions(test_from=other, val=0.2))
    assert data.labels == ("cat", "dog")
    assert sorted(image.tobytes() for image in data.test.pixels) == loaded(other)
    assert sorted(image.tobytes() for part in (data.train, data.val) for image in part.pixels) == loaded(train)
    assert (len(data.train), len(data.val), len(data.test)) == (40, 10, 12)
    assert [("dog" in data.test.name(index)) for index in range(12)] == (data.test.labels == 1).tolist()
    assert data.split.endswith("val split off by class with seed 0; the test images are from a source of their own")


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Where the other source has some of the classes only, or calls them by number, labels follow the names."""
    train = photos(tmp_path / "train", {"1": 9, "2": 9, "10": 9}, seed=1)
    rows = [("path", "label"), *((f"{label}/p0_0.png", label) for label in ("10", "2"))]
    photos(tmp_path / "box", {"2": 1, "10": 1}, seed=2)
    with (tmp_path / "box/images.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = open_data(train, DataOptions(test_from=str(tmp_path / "box/images.csv")))
    assert data.labels == ("1", "10", "2")  # folders come in the order of their names
    assert [data.labels[label] for label in data.test.labels] == ["10", "2"]


def test_of_a_source_with_splits_the_test_is_taken(train: str, tmp_path: Path) -> None:
    """Where the other source says which images are its test, the rest of it is left alone."""
    photos(tmp_path / "box/train", {"cat": 3, "dog": 3}, seed=2)
    test = photos(tmp_path / "box/test", {"cat": 2, "dog": 4}, seed=3)
    data = open_data(train, DataOptions(test_from=str(tmp_path / "box")))
    assert sorted(image.tobytes() for image in data.test.pixels) == loaded(test)


def test_images_are_brought_to_the_size_of_the_first(train: str, tmp_path: Path) -> None:
    """Larger test images are seen at the size of those trained on, also where they are read on each use."""
    other = photos(tmp_path / "box", {"cat": 3, "dog": 3}, seed=2, side=20)
    kept, streamed = (open_data(train, DataOptions(test_from=other, stream=stream)) for stream in (False, True))
    assert kept.preprocess == Preprocess(height=8, width=8, channels=1)
    assert kept.test.pixels.shape == (6, 8, 8, 1)
    assert (kept.test.pixels == streamed.test.pixels).all()


def test_a_broken_test_image_is_listed(train: str, tmp_path: Path) -> None:
    """A file of the other source that cannot be read is skipped by its own path, not as a line of the first."""
    other = Path(photos(tmp_path / "box", {"cat": 3, "dog": 3}, seed=2))
    (other / "cat/p9_9.png").write_bytes(b"no image")
    data = open_data(train, DataOptions(test_from=str(other)))
    (line,) = data.skipped
    assert line.startswith(str(other / "cat/p9_9.png"))
    assert len(data.test) == 6


MISTAKES = {
    "another class": ({"cat": 2, "cow": 2}, {}, r"--test-from .*box: has classes that are not among .*\(cow is not one of cat, dog"),
    "colour": ({"cat": 2, "dog": 2}, {"colour": True}, r"box: its images are colour, those to be trained on grey; say --channels 1 or 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_source_that_does_not_fit_is_refused(name: str, train: str, tmp_path: Path) -> None:
    """Other classes or other colours are one line that names both sources."""
    counts, more, told = MISTAKES[name]
    other = photos(tmp_path / "box", counts, seed=2, **more)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=told) as caught:
        open_data(train, DataOptions(test_from=other))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(train)


def test_what_is_said_of_channels_is_done(train: str, tmp_path: Path) -> None:
    """With --channels colour test images of a grey set become grey."""
    other = photos(tmp_path / "box", {"cat": 2, "dog": 2}, seed=2, colour=True)
    data = open_data(train, DataOptions(test_from=other, channels=1))
    assert sorted(image.tobytes() for image in data.test.pixels) == loaded(other)


def test_two_tests_are_refused(train: str, tmp_path: Path) -> None:
    """A set with a test of its own, a share for one, or a source that is not there is said."""
    other = photos(tmp_path / "box", {"cat": 2, "dog": 2}, seed=2)
    photos(tmp_path / "split/train", {"cat": 4, "dog": 4}, seed=3)
    photos(tmp_path / "split/test", {"cat": 4, "dog": 4}, seed=4)
    with pytest.raises(DataError, match=r"split: --test-from .*box: it has test images of its own"):
        open_data(str(tmp_path / "split"), DataOptions(test_from=other))
    with pytest.raises(DataError, match="either --test or --test-from"):
        open_data(train, DataOptions(test_from=other, test=0.2))
    with pytest.raises(DataError, match=r"gone: is not there"):
        open_data(train, DataOptions(test_from=str(tmp_path / "gone")))


def test_images_in_both_are_found(train: str, tmp_path: Path) -> None:
    """A test image that is also trained on is warned of, and `data check` calls it a leak."""
    other = Path(photos(tmp_path / "box", {"cat": 3, "dog": 3}, seed=2))
    options = DataOptions(test_from=str(other))
    used = open_data(train, options).train
    path = Path(train) / used.name(0)
    (other / path.parent.name / "again.png").write_bytes(path.read_bytes())
    (warning,) = open_data(train, options).warnings
    assert warning.startswith("1 of 7 test images are also in train")
    assert "again.png" in warning
    assert "leak" in [finding.kind for finding in check_data(train, options)[0].weighty()]


def test_groups_stay_on_one_side(train: str, tmp_path: Path) -> None:
    """With --group-from the first source is split by group; a test image that the expression does not match is alone."""
    other = Path(photos(tmp_path / "box", {"cat": 3, "dog": 3}, seed=2))
    (other / "cat/p1_2.png").rename(other / "cat/no-patient.png")
    data = open_data(train, DataOptions(test_from=str(other), group_from=r"\w+/p\d+", val=0.2))
    sides = [{item.group for item in part.items} for part in (data.train, data.val)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len(data.test) == 6


def test_the_whole_way(train: str, tmp_path: Path) -> None:
    """`train --test-from` is measured on the other source, and what it writes finds those images again."""
    other = photos(tmp_path / "box", {"cat": 3, "dog": 4}, seed=2)
    words = ["train", train, "--test-from", other, "-o", str(tmp_path / "run"), "--epochs", "1", "--size", "n"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    assert "test 7; val split off" in result.stderr
    config, metrics = read_run(tmp_path / "run")
    assert metrics.images["test"] == 7
    assert sorted(image.tobytes() for image in open_run_data(config).test.pixels) == loaded(other)
