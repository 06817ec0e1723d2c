"""A bundle as a zip: unpack what its manifest lists, only that, and never more bytes than it records; and arrays likewise."""

from __future__ import annotations

import errno
import io
import lzma
import math
import tempfile
import tokenize
import weakref
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgecnn import signing
from edgecnn.errors import BundleError, DamagedError, EscapeError, SignatureError
from edgecnn.manifest import LARGEST, MANIFEST, SIGNATURE, Manifest, is_inside, parse_manifest

_UNPACKED_LIMIT = 2 << 30
# Weights hardly shrink; a zip of a bundle that promises a hundred times its own size is made to fill the disk.
_BOMB_RATIO, _HARMLESS = 100, 64 << 20
_AT_ONCE = 16 << 20  # bytes read of a zip at once: no bundle's list of files is longer
_CHUNK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NUMBERS = "fiub"  # kinds of dtype: floats, integers with and without sign, booleans
# What zipfile, its decompressors, numpy and the file system raise on damaged or malicious content.
UNREADABLE: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, SyntaxError,
)  # fmt: skip


class _Bounded(io.FileIO):
    """A file of which no more than `_AT_ONCE` bytes are read at once, whatever sizes a zip's own records state."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does.

        Raises:
            ValueError: more is asked for.
        """
        wanted = _AT_ONCE + 1 if size is None or size < 0 else size
        data = b"" if wanted > _AT_ONCE + 1 else super().read(wanted) or b""
        if wanted > _AT_ONCE + 1 or len(data) > _AT_ONCE:
            raise ValueError("a list of files longer than any bundle's")
        return data


def is_archive(path: Path) -> bool:
    """Say whether a file is a zip."""
    return zipfile.is_zipfile(path)


class Unpacked(NamedTuple):
    """A zip's content: `holder` removes its folder, and `unknown` names what lay in the zip and not in its manifest.

    `signer` is the fingerprint of the key that was asked for, None where none was.
    """

    root: Path
    manifest: Manifest
    holder: tempfile.TemporaryDirectory[str]
    signer: str | None
    unknown: tuple[str, ...]


_holders = weakref.WeakSet[tempfile.TemporaryDirectory[str]]()


def remove_unpacked() -> None:
    """Remove what is still unpacked, for a process that leaves at once, without Python's own clearing up."""
    for holder in list(_holders):
        holder.cleanup()


def unpack(path: Path, key: Path | None = None) -> Unpacked:
    """Unpack a zipped bundle into a temporary folder: what its manifest lists, and with a `key` only what that has signed.

    Raises:
        BundleError: there is not exactly one manifest, or it is not a valid one; the bundle unpacks to too much, or there is
            no room for it.
        EscapeError: the manifest names a file outside the bundle.
        DamagedError: an entry is missing, damaged or larger than recorded; a SignatureError, which is one, with a key.
    """
    damaged = DamagedError if key is None else SignatureError
    try:
        holder = tempfile.TemporaryDirectory(prefix="edgecnn-")
    except OSError as error:
        raise BundleError(f"{path}: there is no folder to unpack it into ({error.strerror}); set TMPDIR") from None
    _holders.add(holder)
    try:
        return _unpack(path, key, holder, damaged)
    except UNREADABLE as error:
        holder.cleanup()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            room = f"{tempfile.gettempdir()}: {error.strerror}"
            raise BundleError(f"{path}: cannot be unpacked ({room}); make room, or set TMPDIR") from None
        raise damaged(f"{path}: lacks a file of the bundle, or is damaged ({error}); copy the bundle again") from None
    except BaseException:
        holder.cleanup()
        raise


def _unpack(
    path: Path, key: Path | None, holder: tempfile.TemporaryDirectory[str], damaged: type[DamagedError]
) -> Unpacked:
    root = Path(holder.name)
    with _Bounded(str(path)) as raw, zipfile.ZipFile(raw) as archive:
        prefix = _prefix(archive, path, BundleError if key is None else damaged)
        data = _extract(archive, prefix + MANIFEST, LARGEST, damaged)
        signature = None
        if prefix + SIGNATURE in archive.NameToInfo:
            signature = _extract(archive, prefix + SIGNATURE, signing.LARGEST, damaged)
        signer = None if key is None else signing.check(data, signature, key, str(path))
        manifest = parse_manifest(data, f"{path}:{MANIFEST}")
        _check_size(manifest, path)
        (root / MANIFEST).write_bytes(data)
        if signature is not None:
            (root / SIGNATURE).write_bytes(signature)
        for name, record in manifest.files.items():
            if not is_inside(name):
                raise EscapeError(f"{path}: the manifest names {name!r}, which leaves the bundle; do not use it")
            _write(archive, prefix + name, root / name, record.size, damaged)
        known = {prefix + name for name in (*manifest.files, MANIFEST, SIGNATURE)}
        unknown = [name for name in archive.namelist() if name not in known and not name.endswith("/")]
    return Unpacked(root, manifest, holder, signer, tuple(name.removeprefix(prefix) for name in unknown))


def read_arrays(data: bytes, largest: int) -> dict[str, npt.NDArray[Any]]:
    """Read an npz of numbers that unpacks to at most `largest` bytes.

    Raises:
        ValueError: it unpacks to more, or holds something else; besides, whatever is in `UNREADABLE`.
    """
    arrays, left = {}, largest
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise ValueError(f"it unpacks to more than the {largest} bytes that it may hold")
            arrays[info.filename.removesuffix(".npy")] = parse_array(content)
    return arrays


def parse_array(data: bytes) -> npt.NDArray[Any]:
    """Read one array (NumPy's format 1.0), of numbers only, whose header promises exactly the bytes that follow.

    Raises:
        ValueError: it is anything else.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another format")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (tokenize.TokenError, SyntaxError) as error:  # NumPy reads the header as Python
        raise ValueError(f"an array without a header: {error}") from None
    if dtype.kind not in NUMBERS or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of {dtype}, shape {shape}, in {len(data)} bytes")
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _prefix(archive: zipfile.ZipFile, path: Path, kind: type[BundleError]) -> str:
    found = [name for name in archive.namelist() if PurePosixPath(name).name == MANIFEST and name.count("/") <= 1]
    if len(found) != 1:
        raise kind(f"{path}: holds {len(found)} manifests; a bundle's zip has one, at the top or one folder down")
    return found[0][: -len(MANIFEST)]


def _check_size(manifest: Manifest, path: Path) -> None:
    total, packed = sum(record.size for record in manifest.files.values()), path.stat().st_size
    if total > _UNPACKED_LIMIT:
        raise BundleError(f"{path}: unpacks to over {_UNPACKED_LIMIT >> 30} GB; unpack it yourself to use it")
    if total > max(_HARMLESS, _BOMB_RATIO * packed):
        raise BundleError(f"{path}: unpacks to {total // packed} times its size, as no bundle does; do not use it")


def _extract(archive: zipfile.ZipFile, name: str, limit: int, damaged: type[DamagedError]) -> bytes:
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise damaged(f"{archive.filename}: {name} is larger than recorded; do not use it")
    return data


def _write(archive: zipfile.ZipFile, name: str, target: Path, limit: int, damaged: type[DamagedError]) -> None:
    """Unpack one entry, a piece at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as file, target.open("wb") as out:
        while limit and (chunk := file.read(min(limit, _CHUNK))):
            out.write(chunk)
            limit -= len(chunk)
        if file.read(1):
            raise damaged(f"{archive.filename}: {name} is larger than recorded; do not use it")
