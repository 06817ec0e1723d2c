"""Files, folders and patterns into paths, one folder in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgecnn import images
from edgecnn.sources import Found, NoImageError

PATTERN = frozenset("*?[")


class EmptyFolderError(NoImageError):
    """A folder in which no file is named like an image."""

    def __init__(self, path: Path) -> None:
        looked_for = ", ".join(sorted(images.SUFFIXES))
        super().__init__(path, f"no image in this folder (looked for {looked_for})")


def find(arguments: Iterable[str], stdin: Iterable[Found] = ()) -> Iterator[Found]:
    """Expand files, folders (every image below, sorted), patterns and `-` (what `stdin` gives), in order.

    A pattern is what names no file as it stands and holds `*`, `?` or `[`, as where no shell has expanded it; `**` stands
    for any number of folders. A folder or pattern without an image is a NoImageError in its place.
    """
    for argument in arguments:
        if argument == "-":
            yield from stdin
        elif not argument:  # as of a shell's variable that is not set; as a path it would be the folder one is in
            yield NoImageError("''", "an empty name, which stands for no image")
        elif _is_folder(Path(argument)):
            yield from below(Path(argument))
        elif PATTERN & set(argument) and not _exists(argument):
            yield from _matching(argument)
        else:
            yield Path(argument)


def find_images(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[Path | NoImageError]:
    """Do as `find`, with the paths of `lines`, one a line, for `-`."""
    for found in find(arguments, (Path(line.rstrip("\n")) for line in lines if line.strip())):
        if isinstance(found, (Path, NoImageError)):
            yield found


def below(folder: Path) -> Iterator[Path | NoImageError]:
    """Walk a folder for files that are named like images, in sorted order, not into links to folders."""
    empty = True
    for path in _walk(folder):
        empty = False
        yield path
    if empty:
        yield EmptyFolderError(folder)


def _walk(folder: Path) -> Iterator[Path | NoImageError]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        yield NoImageError(folder, f"the folder cannot be read ({error.strerror})")
        return
    for entry in entries:
        if is_below(entry):
            yield from _walk(Path(entry.path))
        elif images.is_image_name(Path(entry.name)) and entry.is_file():
            yield Path(entry.path)


def is_below(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder whose images count: no link, which may lead in circles, and not a hidden one."""
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__"))


def _matching(pattern: str) -> Iterator[Path | NoImageError]:
    from glob import glob

    found = sorted(map(Path, glob(pattern, recursive=True)))  # noqa: PTH207 -- pathlib's knows no absolute patterns
    if not found:
        yield NoImageError(pattern, "no file matches this pattern")
    for path in found:
        yield from below(path) if path.is_dir() else (path,)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long for a name, or no name at all: reading it says so
        return False


def _exists(argument: str) -> bool:
    try:
        return os.path.lexists(argument)
    except ValueError:
        return True
