"""Labelled images in memory, in three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgecnn.images import Pixels, encode_png, read
from edgecnn.spec import Fit, Frozen, Preprocess

SplitName = Literal["train", "val", "test"]


class DataOptions(Frozen, frozen=True):
    """How a source is to be read.

    `size` is the side of the square the network sees and `channels` 1 or 3, None for the source's own.
    `val` and `test` are the shares split off where the source does not say, None for the source's own habit.
    """

    size: int | None = None
    channels: Literal[1, 3] | None = None
    fit: Fit = "stretch"
    val: float | None = None
    test: float | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class Item:
    """One labelled image as a source lists it: a file, or uint8 pixels (H, W) or (H, W, C)."""

    name: str
    label: int
    content: Path | Pixels
    split: SplitName | None = None


@dataclass(frozen=True)
class Listing:
    """All that a source has to say: label names, items, and the shares it splits off by habit."""

    labels: tuple[str, ...]
    items: list[Item]
    val: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class LabelledImages:
    """One split: `pixels` uint8 (N, H, W, C), `labels` int64 (N,), and where each image came from."""

    pixels: Pixels
    labels: npt.NDArray[np.int64]
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """Return the pixels of some images, uint8 (n, H, W, C), in the order of `indices`."""
        return self.pixels[indices]

    def name(self, index: int) -> str:
        """Name one image as the source does."""
        return self.items[index].name

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Return one image as an encoded file, the original one where there is one, and its suffix."""
        content = self.items[index].content
        if isinstance(content, Path):
            return read(content), content.suffix.lower()
        return encode_png(self.pixels[index]), ".png"

    def sha256(self) -> str:
        """Hash pixels and labels, so that two machines can tell whether they hold the same split."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


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
