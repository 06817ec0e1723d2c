"""Pipes with a deadline: all that is to be written or read, or a TimeoutError."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


def write(descriptor: int, data: bytes, until: Callable[[], float]) -> None:
    """Write all of it to a descriptor that does not block; `until` is asked before each part, by the monotonic clock.

    Raises:
        TimeoutError: nothing could be written in time.
        BrokenPipeError: nobody reads any more.
    """
    rest = memoryview(data)
    while rest:
        wait(descriptor, select.POLLOUT, until())
        rest = rest[os.write(descriptor, rest) :]


def read(descriptor: int, count: int, until: float) -> bytes:
    """Read so many bytes.

    Raises:
        TimeoutError: they have not all come in time.
        EOFError: they never will.
    """
    parts, missing = [], count
    while missing:
        wait(descriptor, select.POLLIN, until)
        part = os.read(descriptor, min(missing, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def wait(descriptor: int, event: int, until: float) -> None:
    """Wait for an event of `select.poll`.

    Raises:
        TimeoutError: there was none in time.
    """
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError
