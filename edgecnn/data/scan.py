"""One pass over every image of a source: which are broken, which are the same, and the pixels where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, LabelledImages, digest_of
from edgecnn.data.stream import ImageFiles, in_threads
from edgecnn.errors import ImageError
from edgecnn.images import Pixels, fit_array, load
from edgecnn.spec import Preprocess


@dataclass(frozen=True)
class Scanned:
    """The images that can be read, in the source's order; `identity` int64 (N,) is equal exactly for equal pixels."""

    images: LabelledImages
    identity: npt.NDArray[np.int64]
    skipped: tuple[str, ...]


def scan(source: str, items: Sequence[Item], preprocess: Preprocess, stream: bool) -> Scanned:
    """Read every image once; `stream` keeps the paths only, and memory does not grow with the pixels.

    `source` names the table in messages about items that have a line.
    """
    pixels = None if stream else np.empty((len(items), *preprocess.shape), dtype=np.uint8)
    digests = np.zeros((len(items), 16), dtype=np.uint8)
    errors: dict[int, str] = {}

    def read(rows: Sequence[int]) -> None:
        for row in rows:
            try:
                image = _load(items[row], preprocess)
            except ImageError as error:
                errors[row] = str(error)
                continue
            digests[row] = np.frombuffer(digest_of(image), dtype=np.uint8)
            if pixels is not None:
                pixels[row] = image

    if any(isinstance(item.content, Path) for item in items):
        in_threads(read, len(items))
    else:  # arrays: no decoding in which the GIL would be free
        read(range(len(items)))
    keep = np.array([row for row in range(len(items)) if row not in errors], dtype=np.int64)
    kept = tuple(items[row] for row in keep)
    labels = np.array([item.label for item in kept], dtype=np.int64)
    store: Pixels | ImageFiles
    if pixels is None:
        store = ImageFiles(tuple(item.content for item in kept if isinstance(item.content, Path)), preprocess)
    else:
        store = pixels[keep] if errors else pixels
    skipped = tuple(_where(source, items[row]) + errors[row] for row in sorted(errors))
    return Scanned(LabelledImages(store, labels, kept, digests[keep]), _identity(digests[keep]), skipped)


def _load(item: Item, preprocess: Preprocess) -> Pixels:
    return load(item.content, preprocess) if isinstance(item.content, Path) else fit_array(item.content, preprocess)


def _where(source: str, item: Item) -> str:
    return "" if item.line is None else f"{source}, line {item.line}: "


def _identity(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Number equal rows equally."""
    if not len(digests):
        return np.zeros(0, dtype=np.int64)
    rows = digests.view(np.uint64)  # which sort faster than bytes
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
