"""Open any source by name: list it, read every image, split it and check it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgecnn.data import digits, folders, idx, npz, table
from edgecnn.data.apart import with_test
from edgecnn.data.checks import check
from edgecnn.data.dataset import DataOptions, Dataset, Item, Listing
from edgecnn.data.groups import with_groups
from edgecnn.data.scan import Scanned, scan
from edgecnn.data.splits import Splits, assign_splits
from edgecnn.errors import DataError
from edgecnn.host import available_memory
from edgecnn.images import FORMATS
from edgecnn.spec import Preprocess

_LARGEST_DEFAULT = 96
_SHARE_OF_MEMORY = 0.25  # what pixels may take before they are decoded anew on each use
_OURS = ("manifest.json", "config.json")  # of bundles and of runs
_LOOKED_AT = 256  # images whose size and colour decide the defaults


@dataclass(frozen=True)
class Source:
    """A source whose images have all been read once, before it is split: what there is, and what is broken."""

    listing: Listing
    preprocess: Preprocess
    scanned: Scanned


def open_data(source: str, options: DataOptions | None = None) -> Dataset:
    """Open `digits`, a folder of class folders, a folder of IDX files, an .npz file or a CSV that lists images.

    Raises:
        DataError: it is none of these, holds fewer than two classes, or (strict) has broken files.
    """
    options = options or DataOptions()
    opened = read_source(source, options)
    skipped, whole = opened.scanned.skipped, opened.scanned.images
    if skipped and options.strict:
        raise DataError(f"{source}: {len(skipped)} broken files, the first: {skipped[0]}")
    if not len(whole):
        raise DataError(
            f"{source}: none of the {len(opened.listing.items)} images can be read; the first: {skipped[0]}"
        )
    splits = split_source(source, opened, options)
    parts = {name: whole.subset(where) for name, where in splits.parts.items()}
    dataset = Dataset(
        source=source,
        labels=opened.listing.labels,
        preprocess=opened.preprocess,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        split=splits.statement,
        skipped=skipped,
        warnings=splits.warnings,
    )
    return check(dataset, {name: opened.scanned.identity[where] for name, where in splits.parts.items()})


def read_source(source: str, options: DataOptions) -> Source:
    """List a source, settle on the size and colour of its images, and read each of them once.

    Raises:
        DataError: it is not a source, or says of itself what cannot be.
    """
    listing = with_groups(source, _list(source, options), options)
    preprocess = _preprocess(listing, options)
    if options.test_from is not None:
        if options.test is not None:
            raise DataError(f"{source}: give either --test or --test-from, not both")
        test = _list(options.test_from, options)
        _refuse_other_colour(source, preprocess, options.test_from, test, options)
        listing = with_test(source, listing, options.test_from, test, options)
    return Source(listing, preprocess, scan(source, listing.items, preprocess, _streams(listing, preprocess, options)))


def split_source(source: str, opened: Source, options: DataOptions) -> Splits:
    """Split what can be read of a source; an error names the source."""
    whole = opened.scanned.images
    try:
        splits = assign_splits(whole.items, whole.labels, opened.listing, options)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    if options.test_from is None:
        return splits
    return splits._replace(statement=f"{splits.statement}; the test images are from a source of their own")


def _streams(listing: Listing, preprocess: Preprocess, options: DataOptions) -> bool:
    """Decide whether image files are decoded on each use; what comes as arrays is in memory anyway."""
    files = sum(isinstance(item.content, Path) for item in listing.items)
    if options.stream is not None or not files:
        return bool(options.stream and files)
    return files * math.prod(preprocess.shape) > available_memory() * _SHARE_OF_MEMORY


def _list(source: str, options: DataOptions) -> Listing:
    path = Path(source)
    made = any((path / name).is_file() for name in _OURS)  # a run or a bundle of the digits, named like them
    if source == "digits" and (made or not path.exists()):
        return digits.list_digits()
    if path.suffix.lower() in table.SUFFIXES and path.is_file():
        return table.list_table(path, options.group_from)
    if path.suffix == ".npz" and path.is_file():
        return npz.list_npz(path)
    if path.is_dir():
        return idx.list_idx(path) if idx.is_idx_folder(path) else folders.list_folders(path)
    what = "is not there" if not path.exists() else "is neither a folder nor an .npz or .csv file"
    raise DataError(
        f"{source}: {what}; give 'digits', a folder of class folders, a folder of IDX files, an .npz or a .csv"
    )


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


def _refuse_other_colour(source: str, preprocess: Preprocess, other: str, test: Listing, options: DataOptions) -> None:
    """See that two sources are both grey or both colour, unless it is said what they are to become."""
    channels = _preprocess(test, options).channels
    if channels != preprocess.channels:
        words = {1: "grey", 3: "colour"}
        raise DataError(
            f"{source}: --test-from {other}: its images are {words[channels]}, those to be trained on "
            f"{words[preprocess.channels]}; say --channels 1 or 3 if they belong together"
        )


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
