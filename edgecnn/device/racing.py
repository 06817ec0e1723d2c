"""Racing: many candidates are timed in turns, and those that are shown to be slower stop, so that time goes to the others.

This is Maron and Moore's Hoeffding race ("Hoeffding Races", NIPS 1993; "The Racing Algorithm", 1997) with two changes that
timing asks for. Times have no bound, which Hoeffding's inequality needs, and outliers; so the interval is that of a median,
by order statistics, whose coverage is the binomial's whatever the distribution. And candidates are compared within a round,
as ratios, so that a machine that becomes slower slows both sides of each; their order in a round is drawn afresh, which
makes it a coin's throw, of two that are alike, which of them meets the better moment. The chance of a wrong decision, over all
pairs and all looks of a race together, stays below `DELTA`, as there.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from edgecnn.spec import Frozen

DELTA = 0.05
TIE = 0.01  # two candidates that differ by less than this are alike
FIRST_LOOK, BLOCK = 12, 4  # rounds
LONGEST = 4000  # rounds


class Interval(Frozen, frozen=True):
    """One candidate's time over another's: the median of the rounds' ratios, and an interval that holds it."""

    median: float
    low: float
    high: float


@dataclass
class Runner:
    """One candidate in a race: its times, a round each, in seconds; when it stopped (seconds from the start) and why."""

    name: str
    times: list[float] = field(default_factory=list)
    stopped: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Race:
    """What a race came to: every runner, in the order given, and who won; `complete` is False where time ran out."""

    runners: tuple[Runner, ...]
    winner: str
    rounds: int
    seconds: float
    complete: bool


def race(
    names: Sequence[str],
    sample: Callable[[str], float],
    seconds: float,
    clock: Callable[[], float],
    tell: Callable[[Runner], None] = lambda runner: None,
    seed: int = 0,
) -> Race:
    """Time candidates round by round, with `sample(name)` in seconds, until one is left besides the first or time is up.

    The first is the default: it stays to the end, so that every other can be compared with it. `names` are in order of
    preference: of two that are alike, within `TIE`, the later one stops. `tell` hears of each that stops.
    """
    runners = [Runner(name) for name in names]
    running, draw, start = list(runners), random.Random(seed), clock()
    number = looks = 0
    next_look = FIRST_LOOK
    while number < FIRST_LOOK or (len(running) > 1 and number < LONGEST and clock() - start < seconds):
        for runner in draw.sample(running, len(running)):
            runner.times.append(sample(runner.name))
        number += 1
        if number < next_look:
            continue
        looks, next_look = looks + 1, number + max(BLOCK, number // 5)
        alpha = DELTA / (max(1, math.comb(len(runners), 2)) * looks * (looks + 1))
        for runner, why in _beaten(running, runners[0], alpha):
            runner.stopped, runner.why = clock() - start, why
            running.remove(runner)
            tell(runner)
        if _decided(running, alpha):
            return Race(tuple(runners), _choose(running).name, number, clock() - start, complete=True)
    return Race(tuple(runners), _choose(running).name, number, clock() - start, complete=len(running) == 1)


def compare(times: Sequence[float], others: Sequence[float], alpha: float = DELTA) -> Interval:
    """Give the ratio of two runners over the rounds that both took part in, with a 1 - alpha interval for its median."""
    n = min(len(times), len(others))
    ratios = sorted(a / b for a, b in zip(times[:n], others[:n], strict=True))
    rank = _rank(n, alpha)
    if not rank:
        return Interval(median=statistics.median(ratios) if ratios else math.nan, low=0.0, high=math.inf)
    return Interval(median=statistics.median(ratios), low=ratios[rank - 1], high=ratios[n - rank])


@lru_cache(maxsize=4096)
def _rank(n: int, alpha: float) -> int:
    """Find the largest k such that the k-th smallest and k-th largest of n enclose the median but for alpha; 0 for none.

    Of n values the number below the median is binomial with a half: David and Nagaraja, "Order Statistics", section 7.1.
    """
    allowed = math.floor(alpha / 2 * (1 << 64)) * (1 << n) >> 64
    below = rank = 0
    while rank < n // 2 and below + math.comb(n, rank) <= allowed:
        below += math.comb(n, rank)
        rank += 1
    return rank


def _leader(running: Sequence[Runner]) -> Runner:
    """Find the fastest: by the ratios to the first, which is in every round."""
    first = running[0].times
    return min(running, key=lambda runner: compare(runner.times, first).median)


def _beaten(running: Sequence[Runner], default: Runner, alpha: float) -> list[tuple[Runner, str]]:
    """Name those that stop: slower than the leader, or, of two that are alike, the less preferred; never the default."""
    leader, found = _leader(running), dict[str, tuple[Runner, str]]()
    for runner in running:
        if runner is leader:
            continue
        ratio = compare(runner.times, leader.times, alpha)
        said = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        if ratio.low > 1:
            found[runner.name] = runner, f"slower: {said} of the time of {leader.name}"
        elif _alike(ratio):
            kept, other = sorted((runner, leader), key=running.index)
            found[other.name] = other, f"alike: {said} between it and {kept.name}"
    return [(runner, why) for runner, why in found.values() if runner is not default]


def _alike(ratio: Interval) -> bool:
    return ratio.low > 1 - TIE and ratio.high < 1 + TIE


def _decided(running: Sequence[Runner], alpha: float) -> bool:
    """Say whether more rounds would change nothing: the default alone is left, or besides it one that differs from it."""
    if len(running) == 1:
        return True
    if len(running) > 2:
        return False
    ratio = compare(running[1].times, running[0].times, alpha)
    return ratio.high < 1 or _alike(ratio)


def _choose(running: Sequence[Runner]) -> Runner:
    """Take the most preferred of those that are as fast as the leader, as far as is known."""
    leader = _leader(running)
    alike = [runner for runner in running if compare(runner.times, leader.times).median <= 1 + TIE]
    return alike[0]
