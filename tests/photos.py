"""Images, folders of images and arrays to read as data sets, made of noise."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgecnn.data import Dataset, LabelledImages

Array = npt.NDArray[Any]


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


def write_npz(path: Path, **arrays: Any) -> str:
    """Write a compressed npz and return its name."""
    np.savez_compressed(path, **arrays)
    return str(path)


GOOD: dict[str, Array] = {"x_train": noise(20, 8, 8), "y_train": np.arange(20) % 2}
