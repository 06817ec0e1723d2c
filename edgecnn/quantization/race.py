"""Latency of many candidates against a reference: measured in turns, and those that are clearly beaten stop early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.quantization.yardstick import Watched
from edgecnn.spec import Frozen

Array = npt.NDArray[Any]
_ROUND_SECONDS = 0.004
_WARMUP_CALLS = 3
_CALLS = 3  # in a round, at least
_BLOCK = 12  # rounds between two looks at who is beaten
_LONGEST = 2000  # rounds, however fast a candidate is


class Speed(Frozen, frozen=True):
    """The latency of a candidate over the reference's: the median of the rounds and a 95 % interval for it.

    `p50_us` is the median of the candidate's rounds in microseconds a call.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    p50_us: float
    reference_us: float


def race(
    sessions: Mapping[str, Watched],
    reference: str,
    feeds: Mapping[str, Array],
    seconds: float,
    beaten: Callable[[str, Mapping[str, Speed]], bool] = lambda name, speeds: False,
) -> dict[str, Speed]:
    """Time every session in short rounds that take turns, for about `seconds` a candidate.

    After each block of rounds those that `beaten` names, given everybody's speed so far, stop. The reference runs to
    the end, since every ratio is of the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        for _ in range(_WARMUP_CALLS):
            session.run(feeds)
    running = list(sessions)
    rounds = min(_LONGEST, max(_BLOCK, math.ceil(seconds / _ROUND_SECONDS)))
    for number in range(1, rounds + 1):
        for name in running:
            times[name].append(_round(sessions[name], feeds))
        running = running[1:] + running[:1]
        if number % _BLOCK == 0 and number < rounds:
            speeds = {name: speed_of(times[name], times[reference]) for name in sessions}
            running = [name for name in running if name == reference or not beaten(name, speeds)]
            if running == [reference]:
                break
    return {name: speed_of(times[name], times[reference]) for name in sessions if name != reference}


def speed_of(candidate: list[float], reference: list[float]) -> Speed:
    """Compare the rounds that both took part in; the interval is that of a median by order statistics."""
    n = min(len(candidate), len(reference))
    ratios = np.sort(np.array(candidate[:n]) / np.array(reference[:n]))
    # The number of rounds below the true median is binomial: normal approximation, 1.96 standard deviations.
    reach = math.ceil(1.96 * math.sqrt(n) / 2)
    middle = n // 2
    return Speed(
        ratio=float(np.median(ratios)),
        low=float(ratios[max(0, (n - 1) // 2 - reach)]),
        high=float(ratios[min(n - 1, middle + reach)]),
        rounds=n,
        p50_us=float(np.median(candidate)) * 1e6,
        reference_us=float(np.median(reference[:n])) * 1e6,
    )


def _round(session: Watched, feeds: Mapping[str, Array]) -> float:
    """Time calls for a few milliseconds, at least three, and give the fastest, in seconds.

    Whatever else runs on the machine only ever adds to a call, and where it takes a time slice it adds ten times over:
    a median of few calls would measure the neighbours.
    """
    session.run(feeds)  # the other candidates have just had the caches
    taken: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while len(taken) < _CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(feeds)
        taken.append(time.perf_counter() - start)
    return min(taken)
