"""A long run flat out: does the rate hold, and where it does not, what did the machine say meanwhile?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecnn import host
from edgecnn.backends.base import Array, Session
from edgecnn.bench.drift import Drift, judge_drift
from edgecnn.bench.energy import Energy, EnergyMeter
from edgecnn.device.heat import SYSTEM, Heat, read_heat
from edgecnn.errors import UsageError
from edgecnn.spec import Frozen

WINDOWS, SHORTEST = 60, 0.1  # windows in a soak, seconds of one at least
FEWEST = 10  # windows of which something can be said
SHORTEST_SOAK = 1.0
TOO_SHORT = f"a soak takes at least {SHORTEST_SOAK:g} s, and a minute to find heat"
UNDISTURBED = 0.9  # of the processor time that a window had at best
LOW_CLOCK = 0.9  # of the highest rate seen: a clock below it has come down


class Window(Frozen, frozen=True):
    """A stretch of the soak: when it began, in seconds, its rate and latencies, and the machine's state at its end.

    `cpus` is the processor time that this process had over the time that passed: where it falls, others had it.
    """

    start: float
    images_per_second: float
    p50_us: float
    p99_us: float
    cpus: float
    celsius: float | None
    mhz: float | None


class Throttling(Frozen, frozen=True):
    """What speaks for throttling, in words, and what could not be read; temperatures in degrees Celsius."""

    signs: tuple[str, ...]
    not_readable: tuple[str, ...]
    hottest: str | None
    celsius_before: float | None
    celsius_highest: float | None
    mhz_lowest: float | None
    mhz_highest: float | None


class Soak(Frozen, frozen=True):
    """One candidate's soak; `slowest` is the slowest window's rate as a share of the median window's.

    `disturbed` counts the windows in which this process had clearly less of the processor than in its best ones: what slowed
    these down is other work and not heat. `interrupted`: Ctrl-C ended it early, and the windows are those until then.
    """

    backend: str
    seconds: float
    images: int
    windows: tuple[Window, ...]
    drift: Drift
    slowest: float
    disturbed: int
    throttling: Throttling
    energy: Energy
    interrupted: bool = False


def soak(name: str, session: Session, feeds: Mapping[str, Array], seconds: float, system: Path = SYSTEM) -> Soak:
    """Run without a pause for `seconds`, in windows of which each has a rate; `system` is /sys but in tests.

    Ctrl-C after `FEWEST` windows ends it with what they hold.

    Raises:
        UsageError: the time is too short for a trend.
    """
    if seconds < SHORTEST_SOAK:
        raise UsageError(TOO_SHORT)
    batch = len(next(iter(feeds.values())))
    session.run(feeds)
    width = max(SHORTEST, seconds / WINDOWS)
    before, periods = read_heat(system), host.load().throttled_periods
    meter, windows, images = EnergyMeter(system), list[Window](), 0
    start, interrupted = time.perf_counter(), False
    try:
        for number in range(1, int(seconds / width + 0.5) + 1):
            begun, used, times = time.perf_counter(), time.process_time(), list[int]()
            while not times or time.perf_counter() < start + number * width:
                asked = time.perf_counter_ns()
                session.run(feeds)
                times.append(time.perf_counter_ns() - asked)
            images += batch * len(times)
            passed, used = time.perf_counter() - begun, time.process_time() - used
            windows.append(_window(begun - start, passed, used, times, batch, read_heat(system)))
            meter.read()  # the counters begin again, and none of their rounds may be missed
    except KeyboardInterrupt:
        if len(windows) < FEWEST:
            raise
        interrupted = True
    taken = time.perf_counter() - start
    rates = np.array([window.images_per_second for window in windows])
    cpus = np.array([window.cpus for window in windows])
    return Soak(
        backend=name,
        seconds=taken,
        images=images,
        windows=tuple(windows),
        drift=judge_drift(np.array([window.start for window in windows]), rates),
        slowest=float(rates.min() / np.median(rates)),
        disturbed=int(np.sum(cpus < UNDISTURBED * np.percentile(cpus, 90))),
        throttling=_throttling(before, read_heat(system), windows, host.load().throttled_periods - periods),
        energy=meter.total(taken, images),
        interrupted=interrupted,
    )


def _window(start: float, seconds: float, used: float, nanoseconds: list[int], batch: int, heat: Heat) -> Window:
    p50, p99 = np.percentile(np.array(nanoseconds) / 1e3, [50, 99])
    return Window(
        start=start,
        images_per_second=batch * len(nanoseconds) / seconds,
        p50_us=float(p50),
        p99_us=float(p99),
        cpus=used / seconds,
        celsius=heat.celsius,
        mhz=heat.mhz,
    )


def _throttling(before: Heat, after: Heat, windows: list[Window], quota_periods: int) -> Throttling:
    clocks = [window.mhz for window in windows if window.mhz is not None]
    warmth = [window.celsius for window in windows if window.celsius is not None]
    low, high = min(clocks, default=None), max(clocks, default=None)
    slowed = (after.throttle_count or 0) - (before.throttle_count or 0)
    signs = [f"the cores slowed down {slowed} times for heat"] if slowed > 0 else []
    signs += [f"the firmware says: {told}" for told in after.throttled if told not in before.throttled and "since the start" not in told]  # fmt: skip
    if low is not None and high is not None and low < LOW_CLOCK * high:
        signs.append(f"the clock came down to {low:.0f} from {high:.0f} MHz")
    if quota_periods > 0:
        signs.append(f"the cgroup's CPU quota was hit in {quota_periods} periods")
    checks = (
        ("temperature", not warmth),
        ("clock rate", not clocks),
        ("throttle counts", after.throttle_count is None),
    )
    return Throttling(
        signs=tuple(signs),
        not_readable=tuple(what for what, missing in checks if missing),
        hottest=after.hottest,
        celsius_before=before.celsius,
        celsius_highest=max(warmth, default=None),
        mhz_lowest=low,
        mhz_highest=high,
    )
