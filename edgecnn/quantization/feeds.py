"""Feeds: what a model is calibrated, judged and tuned on, made from images or .npz files a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgecnn.data.dataset import Dataset, Item, LabelledImages, SplitName
from edgecnn.data.scan import scan
from edgecnn.errors import DataError
from edgecnn.predict import EmptyFolderError, find_images, printable
from edgecnn.quantization.conversion import InputOptions, check_classes, conversion_for
from edgecnn.quantization.graph import weights_of
from edgecnn.quantization.inputs import dtype_of, sizes_of
from edgecnn.quantization.probe import Arrays
from edgecnn.quantization.rows import Indices, InMemory, NpzFiles, Pictures, Rows, digests_of, load_npz, refitted, runs
from edgecnn.spec import Preprocess

NPZ_LABELS = "labels"
_CHUNK = 32


@dataclass(frozen=True)
class FeedSet:
    """Samples for a model, in order; `batches` goes through them as often as wanted, and makes each batch anew.

    `indices` are the rows in use. `labels` are their classes, int64 (N,), or None where nobody knows. `batch` is how many
    samples the model takes at once where it takes no other number; then only whole batches are kept. `skipped` lists the
    images that could not be read.
    """

    rows: Rows
    indices: Indices
    labels: npt.NDArray[np.int64] | None = None
    batch: int | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a set without a single batch, and labels that are not one a sample."""
        if self.labels is not None and len(self.labels) != len(self.indices):
            raise DataError(f"{len(self.indices)} samples have {len(self.labels)} labels; one a sample is needed")
        whole = len(self.indices) // self.batch * self.batch if self.batch else len(self.indices)
        if not whole:
            least = f"; the model takes exactly {self.batch} at once" if self.batch else ""
            raise DataError(f"{len(self.indices)} samples are too few to feed a model{least}")
        if whole < len(self.indices):
            object.__setattr__(self, "indices", self.indices[:whole])
            object.__setattr__(self, "labels", None if self.labels is None else self.labels[:whole])

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.indices)

    @property
    def names(self) -> Sequence[str]:
        """What the source calls each sample."""
        return [self.rows.names[index] for index in self.indices]

    @cached_property
    def key(self) -> str:
        """SHA-256 of the samples' content, their labels, and how they become arrays; independent of names and times.

        Raises:
            DataError: a file cannot be read any more.
        """
        digest = hashlib.sha256(self.rows.statement.encode())
        digest.update(self.rows.digests()[self.indices].tobytes())
        digest.update(b"" if self.labels is None else self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def batches(self, size: int = _CHUNK) -> Iterator[Arrays]:
        """Give arrays by input name, up to `size` samples at a time, or as many as the model insists on.

        Raises:
            DataError: a file cannot be read any more.
        """
        size = self.batch or max(1, size)
        for first, last in runs(self.rows.groups[self.indices]):
            for start in range(first, last, size):
                yield self.rows.take(self.indices[start : min(start + size, last)])

    def subset(self, indices: npt.NDArray[Any] | Sequence[int]) -> FeedSet:
        """Keep some of the samples, counted within this set, in the order of `indices`."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return FeedSet(self.rows, self.indices[chosen], labels, self.batch, self.skipped)

    def sample(self, n: int, seed: int = 0) -> FeedSet:
        """Keep `n` samples chosen evenly at random, in their order; all of them where there are no more."""
        if n >= self.count:
            return self
        return self.subset(np.sort(np.random.default_rng(seed).choice(self.count, n, replace=False)))


def from_dataset_split(
    dataset: Dataset, split: SplitName, model: onnx.ModelProto, options: InputOptions | None = None
) -> FeedSet:
    """Feed a model the labelled images of one split.

    Pictures that were opened at another size or in other colours than the model takes are brought to its own, from the
    original files or arrays.

    Raises:
        UsageError: as `conversion_for` says.
        DataError: the split is empty, its classes are not the model's, or the model has further inputs.
    """
    conversion = conversion_for(model, options, dataset.preprocess.fit)
    check_classes(model, dataset.labels, dataset.source)
    images: LabelledImages = getattr(dataset, split)
    if not len(images):
        raise DataError(f"{dataset.source}: has no {split} images to feed the model")
    names = [images.name(index) for index in range(len(images))]
    if _looks(dataset.preprocess) == _looks(conversion.pictures):
        rows = Pictures(images.store, names, conversion, images.digests)
    else:
        rows = Pictures(refitted(images.items, conversion.pictures), names, conversion)
    return FeedSet(rows, np.arange(len(images)), images.labels, conversion.image.batch)


def from_images(
    places: Sequence[str | Path],
    model: onnx.ModelProto,
    options: InputOptions | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> FeedSet:
    """Feed a model image files and folders of them, without labels; each is decoded once here, and again on each use.

    Of more than `limit` files that many are chosen evenly at random before any is decoded. Files that cannot be read are
    left out and listed in `skipped`.

    Raises:
        UsageError: as `conversion_for` says.
        DataError: a folder holds no image, or not one can be read, or the model has further inputs.
    """
    conversion = conversion_for(model, options)
    found = list(find_images([str(place) for place in places], ()))
    empty = next((path for path in found if isinstance(path, EmptyFolderError)), None)
    if empty is not None or not found:
        raise DataError(str(empty) if empty else "no images were given to feed the model")
    if limit is not None and limit < len(found):
        chosen = np.sort(np.random.default_rng(seed).choice(len(found), max(1, limit), replace=False))
        found = [found[index] for index in chosen]
    items = [Item(printable(path), 0, path) for path in found if isinstance(path, Path)]
    scanned = scan(str(places[0]), items, conversion.pictures, stream=True)
    if not len(scanned.images):
        raise DataError(f"none of {len(items)} images can be read; the first: {scanned.skipped[0]}")
    names = [item.name for item in scanned.images.items]
    rows = Pictures(scanned.images.store, names, conversion, scanned.images.digests)
    return FeedSet(rows, np.arange(len(names)), None, conversion.image.batch, scanned.skipped)


def from_npz(folder: Path, model: onnx.ModelProto) -> FeedSet:
    """Feed a model the .npz files of a folder, in the order of their names; each is read once here, and again on each use.

    A file holds one array an input, by the input's name and in its type, with the samples along the first axis. An array
    called `labels`, unless that is an input, holds their classes.

    Raises:
        DataError: there is no such file, or one is damaged or does not fit the model; the message names it.
    """
    files = tuple(sorted(file for file in folder.glob("*.npz") if file.is_file())) if folder.is_dir() else ()
    if not files:
        raise DataError(f"{folder}: no .npz file in this folder; each holds one array an input of the model")
    specs = _inputs_of(model)
    counts, labels, hashed, shapes = [], [], [], []
    for file in files:
        arrays = load_npz(file)
        counts.append(_check_npz(file, arrays, specs))
        labels.append(None if NPZ_LABELS in specs else _labels(file, arrays.get(NPZ_LABELS), counts[-1]))
        hashed.append(digests_of({name: arrays[name] for name in specs}))
        shapes.append(tuple(arrays[name].shape[1:] for name in specs))
    owners = np.repeat(np.arange(len(files)), counts)
    groups = np.array([shapes.index(shape) for shape in shapes])[owners]
    batch = _fixed_batch(specs)
    if batch and groups.any():
        raise DataError(f"{folder}: its files differ in shape, and the model takes exactly {batch} samples at once")
    starts = np.array([0, *np.cumsum(counts)])
    names = [f"{file.name}[{row}]" for file, count in zip(files, counts, strict=True) for row in range(count)]
    known = [one for one in labels if one is not None]
    if known and len(known) < len(files):
        raise DataError(
            f"{folder}: only {len(known)} of {len(files)} files have {NPZ_LABELS}; give them to all or to none"
        )
    rows = NpzFiles(files, starts, groups, tuple(specs), names, np.concatenate(hashed))
    return FeedSet(rows, np.arange(len(names)), np.concatenate(known) if known else None, batch)


def from_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.integer] | None = None, batch: int | None = None
) -> FeedSet:
    """Feed a model arrays by input name, the samples along the first axis of each; `batch` as in `FeedSet`.

    Raises:
        DataError: there are no arrays, or they differ in their number of samples.
    """
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise DataError(
            f"arrays of {sorted(counts)} samples cannot be one set; each has the samples along its first axis"
        )
    names = [str(index) for index in range(counts.pop())]
    known = None if labels is None else labels.astype(np.int64)
    return FeedSet(InMemory(dict(arrays), names), np.arange(len(names)), known, batch)


def _looks(pictures: Preprocess) -> tuple[object, ...]:
    """Give what decides a picture's pixels, without the normalisation that comes after."""
    return pictures.shape, pictures.fit, pictures.background


def _inputs_of(model: onnx.ModelProto) -> dict[str, tuple[str, list[int | None]]]:
    weights = weights_of(model)
    return {value.name: (dtype_of(value), sizes_of(value)) for value in model.graph.input if value.name not in weights}


def _fixed_batch(specs: Mapping[str, tuple[str, list[int | None]]]) -> int | None:
    return next((sizes[0] for _, sizes in specs.values() if sizes and sizes[0] is not None), None)


def _check_npz(file: Path, arrays: Arrays, specs: Mapping[str, tuple[str, list[int | None]]]) -> int:
    """Hold a file's arrays to the model's inputs, and return how many samples it has."""
    missing = [name for name in specs if name not in arrays]
    unknown = sorted(set(arrays) - set(specs) - {NPZ_LABELS})
    if missing or unknown:
        wrong = [f"misses {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)} besides"] * bool(unknown)
        raise DataError(f"{file}: {' and '.join(wrong)}; the model takes {', '.join(specs)}")
    for name, (dtype, sizes) in specs.items():
        array = arrays[name]
        fits = len(sizes) == array.ndim > 0 and all(want in (None, got) for want, got in zip(sizes[1:], array.shape[1:], strict=True))  # fmt: skip
        if str(array.dtype) != dtype or not fits:
            wanted = " x ".join(str(size or "?") for size in ("N", *sizes[1:]))
            raise DataError(f"{file}: {name} is {array.dtype} {array.shape}; the model takes {dtype} {wanted}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{file}: {name} holds NaN or infinity")
    counts = {len(arrays[name]) for name in specs}
    if len(counts) > 1 or not counts.isdisjoint({0}):
        raise DataError(
            f"{file}: its arrays have {sorted(counts)} samples along their first axes; one number, not 0, is needed"
        )
    return counts.pop()


def _labels(file: Path, labels: npt.NDArray[Any] | None, count: int) -> npt.NDArray[np.int64] | None:
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{file}: {NPZ_LABELS} are {labels.dtype} {labels.shape}; one whole number from 0 a sample is needed"
        )
    return labels.astype(np.int64)
