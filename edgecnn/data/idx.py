"""Folders of IDX files, gzipped or not, as MNIST and Fashion-MNIST come (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, Listing, SplitName
from edgecnn.data.names import name_classes
from edgecnn.errors import DataError

_PREFIXES: dict[SplitName, str] = {"train": "train", "test": "t10k"}
_UBYTE = 0x08
_LARGEST = 4 << 30


def is_idx_folder(root: Path) -> bool:
    """Say whether the folder holds the training images of an IDX set."""
    return _find(root, "train", "images", 3) is not None


def list_idx(root: Path) -> Listing:
    """List the images; `t10k` is the official test split and stays it. Classes are named by labels.txt, if there is one.

    Raises:
        DataError: a file is missing, damaged, or has another number of labels than of images.
    """
    items: list[Item] = []
    largest = 0
    for split, prefix in _PREFIXES.items():
        images, labels = _load(root, prefix, "images", 3), _load(root, prefix, "labels", 1)
        if len(images) != len(labels):
            raise DataError(f"{root}: {prefix} has {len(images)} images and {len(labels)} labels")
        largest = max(largest, int(labels.max(initial=0)))
        items += [
            Item(f"{prefix}-{number:05d}", int(label), image, split)
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
    return Listing(labels=name_classes(root / "labels.txt", largest + 1), items=items)


def _find(root: Path, prefix: str, kind: str, dimensions: int) -> Path | None:
    names = (f"{prefix}-{kind}{dot}idx{dimensions}-ubyte{zipped}" for dot in "-." for zipped in (".gz", ""))
    return next((root / name for name in names if (root / name).is_file()), None)


def _load(root: Path, prefix: str, kind: str, dimensions: int) -> npt.NDArray[Any]:
    path = _find(root, prefix, kind, dimensions)
    if path is None:
        raise DataError(f"{root}: {prefix}-{kind}-idx{dimensions}-ubyte(.gz) is missing")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != (_UBYTE << 8) + dimensions or np.prod(shape, dtype=float) > _LARGEST or 0 in shape:
                raise DataError(f"{path}: not an IDX file of {dimensions} dimensions of bytes, or an empty one")
            data = file.read(int(np.prod(shape)) + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: damaged or truncated ({error})") from None
    if len(data) != int(np.prod(shape)):
        raise DataError(f"{path}: the header promises {int(np.prod(shape))} bytes, the file has {len(data)} or more")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
