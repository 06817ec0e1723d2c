"""Labelled images in three splits, in memory or decoded on each use."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgecnn.data.stream import ImageFiles
from edgecnn.images import Pixels, encode_png, read
from edgecnn.spec import Fit, Frozen, Preprocess

SplitName = Literal["train", "val", "test"]
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_CHUNK_BYTES = 4 << 20  # of pixels, where a whole split is gone through


class DataOptions(Frozen, frozen=True):
    """How a source is to be read.

    `size` is the side of the square the network sees and `channels` 1 or 3, None for the source's own.
    `val` and `test` are the shares split off where the source does not say, None for the source's own habit.
    `stream` decodes image files on each use instead of keeping their pixels; None streams where the pixels would
    take more than a quarter of the memory at hand. `group_from` is a regular expression searched in each image's
    name, or a column of a CSV: images of one group never end up in two splits. `test_from` is another source, whose
    images are the test split.
    """

    size: int | None = None
    channels: Literal[1, 3] | None = None
    fit: Fit = "stretch"
    val: float | None = None
    test: float | None = None
    seed: int = 0
    strict: bool = False
    stream: bool | None = None
    group_from: str | None = None
    test_from: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image as a source lists it: a file, or uint8 pixels (H, W) or (H, W, C).

    `group` is what it must not be separated from by a split, `line` where a table names it.
    """

    name: str
    label: int
    content: Path | Pixels
    split: SplitName | None = None
    group: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Listing:
    """All that a source has to say: label names, items, and the shares it splits off by habit."""

    labels: tuple[str, ...]
    items: list[Item]
    val: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class LabelledImages:
    """One split: pixels, `labels` int64 (N,), and where each image came from.

    `store` holds the pixels, uint8 (N, H, W, C), or the files that they are decoded from on each use; all methods
    work in both ways and give the same values. `digests` holds each image's `digest_of`, uint8 (N, 16), where the
    pixels have been gone through before.
    """

    store: Pixels | ImageFiles
    labels: npt.NDArray[np.int64]
    items: tuple[Item, ...]
    digests: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Say whether the pixels are kept, so that taking some costs nothing."""
        return not isinstance(self.store, ImageFiles)

    @property
    def pixels(self) -> Pixels:
        """All pixels at once, uint8 (N, H, W, C); where they are streamed this decodes every file into memory."""
        return self.take(np.arange(len(self))) if isinstance(self.store, ImageFiles) else self.store

    def take(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """Return the pixels of some images, uint8 (n, H, W, C), in the order of `indices`.

        Raises:
            DataError: a streamed file cannot be read any more.
        """
        return self.store.take(indices) if isinstance(self.store, ImageFiles) else self.store[indices]

    def chunks(self, size: int | None = None) -> Iterator[Pixels]:
        """Go through all pixels in order, `size` images at a time, by default a few megabytes."""
        size = size or max(1, _CHUNK_BYTES // max(1, math.prod(self.store.shape[1:])))
        for start in range(0, len(self), size):
            if isinstance(self.store, ImageFiles):
                yield self.store.take(np.arange(start, min(start + size, len(self))))
            else:
                yield self.store[start : start + size]

    def subset(self, indices: npt.NDArray[np.int64]) -> LabelledImages:
        """Keep some of the images, in the order of `indices`."""
        store = self.store.subset(indices) if isinstance(self.store, ImageFiles) else self.store[indices]
        digests = None if self.digests is None else self.digests[indices]
        return LabelledImages(store, self.labels[indices], tuple(self.items[index] for index in indices), digests)

    def name(self, index: int) -> str:
        """Name one image as the source does."""
        return self.items[index].name

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Return one image as an encoded file, the original one where there is one, and its suffix."""
        content = self.items[index].content
        if isinstance(content, Path):
            return read(content), content.suffix.lower()
        return encode_png(self.take(np.array([index]))[0]), ".png"

    def sha256(self) -> str:
        """Hash pixels and labels, so that two machines can tell whether they hold the same split."""
        digest = hashlib.sha256(repr(self.store.shape).encode())
        for chunk in self.chunks():
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hash pixels and labels in their order, from the digests where there are some: at no cost, and the same."""
        digest = hashlib.sha256(repr(self.store.shape).encode())
        if self.digests is not None:
            digest.update(self.digests.tobytes())
        else:
            for chunk in self.chunks():
                digest.update(b"".join(map(digest_of, chunk)))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation of all pixels, from exact sums: the same however they are read."""
        counts = np.zeros(256, dtype=np.int64)
        for chunk in self.chunks():
            counts += np.bincount(chunk.ravel(), minlength=256)
        number = max(1, int(counts.sum()))
        total = sum(level * int(count) for level, count in enumerate(counts))
        squares = sum(level * level * int(count) for level, count in enumerate(counts))
        return total / number, math.sqrt((number * squares - total * total) / number**2)


def digest_of(image: Pixels) -> bytes:
    """Hash one image's pixels, uint8 (H, W, C), to 16 bytes."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Dataset:
    """Three splits of one source; `split` says in words how they came about, `skipped` what could not be read."""

    source: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    split: str
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
