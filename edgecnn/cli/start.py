"""What makes a short command quick to start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Import and load without looking for garbage.

    All of it stays: going over it again and again takes 6 % of a whole `edgecnn predict BUNDLE one.png`.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
