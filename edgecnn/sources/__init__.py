"""Where images to predict come from: files, folders, globs, stdin, a folder that is watched, a video or a camera.

A source is an iterator of `Found`, in order, that reads nothing before it is asked to: a path, an image that is in memory
already, or an ImageError in place of one, so that it costs no other image its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgecnn.errors import ImageError
from edgecnn.images import Pixels


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file, with the name that its answer is to have."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Frame:
    """One picture of a video: `pixels` gives it as uint8 (H, W, 3), and `decode_ms` is what it took to get there."""

    name: str
    pixels: Callable[[], Pixels]
    decode_ms: float


class NoImageError(ImageError):
    """A place where an image was looked for and none can be had; `path` is the place."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


Found = Path | Encoded | Frame | NoImageError


def name_of(found: Found) -> str:
    """Return the name that the answer for an image has."""
    if isinstance(found, NoImageError):
        return printable(found.path)
    return printable(found if isinstance(found, Path) else found.name)


def printable(path: object) -> str:
    """Write a name that may hold bytes that are no UTF-8, as file systems allow, with those bytes escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
