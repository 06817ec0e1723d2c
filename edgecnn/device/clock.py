"""The machine's clock: is it set, and does it count time finely enough to measure with?"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from edgecnn.spec import Frozen

_UNSYNCHRONIZED = 0x40  # STA_UNSYNC of <sys/timex.h>
_SIZE_OF_TIMEX = 208  # bytes, on 64-bit Linux
_AT_STATUS = 40
_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


class Clock(Frozen, frozen=True):
    """What time it is here (UTC), whether the kernel takes that for synchronized, and what time is counted by.

    `resolution_ns` is the shortest step seen of the counter that latencies are read from; None is not known.
    """

    utc: str
    synchronized: bool | None
    source: str | None
    resolution_ns: int


def read_clock(source: Path = _SOURCE) -> Clock:
    """Look at the clock."""
    try:
        counted = source.read_text().strip()
    except OSError:
        counted = None
    return Clock(
        utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        synchronized=_synchronized(),
        source=counted,
        resolution_ns=_resolution(),
    )


def _synchronized() -> bool | None:
    """Ask the kernel (adjtimex(2), which changes nothing when no mode is set)."""
    buffer = ctypes.create_string_buffer(_SIZE_OF_TIMEX)
    try:
        done = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if done < 0:
        return None
    return not int.from_bytes(buffer.raw[_AT_STATUS : _AT_STATUS + 4], "little") & _UNSYNCHRONIZED


def _resolution() -> int:
    steps = []
    for _ in range(100):
        first = last = time.perf_counter_ns()
        while last == first:
            last = time.perf_counter_ns()
        steps.append(last - first)
    return min(steps)
