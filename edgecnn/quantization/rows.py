"""Samples that a model is fed, taken by number: pictures, arrays, or rows of .npz files; nothing taken is kept."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, digest_of
from edgecnn.data.stream import ImageFiles
from edgecnn.errors import DataError
from edgecnn.images import Pixels, fit_array, load
from edgecnn.quantization.conversion import Conversion
from edgecnn.quantization.probe import Arrays
from edgecnn.spec import Preprocess

Indices = npt.NDArray[np.int64]

_CHUNK = 32
# What numpy, zipfile and zlib raise on damaged files; TypeError is a bare array, which is no context manager.
_UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Rows(Protocol):
    """Samples that can be taken by number; nothing taken is kept."""

    @property
    def names(self) -> Sequence[str]:
        """What the source calls each sample."""
        ...

    @property
    def statement(self) -> str:
        """How a sample becomes arrays."""
        ...

    @property
    def groups(self) -> Indices:
        """Each sample's group: only samples of one group can be in one batch, because their shapes are equal."""
        ...

    def take(self, indices: Indices) -> Arrays:
        """Give the arrays of some samples by input name, the samples along the first axis."""
        ...

    def digests(self) -> npt.NDArray[np.uint8]:
        """Give 16 bytes a sample, uint8 (N, 16), that differ wherever its content does."""
        ...


@dataclass(frozen=True)
class _Refitted:
    """Pictures in memory that are brought to another size on each use."""

    items: tuple[Item, ...]
    preprocess: Preprocess

    def take(self, indices: Indices) -> Pixels:
        return np.stack([self._one(self.items[index].content) for index in indices])

    def _one(self, content: Path | Pixels) -> Pixels:
        return load(content, self.preprocess) if isinstance(content, Path) else fit_array(content, self.preprocess)


@dataclass(frozen=True)
class Pictures:
    """Samples that are pictures, from wherever, and how they are converted."""

    store: Pixels | ImageFiles | _Refitted
    names: Sequence[str]
    conversion: Conversion
    known: npt.NDArray[np.uint8] | None = None

    @property
    def statement(self) -> str:
        """Everything that decides what comes out."""
        return self.conversion.statement

    @property
    def groups(self) -> Indices:
        """One for all: they have one shape."""
        return np.zeros(len(self.names), dtype=np.int64)

    def take(self, indices: Indices) -> Arrays:
        """Decode, or look up, and convert."""
        return {self.conversion.image.name: self.conversion(self._pixels(indices))}

    def digests(self) -> npt.NDArray[np.uint8]:
        """Give those of the pixels, by going through all of them once where they are not known."""
        return self._hashed if self.known is None else self.known

    @cached_property
    def _hashed(self) -> npt.NDArray[np.uint8]:
        found = bytearray()
        for start in range(0, len(self.names), _CHUNK):
            for picture in self._pixels(np.arange(start, min(start + _CHUNK, len(self.names)))):
                found += digest_of(picture)
        return np.frombuffer(bytes(found), dtype=np.uint8).reshape(-1, 16)

    def _pixels(self, indices: Indices) -> Pixels:
        return self.store[indices] if isinstance(self.store, np.ndarray) else self.store.take(indices)


@dataclass(frozen=True)
class InMemory:
    """Samples that are arrays already."""

    arrays: Arrays
    names: Sequence[str]
    statement: str = "arrays"

    @property
    def groups(self) -> Indices:
        """One for all: they have one shape."""
        return np.zeros(len(self.names), dtype=np.int64)

    def take(self, indices: Indices) -> Arrays:
        """Look up."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def digests(self) -> npt.NDArray[np.uint8]:
        """Hash all arrays."""
        return digests_of(self.arrays)


@dataclass(frozen=True)
class NpzFiles:
    """Samples in .npz files: `starts` holds the first sample's number of each file, and the number behind the last."""

    files: tuple[Path, ...]
    starts: Indices
    groups: Indices
    inputs: tuple[str, ...]
    names: Sequence[str]
    hashed: npt.NDArray[np.uint8]
    statement: str = "npz"

    def take(self, indices: Indices) -> Arrays:
        """Read each file that one of the samples is in, whole, and let go of it before the next."""
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in self.inputs}
        for first, last in runs(owners):
            arrays = load_npz(self.files[owners[first]])
            for name in self.inputs:
                parts[name].append(arrays[name][indices[first:last] - self.starts[owners[first]]])
        return {name: np.concatenate(found) for name, found in parts.items()}

    def digests(self) -> npt.NDArray[np.uint8]:
        """Give those that were made when the files were opened."""
        return self.hashed


def refitted(items: tuple[Item, ...], preprocess: Preprocess) -> ImageFiles | _Refitted:
    """Stand for pictures of another size: decoded anew from their files, or brought to size from their arrays."""
    paths = tuple(item.content for item in items if isinstance(item.content, Path))
    return ImageFiles(paths, preprocess) if len(paths) == len(items) else _Refitted(items, preprocess)


def load_npz(file: Path) -> Arrays:
    """Read all arrays of one file.

    Raises:
        DataError: it is missing, damaged, or holds Python objects.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as .npz ({error})") from None


def digests_of(arrays: Arrays) -> npt.NDArray[np.uint8]:
    """Hash each sample's arrays, with their names, types and shapes."""
    count = len(next(iter(arrays.values())))
    found = bytearray()
    for index in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(arrays):
            value = np.ascontiguousarray(arrays[name][index])
            digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
            digest.update(value.tobytes())
        found += digest.digest()
    return np.frombuffer(bytes(found), dtype=np.uint8).reshape(-1, 16)


def runs(values: Indices) -> Iterator[tuple[int, int]]:
    """Give where each run of equal values begins and ends."""
    return pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])
