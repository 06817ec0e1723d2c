"""A bundle as a zip: unpack what its manifest lists, only that, and never more bytes than it records."""

from __future__ import annotations

import lzma
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from edgecnn.errors import BundleError, DamagedError, EscapeError
from edgecnn.manifest import LARGEST, MANIFEST, Manifest, is_inside, parse_manifest
from edgecnn.spec import to_json

_UNPACKED_LIMIT = 2 << 30
# What zipfile, its decompressors, numpy and the file system raise on damaged or malicious content.
UNREADABLE: tuple[type[Exception], ...] = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, SyntaxError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Say whether a file is a zip."""
    return zipfile.is_zipfile(path)


def unpack(path: Path) -> tuple[Path, Manifest, tempfile.TemporaryDirectory[str]]:
    """Unpack a zipped bundle into a temporary folder, which is removed with the last of the three values.

    Raises:
        BundleError: there is not exactly one manifest, or it is not a valid one; the bundle unpacks to too much.
        EscapeError: the manifest names a file outside the bundle.
        DamagedError: an entry is missing, damaged or larger than recorded.
    """
    holder = tempfile.TemporaryDirectory(prefix="edgecnn-")
    root = Path(holder.name)
    try:
        with zipfile.ZipFile(path) as archive:
            prefix = _prefix(archive, path)
            manifest = parse_manifest(_extract(archive, prefix + MANIFEST, LARGEST), f"{path}:{MANIFEST}")
            if sum(record.size for record in manifest.files.values()) > _UNPACKED_LIMIT:
                raise BundleError(f"{path}: unpacks to over {_UNPACKED_LIMIT >> 30} GB; unpack it yourself to use it")
            (root / MANIFEST).write_bytes(to_json(manifest))
            for name, record in manifest.files.items():
                if not is_inside(name):
                    raise EscapeError(f"{path}: the manifest names {name!r}, which leaves the bundle; do not use it")
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_extract(archive, prefix + name, record.size))
    except UNREADABLE as error:
        raise DamagedError(f"{path}: a zip that lacks or cannot give up a file of the bundle ({error})") from None
    return root, manifest, holder


def _prefix(archive: zipfile.ZipFile, path: Path) -> str:
    found = [name for name in archive.namelist() if PurePosixPath(name).name == MANIFEST and name.count("/") <= 1]
    if len(found) != 1:
        raise BundleError(
            f"{path}: holds {len(found)} manifests; a bundle's zip has one, at the top or one folder down"
        )
    return found[0][: -len(MANIFEST)]


def _extract(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DamagedError(f"{archive.filename}: {name} is larger than recorded; do not use it")
    return data
