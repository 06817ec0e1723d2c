"""Arrays in one .npz: Keras' names (`x_train`, `y_train`, ...) or MedMNIST's (`train_images`, `train_labels`, ...)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, Listing, SplitName
from edgecnn.data.names import name_classes
from edgecnn.errors import DataError
from edgecnn.images import Pixels

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
# What numpy, zipfile and zlib raise on damaged files; TypeError is a bare array, which is no context manager.
_UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def list_npz(path: Path) -> Listing:
    """List the images of every split the file has; the classes are named by NAME.labels.txt beside it, if it is there.

    Raises:
        DataError: the file is damaged, has none of the known names, or holds anything but uint8 images with
            one whole-number label each.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from None
    items: list[Item] = []
    for split in _SPLITS:
        images = arrays.get(f"x_{split}", arrays.get(f"{split}_images"))
        labels = arrays.get(f"y_{split}", arrays.get(f"{split}_labels"))
        if images is None or labels is None:
            continue
        pixels, flat = _pixels(path, split, images), _labels(path, split, labels)
        if len(pixels) != len(flat):
            raise DataError(f"{path}: {split} has {len(pixels)} images and {len(flat)} labels")
        items += [
            Item(f"{split}-{number:05d}", int(label), image, split)
            for number, (image, label) in enumerate(zip(pixels, flat, strict=True))
        ]
    if not any(item.split == "train" for item in items):
        raise DataError(f"{path}: has {', '.join(sorted(arrays)) or 'nothing'}; x_train and y_train are needed")
    labels = name_classes(path.with_suffix(".labels.txt"), max(item.label for item in items) + 1)
    return Listing(labels=labels, items=items)


def _pixels(path: Path, split: str, images: npt.NDArray[Any]) -> Pixels:
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[3] in (1, 3)
    if not (grey or colour) or 0 in images.shape[1:]:
        raise DataError(f"{path}: {split} images have shape {images.shape}; (N, H, W) or (N, H, W, 1 or 3) is needed")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iu" or images.size == 0 or images.min() < 0 or images.max() > 255:
        raise DataError(f"{path}: {split} images are {images.dtype}; whole numbers from 0 to 255 are needed")
    return images.astype(np.uint8)


def _labels(path: Path, split: str, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or (flat.size and (flat.min() < 0 or flat.max() > 65535)):
        raise DataError(
            f"{path}: {split} labels are {labels.dtype} {labels.shape}; one number from 0 an image is needed"
        )
    return flat
