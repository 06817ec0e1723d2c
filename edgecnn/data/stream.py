"""Image files decoded again on each use, so that a set larger than memory can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecnn.errors import DataError, ImageError
from edgecnn.host import usable_threads
from edgecnn.images import Pixels, load
from edgecnn.spec import Preprocess


@dataclass(frozen=True)
class ImageFiles:
    """Paths that stand for uint8 pixels (N, H, W, C) by one preprocessing; nothing decoded is kept."""

    paths: tuple[Path, ...]
    preprocess: Preprocess

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape that all pixels together have."""
        return len(self.paths), *self.preprocess.shape

    def subset(self, indices: npt.NDArray[np.int64]) -> ImageFiles:
        """Keep some of the files, in the order of `indices`."""
        return ImageFiles(tuple(self.paths[index] for index in indices), self.preprocess)

    def take(self, indices: npt.NDArray[np.int64]) -> Pixels:
        """Decode some of the files, uint8 (n, H, W, C), on all usable threads: Pillow decodes without the GIL.

        Raises:
            DataError: a file cannot be read any more; the message names it.
        """
        pixels = np.empty((len(indices), *self.preprocess.shape), dtype=np.uint8)

        def fill(rows: Sequence[int]) -> None:
            for row in rows:
                pixels[row] = load(self.paths[indices[row]], self.preprocess)

        try:
            in_threads(fill, len(indices))
        except ImageError as error:
            raise DataError(f"{error}; it was whole when the set was opened, so do not change a set in use") from None
        return pixels


def in_threads(work: Callable[[Sequence[int]], None], count: int) -> None:
    """Share the rows 0 to `count` out among the usable threads and wait; the first exception is raised.

    The threads end with the call: ones that outlive it would be lost in a forked process.
    """
    threads = min(usable_threads(), count)
    if threads <= 1:
        return work(range(count))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, range(first, count, threads)) for first in range(threads)]:
            done.result()
    return None
