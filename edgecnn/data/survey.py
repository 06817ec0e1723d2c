"""What image files say of themselves in their headers: sizes, colour modes and formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from edgecnn.data.dataset import Item
from edgecnn.data.stream import in_threads
from edgecnn.images import FORMATS
from edgecnn.spec import Frozen

_MODES = {
    "1": "black and white", "L": "grey", "LA": "grey with alpha", "La": "grey with alpha", "P": "palette", "PA": "palette with alpha",
    "RGB": "colour", "RGBA": "colour with alpha", "RGBa": "colour with alpha", "CMYK": "CMYK", "YCbCr": "YCbCr",
    "I": "32 bit integer or 16 bit grey", "F": "float",
}  # fmt: skip


class Sizes(Frozen, frozen=True):
    """Widths and heights in pixels, each by itself, and the commonest sizes with their number, commonest first."""

    min: tuple[int, int]
    median: tuple[int, int]
    max: tuple[int, int]
    kinds: int
    commonest: dict[str, int]


class Survey(Frozen, frozen=True):
    """What a source's images are, as they were saved; a file whose header cannot be read does not count."""

    sizes: Sizes | None
    modes: dict[str, int]
    formats: dict[str, int]


def survey(items: Sequence[Item]) -> Survey:
    """Read every file's header, and no pixels."""
    counts: Counter[tuple[tuple[int, int], str, str]] = Counter()
    lock = Lock()

    def read(rows: Sequence[int]) -> None:
        own = Counter(found for row in rows if (found := _look(items[row])) is not None)
        with lock:
            counts.update(own)

    in_threads(read, len(items))
    sizes, modes, formats = Counter[tuple[int, int]](), Counter[str](), Counter[str]()
    for (size, mode, kind), count in sorted(counts.items()):
        sizes[size] += count
        modes[mode] += count
        formats[kind] += count
    return Survey(sizes=_sizes(sizes), modes=dict(modes.most_common()), formats=dict(formats.most_common()))


def _look(item: Item) -> tuple[tuple[int, int], str, str] | None:
    if not isinstance(item.content, Path):
        height, width = item.content.shape[:2]
        colour = item.content.ndim == 3 and item.content.shape[2] == 3
        return (width, height), "colour" if colour else "grey", "array"
    try:
        with Image.open(item.content, formats=FORMATS) as image:
            mode = "16 bit grey" if image.mode.startswith("I;16") else _MODES.get(image.mode, image.mode)
            return image.size, mode, image.format or "unknown"
    except Exception:  # it is among the broken files, with the reason
        return None


def _sizes(counts: Counter[tuple[int, int]]) -> Sizes | None:
    if not counts:
        return None
    each = [np.repeat([size[axis] for size in counts], list(counts.values())) for axis in (0, 1)]
    low, middle, high = ((int(choose(each[0])), int(choose(each[1]))) for choose in (np.min, np.median, np.max))
    common = {f"{width}x{height}": count for (width, height), count in counts.most_common(5)}
    return Sizes(min=low, median=middle, max=high, kinds=len(counts), commonest=common)
