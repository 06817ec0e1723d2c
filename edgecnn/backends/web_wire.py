"""Messages between Python and JavaScript: lengths, a JSON header, and the tensors' raw bytes behind it.

`edgecnn/backends/web/wire.mjs` is the other end.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from edgecnn.backends.base import Array, Tensors

# Bytes of the header and of all tensors together, little-endian.
PREFIX = struct.Struct("<IQ")
Header = dict[str, Any]


class Link(Protocol):
    """A way to one JavaScript process that answers each message with one message."""

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Send a message and wait for its answer, or raise a BackendError."""

    def close(self) -> None:
        """End the process and remove what it has left; a second call does nothing."""


def pack(header: Header, tensors: Mapping[str, Array]) -> bytes:
    """Write a message; the tensors come in the order and with the dtypes that the header's `tensors` lists."""
    listed = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in tensors.items()]
    text = json.dumps({**header, "tensors": listed}).encode()
    size = sum(array.nbytes for array in tensors.values())
    return b"".join([PREFIX.pack(len(text), size), text, *(array.tobytes() for array in tensors.values())])


def unpack(message: bytes) -> tuple[Header, Tensors]:
    """Read a message into its header and tensors; the arrays are the caller's own.

    Raises:
        ValueError: it is cut short, or the tensors are not as long as the header says.
    """
    length, size = PREFIX.unpack_from(message)
    start = PREFIX.size + length
    if len(message) != start + size:
        raise ValueError(f"a message of {len(message)} bytes says that it has {start + size}")
    header: Header = json.loads(message[PREFIX.size : start])
    tensors: Tensors = {}
    for entry in header.pop("tensors"):
        count = int(np.prod(entry["shape"], dtype=np.int64))
        array = np.frombuffer(message, np.dtype(entry["dtype"]), count, start)
        tensors[entry["name"]] = array.reshape(entry["shape"]).copy()
        start += array.nbytes
    if start != len(message):
        raise ValueError(f"{len(message) - start} bytes of a message belong to no tensor")
    return header, tensors
