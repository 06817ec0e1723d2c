"""Open any source by name: list it, read every image, split it and check it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from edgecnn.data import digits, folders, idx, npz
from edgecnn.data.checks import check
from edgecnn.data.dataset import DataOptions, Dataset, Item, LabelledImages, Listing
from edgecnn.data.splits import assign_splits
from edgecnn.errors import DataError, ImageError
from edgecnn.host import usable_threads
from edgecnn.images import FORMATS, Pixels, fit_array, load
from edgecnn.spec import Preprocess

_LARGEST_DEFAULT = 96
_LOOKED_AT = 256  # images whose size and colour decide the defaults


def open_data(source: str, options: DataOptions | None = None) -> Dataset:
    """Open `digits`, a folder of class folders, a folder of IDX files or an .npz file.

    Raises:
        DataError: it is none of these, holds fewer than two classes, or (strict) has broken files.
    """
    options = options or DataOptions()
    listing = _list(source)
    preprocess = _preprocess(listing, options)
    kept, pixels, skipped = _read(listing.items, preprocess)
    if skipped and options.strict:
        raise DataError(f"{source}: {len(skipped)} broken files, the first: {skipped[0]}")
    if not kept:
        raise DataError(f"{source}: none of the {len(listing.items)} images can be read; the first: {skipped[0]}")
    labels = np.array([item.label for item in kept], dtype=np.int64)
    splits, statement = assign_splits(kept, labels, listing, options)
    parts = {
        name: LabelledImages(pixels[where], labels[where], tuple(kept[index] for index in where))
        for name, where in splits.items()
    }
    dataset = Dataset(
        source=source,
        labels=listing.labels,
        preprocess=preprocess,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        split=statement,
        skipped=tuple(skipped),
    )
    return check(dataset)


def _list(source: str) -> Listing:
    path = Path(source)
    if source == "digits" and not path.exists():
        return digits.list_digits()
    if path.suffix == ".npz" and path.is_file():
        return npz.list_npz(path)
    if path.is_dir():
        return idx.list_idx(path) if idx.is_idx_folder(path) else folders.list_folders(path)
    what = "is not there" if not path.exists() else "is neither a folder nor an .npz file"
    raise DataError(f"{source}: {what}; give 'digits', a folder of class folders, a folder of IDX files, or an .npz")


def _preprocess(listing: Listing, options: DataOptions) -> Preprocess:
    """Take size and colour from the options, else from the images: their own size up to 96, grey if all are."""
    step = max(1, len(listing.items) // _LOOKED_AT)
    shapes = [shape for item in listing.items[::step] if (shape := _shape(item)) is not None]
    sides = sorted(min(height, width) for height, width, _ in shapes) or [_LARGEST_DEFAULT]
    size = options.size or min(_LARGEST_DEFAULT, max(8, sides[len(sides) // 2]))
    colour = any(channels > 1 for _, _, channels in shapes)
    try:
        return Preprocess(height=size, width=size, channels=options.channels or (3 if colour else 1), fit=options.fit)
    except ValueError as error:
        raise DataError(str(error)) from None


def _shape(item: Item) -> tuple[int, int, int] | None:
    if not isinstance(item.content, Path):
        shape = item.content.shape
        return shape[0], shape[1], shape[2] if len(shape) == 3 else 1
    try:
        with Image.open(item.content, formats=FORMATS) as image:
            grey = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
            return image.height, image.width, 1 if grey else 3
    except Exception:  # reading it properly, later, says what is wrong with it
        return None


def _read(items: list[Item], preprocess: Preprocess) -> tuple[list[Item], Pixels, list[str]]:
    def one(item: Item) -> Pixels | ImageError:
        try:
            if isinstance(item.content, Path):
                return load(item.content, preprocess)
            return fit_array(item.content, preprocess)
        except ImageError as error:
            return error

    if any(isinstance(item.content, Path) for item in items):
        with ThreadPoolExecutor(usable_threads()) as pool:
            results = list(pool.map(one, items))
    else:
        results = [one(item) for item in items]
    kept = [item for item, result in zip(items, results, strict=True) if not isinstance(result, ImageError)]
    good = [result for result in results if not isinstance(result, ImageError)]
    pixels = np.stack(good) if good else np.zeros((0, *preprocess.shape), dtype=np.uint8)
    return kept, pixels, [str(result) for result in results if isinstance(result, ImageError)]
