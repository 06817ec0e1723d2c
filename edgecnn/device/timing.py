"""Timing for a race: one round of one session, so that none disturbs the next."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from edgecnn.backends.base import Array, Session

ROUND_SECONDS = 0.005
COLD_SECONDS = 0.002  # a call that takes longer fills the caches itself
_POLL_SECONDS, _LONGEST_SPIN = 0.002, 0.1
_RESTING = 0.2  # share of a core that this process may use while it only waits


def time_round(session: Session, feeds: Mapping[str, Array], settle: bool) -> float:
    """Give the median time of the calls of a few milliseconds, one at least, in seconds.

    The first call does not count where calls are short: others have just had the caches. With `settle` it waits at the
    end until the session's threads, which spin on for many milliseconds, leave the cores to the next one.
    """
    start = time.perf_counter()
    session.run(feeds)
    first = time.perf_counter() - start
    taken = [first] if first > COLD_SECONDS else []
    end = time.perf_counter() + ROUND_SECONDS - (first if taken else 0)
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(feeds)
        taken.append(time.perf_counter() - start)
    if settle:
        wait_for_rest()
    return statistics.median(taken)


def wait_for_rest() -> None:
    """Sleep until this process uses no more than a little of a core, or for a tenth of a second."""
    end = time.perf_counter() + _LONGEST_SPIN
    while time.perf_counter() < end:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(_POLL_SECONDS)
        if time.process_time() - used < _RESTING * (time.perf_counter() - start):
            return
