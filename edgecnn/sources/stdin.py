"""What comes in on stdin: one path a line, or one encoded image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgecnn import images
from edgecnn.sources import Encoded, Found, NoImageError

NAME = "-"
LONGEST = 1 << 16  # bytes of a line; Linux takes 4,096 for a path
_CHUNK = 1 << 16
# How the formats that are read begin. All but the last hold bytes that no sensible path begins with.
_IMAGE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|BM.{4}\0\0\0\0|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP"
    rb"|P[1-6]\s(?:\s|\#[^\n]*\n)*\d+\s(?:\s|\#[^\n]*\n)*\d",
    re.DOTALL,
)
_UNDECIDED = 64  # bytes by which all of these are told


class Bytes(Protocol):
    """A binary stream, as `sys.stdin.buffer` is."""

    def read1(self, size: int, /) -> bytes:
        """Read what is there, up to `size` bytes; wait only where nothing is; nothing is the end."""


def from_stdin(stream: Bytes) -> Iterator[Found]:
    """Give the one image that the stream is, where it begins like an encoded image, else the paths it holds, one a line.

    A path is given as soon as its line is complete, so that whoever writes them need not be done. Paths are bytes, as
    the system has them. A line longer than `LONGEST` ends it: no path is that long, and memory is not for the taking.
    """
    head = b""
    while len(head) < _UNDECIDED and not is_image(head) and not _is_paths(head):
        chunk = stream.read1(_CHUNK)
        head += chunk
        if not chunk:
            break
    if is_image(head):
        yield _image(stream, head)
    else:
        yield from _paths(stream, head)


def is_image(head: bytes) -> bool:
    """Say whether bytes begin as an encoded image does."""
    return _IMAGE.match(head) is not None


def _is_paths(head: bytes) -> bool:
    """Say whether these few bytes are whole lines, and no beginning of an image that is still to come."""
    return head.endswith(b"\n") and b"\0" not in head and re.match(rb"\x89PNG|P[1-6]\s", head) is None


def _image(stream: Bytes, head: bytes) -> Found:
    parts, size = [head], len(head)
    while size <= images.MAX_BYTES and (chunk := stream.read1(_CHUNK)):
        parts.append(chunk)
        size += len(chunk)
    if size > images.MAX_BYTES:
        return NoImageError(NAME, f"over the limit of {images.MAX_BYTES >> 20} MB for an image")
    return Encoded(NAME, b"".join(parts))


def _paths(stream: Bytes, head: bytes) -> Iterator[Found]:
    rest, chunk = head, head
    while chunk or rest:
        *lines, rest = rest.split(b"\n")
        if not chunk:
            lines, rest = [*lines, rest], b""
        yield from (Path(os.fsdecode(line.removesuffix(b"\r"))) for line in lines if line.strip())
        if len(rest) > LONGEST:
            yield NoImageError(NAME, f"a line of over {LONGEST >> 10} kB is no path; nothing after it is read")
            return
        if chunk:
            chunk = stream.read1(_CHUNK)
            rest += chunk
