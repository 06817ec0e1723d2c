"""Latency of several sessions, interleaved, so that the machine's drift touches all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgecnn.backends.base import Array, Session
from edgecnn.errors import UsageError
from edgecnn.spec import Frozen

_WARMUP_CALLS = 10
_WARMUP_SECONDS = 0.1
_ROUND_SECONDS = 0.02


class Latency(Frozen, frozen=True):
    """Microseconds a call, over all `n` timed calls: nothing is trimmed.

    `first_us` is the first call after loading and `warmup_calls` those after it that were not counted.
    `images_per_second` is the batch over the median. `round_spread` is the interquartile range of the rounds'
    medians over their median: how steady the machine was.
    """

    n: int
    batch: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    mean_us: float
    first_us: float
    warmup_calls: int
    images_per_second: float
    round_spread: float
    round_medians_us: tuple[float, ...]


class Ratio(Frozen, frozen=True):
    """The p50 of one candidate over another's, round by round: the median and the quartiles."""

    median: float
    low: float
    high: float


def measure_latency(
    sessions: Mapping[str, Session], feeds: Mapping[str, Array], seconds: float = 2.0
) -> dict[str, Latency]:
    """Time `seconds` of calls for each session, in short rounds that take turns and change their order.

    Raises:
        UsageError: there is nothing to measure, or no time to do it in.
    """
    if not sessions or seconds <= 0:
        raise UsageError("bench needs at least one session and more than 0 seconds")
    batch = len(next(iter(feeds.values())))
    first = {name: _call(session, feeds) for name, session in sessions.items()}
    warmups = {name: _warm_up(session, feeds) for name, session in sessions.items()}
    rounds: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in sessions}
    order = list(sessions)
    for _ in range(max(8, round(seconds / _ROUND_SECONDS))):
        for name in order:
            rounds[name].append(_round(sessions[name], feeds))
        order = order[1:] + order[:1]
    return {name: _summarise(rounds[name], batch, first[name], warmups[name]) for name in sessions}


def ratio(candidate: Latency, reference: Latency) -> Ratio:
    """Compare two latencies of one measurement, round by round."""
    values = np.array(candidate.round_medians_us) / np.array(reference.round_medians_us)
    low, median, high = np.percentile(values, [25, 50, 75])
    return Ratio(median=float(median), low=float(low), high=float(high))


def _call(session: Session, feeds: Mapping[str, Array]) -> float:
    start = time.perf_counter_ns()
    session.run(feeds)
    return (time.perf_counter_ns() - start) / 1e3


def _warm_up(session: Session, feeds: Mapping[str, Array]) -> int:
    end, calls = time.perf_counter() + _WARMUP_SECONDS, 0
    while calls < _WARMUP_CALLS or time.perf_counter() < end:
        session.run(feeds)
        calls += 1
    return calls


def _round(session: Session, feeds: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    session.run(feeds)  # the other candidates have just had the caches
    while not times or time.perf_counter() < end:
        times.append(_call(session, feeds))
    return np.array(times)


def _summarise(rounds: list[npt.NDArray[np.float64]], batch: int, first: float, warmups: int) -> Latency:
    times = np.concatenate(rounds)
    medians = np.array([np.median(one) for one in rounds])
    p50, p90, p99 = (float(np.percentile(times, share, method="inverted_cdf")) for share in (50, 90, 99))
    low, middle, high = np.percentile(medians, [25, 50, 75])
    return Latency(
        n=len(times),
        batch=batch,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        max_us=float(times.max()),
        mean_us=float(times.mean()),
        first_us=first,
        warmup_calls=warmups,
        images_per_second=batch / p50 * 1e6,
        round_spread=float((high - low) / middle),
        round_medians_us=tuple(float(value) for value in medians),
    )
