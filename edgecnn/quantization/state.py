"""A climb on disk, so that it can be stopped and gone on with: each rung's figures, float model and ranges."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import onnx

from edgecnn.files import write_atomic
from edgecnn.quantization.placement import Search
from edgecnn.quantization.ranges import Method
from edgecnn.quantization.rungs import Attempt
from edgecnn.spec import Frozen, to_json

FILE = "ladder.json"
T = TypeVar("T")


class _Entry(Frozen, frozen=True):
    name: str
    rung: dict[str, Any]
    model: str
    model_sha256: str
    ranges: dict[str, tuple[float, float]]
    floats: tuple[str, ...]
    method: Method
    stored: tuple[str, ...] = ()


class _Record(Frozen, frozen=True):
    key: str
    entries: tuple[_Entry, ...] = ()
    search: Search | None = None


class State:
    """The rungs climbed so far, in a folder; those of another model, data set or recipe, or damaged ones, do not count."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._record = _Record(key=key)
        try:
            found = msgspec.json.decode((folder / FILE).read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return
        if found.key == key:
            self._record = found

    def rung(self, name: str, kind: type[T]) -> T | None:
        """Give what was measured of a rung."""
        entry = self._entry(name)
        try:
            return None if entry is None else msgspec.convert(entry.rung, type=kind)
        except msgspec.ValidationError:
            return None

    def attempt(self, name: str) -> Attempt | None:
        """Give how a rung was made."""
        entry = self._entry(name)
        if entry is None:
            return None
        model = onnx.ModelProto.FromString((self.folder / entry.model).read_bytes())
        return Attempt(model, entry.ranges, entry.floats, entry.method, entry.stored)

    @property
    def names(self) -> tuple[str, ...]:
        """List the rungs, in the order in which they were climbed."""
        return tuple(entry.name for entry in self._record.entries)

    @property
    def search(self) -> Search | None:
        """Give how layers were placed."""
        return self._record.search

    def add_search(self, search: Search) -> None:
        """Keep how layers were placed; it is written with the next rung."""
        self._record = _Record(key=self._record.key, entries=self._record.entries, search=search)

    def add(self, name: str, rung: msgspec.Struct, attempt: Attempt) -> None:
        """Write a rung down; the models first, so that what the list names is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = attempt.model.SerializeToString()
        digest = hashlib.sha256(data).hexdigest()
        file = f"{digest[:16]}.float.onnx"
        if self._digest(file) != digest:
            write_atomic(self.folder / file, data)
        entry = _Entry(
            name=name, rung=msgspec.to_builtins(rung), model=file, model_sha256=digest, ranges=dict(attempt.ranges),
            floats=attempt.floats, method=attempt.method, stored=attempt.stored,
        )  # fmt: skip
        kept = tuple(one for one in self._record.entries if one.name != name)
        self._record = _Record(key=self._record.key, entries=(*kept, entry), search=self._record.search)
        write_atomic(self.folder / FILE, to_json(self._record))

    def _entry(self, name: str) -> _Entry | None:
        entry = next((one for one in self._record.entries if one.name == name), None)
        return entry if entry is not None and self._digest(entry.model) == entry.model_sha256 else None

    def _digest(self, file: str) -> str | None:
        try:
            return hashlib.sha256((self.folder / file).read_bytes()).hexdigest()
        except OSError:
            return None
