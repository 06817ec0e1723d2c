"""What a shared library wants that is not there: its DT_NEEDED names, each tried as the loader would."""

from __future__ import annotations

import ctypes
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgecnn.spec import Frozen

_LOAD, _DYNAMIC = 1, 2  # kinds of program headers
_NULL, _NEEDED, _STRINGS = 0, 1, 5  # tags of the dynamic section
_SYSTEM = ("/lib", "/usr/lib", "/usr/local/lib", "/usr/local/cuda/lib64", "/opt")


class Missing(Frozen, frozen=True):
    """A library that another one needs and the loader does not find; `others` are its versions that are here."""

    name: str
    reason: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a few words, as `libcudnn.so.9 (here is libcudnn.so.8)`."""
        if self.others:
            return f"{self.name} (here is {', '.join(self.others)})"
        return self.name if "No such file" in self.reason else f"{self.name} ({self.reason})"


def needed(library: Path) -> tuple[str, ...]:
    """Read the names of the libraries that an ELF file is linked to, in their order.

    Reads 64-bit little-endian files, which is what Linux on x86-64 and arm64 has (System V ABI, chapters 4 and 5).

    Raises:
        ValueError: it is no such file.
    """
    with library.open("rb") as file:
        start = file.read(64)
        if len(start) < 64 or start[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{library}: no 64-bit little-endian ELF file")
        offset, size, count = struct.unpack_from("<Q", start, 32)[0], *struct.unpack_from("<HH", start, 54)
        file.seek(offset)
        table = file.read(size * count)
        segments = [_segment(table, index * size) for index in range(count)]
        dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
        if dynamic is None:
            return ()
        file.seek(dynamic[1])
        entries = list(_entries(file.read(dynamic[3])))
        strings = _place(next((value for tag, value in entries if tag == _STRINGS), 0), segments)
        names = []
        for tag, value in entries:
            if tag == _NEEDED:
                file.seek(strings + value)
                names.append(file.read(256).partition(b"\0")[0].decode("utf-8", "replace"))
        return tuple(names)


def missing(library: Path, folders: Sequence[Path] = ()) -> tuple[Missing, ...]:
    """Name what this library needs and the loader does not find, by trying to load each one.

    `folders` are where other versions of them are looked for. What is loaded stays loaded, so call it in a process of
    its own.
    """
    found = []
    for name in needed(library):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reason = str(error).removeprefix(f"{name}: ")
            found.append(Missing(name=name, reason=reason, others=_others(name, folders or library_folders())))
    return tuple(found)


def library_folders() -> tuple[Path, ...]:
    """List the folders in which CUDA's libraries usually lie: the system's, and those of the packages on the path."""
    packages = [folder for place in sys.path if place for folder in Path(place).glob("nvidia/*/lib")]
    system = [folder for root in _SYSTEM for folder in (Path(root), *Path(root).glob("*-linux-gnu"))]
    return tuple(folder for folder in (*packages, *system) if folder.is_dir())


def _others(name: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """Find other versions of a library, by its name up to `.so`."""
    stem = name.partition(".so")[0]
    pattern = re.compile(re.escape(stem) + r"\.so\.\d+")
    names = {found.group() for folder in folders for file in _files(folder, stem) if (found := pattern.match(file))}
    return tuple(sorted(names - {name}))


def _files(folder: Path, stem: str) -> list[str]:
    try:
        return [file.name for file in folder.glob(f"{stem}.so.*")]
    except OSError:
        return []


def _segment(table: bytes, at: int) -> tuple[int, int, int, int]:
    """Read a program header: its kind, and where it is in the file, in memory, and how long."""
    kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", table, at)
    return kind, offset, address, size


def _entries(data: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<qQ", data[: len(data) // 16 * 16]):
        if tag == _NULL:
            return
        yield tag, value


def _place(address: int, segments: Sequence[tuple[int, int, int, int]]) -> int:
    """Turn an address in memory into a place in the file."""
    for kind, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return offset + address - start
    return address
