"""The images of a data set: their colour and size by default and as asked for, and those in two splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import names, noise, photos, save
from PIL import Image

from edgecnn.data import DataOptions, open_data
from edgecnn.errors import DataError


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
