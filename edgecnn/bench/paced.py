"""Latency at a camera's rate: between frames the process sleeps, so that caches go cold and the clock may come down."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecnn.backends.base import Array, Session
from edgecnn.bench.energy import Energy, EnergyMeter
from edgecnn.bench.latency import Latency, measure_latency
from edgecnn.device.heat import SYSTEM
from edgecnn.errors import UsageError
from edgecnn.spec import Frozen

FLAT_SHARE = 0.25  # of the seconds, before and after: flat out
FEWEST = 10  # frames


class Paced(Frozen, frozen=True):
    """One candidate at a camera's rate against itself flat out; times are microseconds of one run.

    `frames` were due: of these `dropped` were never looked at, since a newer one was there when the last run ended, and
    `late` answered only after the next frame was due. `wake_p99_us` is how late the process woke up for a frame.
    `flat_p50_us` is from before and after the paced part, `ratio` the paced p50 over it.
    """

    backend: str
    hz: float
    frames: int
    dropped: int
    late: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    wake_p50_us: float
    wake_p99_us: float
    flat_p50_us: float
    flat_p99_us: float
    ratio: float
    energy: Energy


def measure_paced(
    name: str, session: Session, feeds: Mapping[str, Array], hz: float, seconds: float, system: Path = SYSTEM
) -> Paced:
    """Run once for each frame of `seconds` at `hz`, and flat out before and after; `system` is /sys but in tests.

    Raises:
        UsageError: fewer than ten frames fall into the time.
    """
    frames = math.floor(hz * seconds + 1e-9)
    if frames < FEWEST:
        raise UsageError(
            f"{seconds:g} s at {hz:g} Hz are {frames} frames, and {FEWEST} are needed: use a longer --seconds"
        )
    before = _flat(session, feeds, seconds)
    meter, start = EnergyMeter(system), time.perf_counter()
    runs, wakes, dropped, late = _frames(session, feeds, 1 / hz, frames)
    energy = meter.total(time.perf_counter() - start, len(runs))
    after = _flat(session, feeds, seconds)
    p50, p90, p99 = (float(np.percentile(runs, share, method="inverted_cdf")) for share in (50, 90, 99))
    flat = (before.p50_us + after.p50_us) / 2
    return Paced(
        backend=name,
        hz=hz,
        frames=frames,
        dropped=dropped,
        late=late,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        max_us=max(runs),
        wake_p50_us=float(np.percentile(wakes, 50, method="inverted_cdf")),
        wake_p99_us=float(np.percentile(wakes, 99, method="inverted_cdf")),
        flat_p50_us=flat,
        flat_p99_us=max(before.p99_us, after.p99_us),
        ratio=p50 / flat,
        energy=energy,
    )


def _flat(session: Session, feeds: Mapping[str, Array], seconds: float) -> Latency:
    return measure_latency({"flat": session}, feeds, FLAT_SHARE * seconds)["flat"]


def _frames(
    session: Session, feeds: Mapping[str, Array], period: float, frames: int
) -> tuple[list[float], list[float], int, int]:
    """Answer frames as they come; while a run lasts only the newest is kept, as a camera's buffer does.

    Gives the runs' and the wake-ups' microseconds, and how many frames were dropped and answered late.
    """
    runs, wakes, dropped, late = list[float](), list[float](), 0, 0
    start, number = time.perf_counter() + period, 0
    while number < frames:
        due, now = start + number * period, time.perf_counter()
        if now < due:
            time.sleep(due - now)
            wakes.append((time.perf_counter() - due) * 1e6)
        begun = time.perf_counter_ns()
        session.run(feeds)
        runs.append((time.perf_counter_ns() - begun) / 1e3)
        done = time.perf_counter()
        late += done > due + period
        newest = math.floor((done - start) / period)  # the last frame that has come by now
        following = max(number + 1, min(newest, frames))
        dropped += following - number - 1
        number = following
    return runs, wakes or [0.0], dropped, late
