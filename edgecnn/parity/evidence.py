"""A recording as one file: a zip of `recording.json`, one `.npy` an array, and an index with the SHA-256 of each.

Nothing in it can run code, and nothing that is missing, damaged, added or contradictory is read past: a file that cannot be
trusted whole is refused whole. The hashes find damage, not forgery: who can rewrite the file can rewrite them too.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec
import numpy as np

from edgecnn.archive import NUMBERS, UNREADABLE, parse_array
from edgecnn.errors import DamagedError, DataError, SchemaError, UsageError
from edgecnn.files import write_atomic
from edgecnn.manifest import SCHEMA_VERSION, FileRecord
from edgecnn.parity.recording import AGAIN, Array, Recording, RecordingHead, SideArrays
from edgecnn.spec import Frozen, Tolerance, to_json

INDEX, HEAD = "evidence.json", "recording.json"
_LARGEST = 1 << 30  # bytes of the file, and of all that it unpacks to
_LARGEST_TEXT = 64 << 20  # of each of the two JSON files: the names of a million samples
_WRITTEN = (1980, 1, 1, 0, 0, 0)  # the same recording is the same bytes, whenever it is written

_OfTruth = Literal["float64", "float32", "golden_float64"]
_OfSide = Literal["on_truth", "goldens", "recorded"]
What = Literal["answers", "again_plain", "again", _OfSide, _OfTruth]


class ArrayRecord(Frozen, frozen=True):
    """Whose array a file holds: of a side, or of none (the truth); `name` is the output's, or the further run's.

    Arrays that are equal to the bit share one file.
    """

    file: str
    what: What
    side: str | None = None
    name: str = ""


class Index(Frozen, frozen=True):
    """What the zip holds, but for the index itself."""

    schema_version: int
    files: dict[str, FileRecord]
    arrays: tuple[ArrayRecord, ...]


_Text = TypeVar("_Text", Index, RecordingHead)


class _Version(msgspec.Struct):
    schema_version: int


def write_evidence(path: Path, recording: Recording) -> None:
    """Write a recording, without its pictures, to one file that is there whole or not at all.

    Letters that UTF-8 does not know, which samples' file names may hold, are written as backslash escapes.

    Raises:
        DataError: it holds an array that is not of numbers, is too large, or contradicts itself, and so could not be read back.
    """
    write_atomic(path, pack_evidence(recording, str(path)))


def pack_evidence(recording: Recording, where: str) -> bytes:
    """Give the content of such a file; `where` names it in errors. Raises as `write_evidence` does."""
    members: dict[str, bytes] = {HEAD: to_json(_sayable(recording.head))}
    places: dict[str, str] = {}
    arrays = []
    for record, array in _flatten(recording):
        data = _npy(array, f"{where}: {record.side or 'the truth'}: {record.name or record.what}")
        file = places.setdefault(hashlib.sha256(data).hexdigest(), f"{len(places):03d}-{record.file}")
        members[file] = data
        arrays.append(msgspec.structs.replace(record, file=file))
    files = {
        name: FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in members.items()
    }
    members[INDEX] = to_json(Index(schema_version=SCHEMA_VERSION, files=files, arrays=tuple(arrays)))
    data = _zip(members)
    try:
        parse_evidence(data, where)
    except DamagedError as error:
        raise DataError(f"{error}: not written, for it could not be read back") from None
    return data


def read_evidence(path: Path) -> Recording:
    """Read a recording, whole and verified.

    Raises:
        UsageError: there is no such file, or it is something else.
        DamagedError: it is damaged or cut short, unpacks to too much, or contradicts itself.
        SchemaError: it is of an unknown version, or lacks a field.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: is not there; give a file that `edgecnn parity --keep` or `edgecnn verify --report` wrote"
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise DamagedError(f"{path}: over {_LARGEST >> 30} GB, which no recording is; do not use it")
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    return parse_evidence(data, str(path))


def parse_evidence(data: bytes, where: str) -> Recording:
    """Read a recording from a file's content; `where` names it in errors. Raises as `read_evidence` does.

    The JSON report of `edgecnn verify` carries such a content in base64, and is as good.
    """
    if data[:1] == b"{":
        data = _carried(data, where)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise DamagedError(f"{where}: no recording of a parity check, or only a part of one; copy it again")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            index = _index(archive, where)
            members = {name: _member(archive, name, index.files[name], where) for name in index.files}
        head = _decode(members[HEAD], RecordingHead, f"{where}:{HEAD}")
        arrays = {record.file: parse_array(members[record.file]) for record in index.arrays}
    except UNREADABLE as error:
        raise DamagedError(f"{where}: damaged ({error}); copy it again") from None
    recording = _assemble(head, index, arrays, where)
    problem = _contradiction(recording)
    if problem:
        raise DamagedError(f"{where}: contradicts itself: {problem}; record it again")
    return recording


class _Report(msgspec.Struct):
    """What is wanted of a report that `edgecnn verify` wrote."""

    evidence: str


def _carried(data: bytes, where: str) -> bytes:
    """Take the recording out of a JSON report."""
    try:
        return base64.b64decode(msgspec.json.decode(data, type=_Report).evidence, validate=True)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise DamagedError(
            f"{where}: is JSON, but no whole report of `edgecnn verify` ({error}); copy it again"
        ) from None


def _sayable(head: RecordingHead) -> RecordingHead:
    names = tuple(name.encode("utf-8", "backslashreplace").decode("utf-8") for name in head.samples.names)
    return msgspec.structs.replace(head, samples=msgspec.structs.replace(head.samples, names=names))


def _flatten(recording: Recording) -> Iterator[tuple[ArrayRecord, Array]]:
    """Name every array; the file's name is for people who unzip."""
    for truth in get_args(_OfTruth):
        array = getattr(recording, truth)
        if array is not None:
            yield ArrayRecord(file=f"truth-{truth}.npy", what=truth), array
    for ref, side in recording.sides.items():
        start = _plain(ref)
        for name, array in side.answers.items():
            yield ArrayRecord(file=f"{start}-{_plain(name)}.npy", what="answers", side=ref, name=name), array
        for what in get_args(_OfSide):
            array = getattr(side, what)
            if array is not None:
                yield ArrayRecord(file=f"{start}-{what}.npy", what=what, side=ref), array
        for name, (before, after) in side.again.items():
            yield ArrayRecord(file=f"{start}-{_plain(name)}-plain.npy", what="again_plain", side=ref, name=name), before
            yield ArrayRecord(file=f"{start}-{_plain(name)}.npy", what="again", side=ref, name=name), after


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)[:60].strip("-") or "x"


def _npy(array: Array, where: str) -> bytes:
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{where}: is of dtype {array.dtype}, and evidence holds numbers only; leave that output out")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _WRITTEN), data, zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def _index(archive: zipfile.ZipFile, where: str) -> Index:
    """Read the index and hold the zip's own list to it, before anything else is unpacked."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if INDEX not in sizes:
        raise UsageError(
            f"{where}: a zip, but no recording of a parity check; give one that `edgecnn parity --keep` wrote"
        )
    if sum(sizes.values()) > _LARGEST or max(sizes[INDEX], sizes.get(HEAD, 0)) > _LARGEST_TEXT:
        raise DamagedError(f"{where}: unpacks to more than any recording does; do not use it")
    with archive.open(INDEX) as file:
        data = file.read(_LARGEST_TEXT)
    index = _decode(data, Index, f"{where}:{INDEX}")
    here = sorted(info.filename for info in archive.infolist())
    if here != sorted([*index.files, INDEX]):
        raise DamagedError(f"{where}: holds other files than its index says; copy it again")
    if HEAD not in index.files or not {record.file for record in index.arrays} <= set(index.files) - {HEAD}:
        raise DamagedError(f"{where}: its index leaves a file out; record it again")
    if any(record.size != sizes[name] for name, record in index.files.items()):
        raise DamagedError(f"{where}: a file in it has not the recorded size; copy it again")
    return index


def _decode(data: bytes, kind: type[_Text], where: str) -> _Text:
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            newer = "; install a newer edgecnn" if version > SCHEMA_VERSION else ""
            raise SchemaError(
                f"{where}: schema version {version} is unknown, this edgecnn reads {SCHEMA_VERSION}{newer}"
            )
        value = msgspec.json.decode(data, type=kind)
        if isinstance(value, RecordingHead):  # a verdict must not hang on a tolerance that a default fills in
            stated = msgspec.json.decode(data, type=dict[str, msgspec.Raw])["tolerance"]
            missing = set(Tolerance.__struct_fields__) - set(msgspec.json.decode(stated, type=dict[str, float]))
            if missing:
                raise SchemaError(f"{where}: the tolerance lacks {min(missing)}; record it again")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SchemaError(f"{where}: {error}; record it again") from None
    return value


def _member(archive: zipfile.ZipFile, name: str, record: FileRecord, where: str) -> bytes:
    with archive.open(name) as file:
        data = file.read(record.size + 1)
    if len(data) != record.size or hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedError(f"{where}: {name} has not the recorded SHA-256; copy it again")
    return data


def _assemble(head: RecordingHead, index: Index, arrays: dict[str, Array], where: str) -> Recording:
    """Put every array where its record says it belongs; one place takes one array."""
    sides: dict[str, dict[str, Any]] = {side.ref: {"answers": {}, "again": {}} for side in head.sides}
    truth: dict[str, Any] = {}
    pairs: dict[tuple[str, str], dict[str, Array]] = {}
    for record in index.arrays:
        if record.side is not None and record.side not in sides:
            raise DamagedError(f"{where}: holds an array of {record.side!r}, which is no side of it; record it again")
        if (record.side is None) != (record.what in get_args(_OfTruth)):
            raise DamagedError(f"{where}: holds an array that belongs to nothing; record it again")
        if record.side is None:
            place, key = truth, str(record.what)
        elif record.what == "answers":
            place, key = sides[record.side]["answers"], record.name
        elif record.what in ("again", "again_plain"):
            place, key = pairs.setdefault((record.side, record.name), {}), record.what
        else:
            place, key = sides[record.side], record.what
        if key in place:
            raise DamagedError(f"{where}: holds two arrays for {record.side} {record.what}; record it again")
        place[key] = arrays[record.file]
    if any(len(pair) != 2 for pair in pairs.values()):
        raise DamagedError(f"{where}: a further run has not the plain one beside it; record it again")
    for (ref, name), pair in pairs.items():
        sides[ref]["again"][name] = (pair["again_plain"], pair["again"])
    return Recording(head=head, sides={ref: SideArrays(**side) for ref, side in sides.items()}, **truth)


def _contradiction(recording: Recording) -> str | None:
    """Say where the head and the arrays do not fit each other."""
    head = recording.head
    samples = head.samples
    if samples.n < 1 or len(samples.names) != samples.n:
        return f"{len(samples.names)} names for {samples.n} samples"
    if samples.labels is not None and len(samples.labels) != samples.n:
        return f"{len(samples.labels)} labels for {samples.n} samples"
    if head.classes and not all(0 <= label < len(head.classes) for label in samples.labels or ()):
        return f"a label is not one of the {len(head.classes)} classes"
    if len({side.ref for side in head.sides}) != len(head.sides) or not head.sides:
        return "no side at all, or two of one name"
    if (head.truth is None) != (recording.float64 is None):
        return "a truth is named and not there, or there and not named"
    for side in head.sides:
        arrays = recording.sides[side.ref]
        if side.error is None and head.answer not in arrays.answers:
            return f"{side.ref} has neither the answer {head.answer!r} nor an error"
        if any(array.shape[:1] != (samples.n,) for array in arrays.answers.values()):
            return f"{side.ref} has not one answer for each of {samples.n} samples"
        if not set(arrays.again) <= set(AGAIN):
            return f"{side.ref} has an unknown further run"
    return _misshapen(recording)


def _misshapen(recording: Recording) -> str | None:
    """Compare the shapes of what belongs together: the truth is (samples, classes), and so is what is held to it.

    A candidate's answer may have another width than there are classes: that is its fault, and evidence of it.
    """
    head, truth, goldens = recording.head, _rows(recording.float64), _rows(recording.golden_float64)
    classes = len(head.classes)
    wanted: list[tuple[str, Array | None, int | None, int]] = [
        ("the truth", recording.float64, len(head.truth_samples) or truth, classes),
        (head.unit, recording.float32, truth, classes),
        ("the goldens' truth", recording.golden_float64, goldens, classes),
    ]
    for ref, side in recording.sides.items():
        answer = side.answers.get(head.answer)
        width = answer.shape[1] if answer is not None and answer.ndim == 2 and ref != head.reference else classes
        recorded = goldens if goldens is not None else _rows(side.goldens)
        wanted += [
            (f"{ref}: the answer", answer, head.samples.n, width),
            (f"{ref}: on the truth", side.on_truth, truth, width),
            (f"{ref}: on the goldens", side.goldens, recorded, width),
            (f"{ref}: recorded", side.recorded, recorded, classes),
        ]
        pairs = [(name, array, _rows(pair[0])) for name, pair in side.again.items() for array in pair]
        wanted += [(f"{ref}: {name}", array, rows, width) for name, array, rows in pairs]
    for name, array, rows, width in wanted:
        if array is not None and (not rows or array.shape != (rows, width)):
            return f"{name} has shape {array.shape}, not {(rows, width)}"
    exact = (recording.float64, recording.golden_float64)
    if any(array is not None and array.dtype != np.float64 for array in exact):
        return "the truth is not in float64"
    if not all(array is None or np.isfinite(array).all() for array in (*exact, recording.float32)):
        return "the truth has values that are not finite"
    return None


def _rows(array: Array | None) -> int | None:
    return len(array) if array is not None and array.ndim else None
