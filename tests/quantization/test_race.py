"""Racing with a clock of our own: ratios, intervals and early stops are then what arithmetic says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgecnn.quantization import race as module
from edgecnn.quantization.race import Speed, race, speed_of

MILLISECOND = 1e-3


class Clock:
    """A clock that only the fake sessions move, and a machine whose pace may change."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pace: Callable[[float], float] = lambda now: 1.0

    def perf_counter(self) -> float:
        return self.now


class Fake:
    """A session whose calls take `seconds` on the clock, more or less by `noise`, and are counted."""

    def __init__(self, clock: Clock, seconds: float, noise: float = 0.0, seed: int = 0) -> None:
        self.clock, self.seconds, self.noise = clock, seconds, noise
        self.random, self.calls, self.ended = np.random.default_rng(seed), 0, 0.0

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        factor = math.exp(self.random.normal(0, self.noise)) if self.noise else 1.0
        self.clock.now += self.seconds * factor * self.clock.pace(self.clock.now)
        self.ended = self.clock.now
        return {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=found.perf_counter))
    return found


def test_exact_times_give_exact_ratios(clock: Clock) -> None:
    """Without noise ratio, both ends and microseconds are those of the sessions, whatever the order they came in."""
    sessions = {
        "half": Fake(clock, MILLISECOND / 2), "float": Fake(clock, MILLISECOND), "slow": Fake(clock, 3 * MILLISECOND),
    }  # fmt: skip
    found = race(sessions, "float", {}, seconds=0.1)
    assert set(found) == {"half", "slow"}
    for name, ratio in (("half", 0.5), ("slow", 3.0)):
        speed = found[name]
        assert (speed.ratio, speed.low, speed.high) == pytest.approx((ratio, ratio, ratio))
        assert (speed.p50_us, speed.reference_us) == pytest.approx((1000 * ratio, 1000))
        assert speed.rounds == 25


def test_the_interval_holds_the_truth_under_noise(clock: Clock) -> None:
    """Of 150 races with noisy calls at least nine in ten intervals hold the true ratio, and they are no wider than need be."""
    held, widths = 0, []
    for seed in range(150):
        sessions = {
            "float": Fake(clock, MILLISECOND, 0.1, seed), "quantized": Fake(clock, 0.7 * MILLISECOND, 0.1, 1000 + seed),
        }  # fmt: skip
        speed = race(sessions, "float", {}, seconds=0.1)["quantized"]
        held += speed.low <= 0.7 <= speed.high
        widths.append(speed.high - speed.low)
    assert held >= 135
    assert np.median(widths) < 0.1


def test_a_machine_that_slows_down_changes_no_ratio(clock: Clock) -> None:
    """Since candidates take turns, a machine three times slower for the second half slows all alike."""
    clock.pace = lambda now: 1.0 if now < 0.15 else 3.0
    sessions = {"float": Fake(clock, MILLISECOND), "quantized": Fake(clock, MILLISECOND / 2)}
    speed = race(sessions, "float", {}, seconds=0.2)["quantized"]
    assert clock.now > 0.3
    assert speed.ratio == pytest.approx(0.5)
    assert speed.low >= 0.5 / 3
    assert speed.high <= 0.5 * 3


def test_ranks_of_the_interval_hold_the_median_at_95_percent() -> None:
    """For every number of rounds the chance that the true median lies between the ranks is 0.95 or more, by scipy."""
    for n in range(12, 2001):
        found = speed_of([float(rank) for rank in range(1, n + 1)], [1.0] * n)
        # The median lies between ranks i and j if from i to j - 1 of n rounds fall below it.
        low, high = int(found.low), int(found.high)
        covered = stats.binom.cdf(high - 1, n, 0.5) - stats.binom.cdf(low - 1, n, 0.5)
        assert covered >= 0.95
        assert covered < 0.994
        assert found.ratio == (n + 1) / 2


def test_nobody_always_runs_behind_the_same_neighbour(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order shifts by one each round, so that each takes every place as often as the others."""
    order: list[str] = []

    def round_of(session: Fake, feeds: Mapping[str, Any]) -> float:
        order.append(names[id(session)])
        return session.seconds

    sessions = {name: Fake(clock, MILLISECOND) for name in ("one", "two", "float")}
    names = {id(session): name for name, session in sessions.items()}
    monkeypatch.setattr(module, "_round", round_of)
    race(sessions, "float", {}, seconds=0)
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert len(rounds) == 12
    assert all(sorted(each) == sorted(sessions) for each in rounds)
    for place in range(3):
        assert [each[place] for each in rounds].count("float") == 4


def test_only_rounds_of_both_are_compared() -> None:
    """A candidate that stopped early is held against the rounds it took part in, not against later ones."""
    found = speed_of([2.0] * 12, [1.0] * 12 + [100.0] * 50)
    assert (found.ratio, found.low, found.high, found.rounds) == (2.0, 2.0, 2.0, 12)
    assert found.reference_us == 1e6


def test_the_beaten_stop_and_the_reference_runs_on(clock: Clock) -> None:
    """Whom `beaten` names stops after that block of 12 rounds; the others and the reference go on to the end."""
    sessions = {name: Fake(clock, MILLISECOND) for name in ("early", "float", "late", "never")}
    seen: list[dict[str, Speed]] = []

    def beaten(name: str, speeds: Mapping[str, Speed]) -> bool:
        seen.append(dict(speeds))
        return name == "early" or (name == "late" and speeds["late"].rounds >= 24)

    found = race(sessions, "float", {}, seconds=0.4, beaten=beaten)
    assert {name: speed.rounds for name, speed in found.items()} == {"early": 12, "late": 24, "never": 100}
    calls = {name: session.calls for name, session in sessions.items()}
    assert calls["early"] < calls["late"] < calls["never"]
    assert calls["float"] == pytest.approx(calls["never"], rel=0.02)  # a round is as many calls as fit
    assert sessions["early"].ended < sessions["late"].ended < sessions["float"].ended
    assert all(set(speeds) == set(sessions) for speeds in seen)
    assert all(speeds["float"].ratio == 1 for speeds in seen)


def test_the_reference_is_never_asked_about(clock: Clock) -> None:
    """`beaten` gets every candidate that still runs and not the reference."""
    asked: list[str] = []

    def beaten(name: str, speeds: Mapping[str, Speed]) -> bool:
        asked.append(name)
        return False

    race({"float": Fake(clock, MILLISECOND), "one": Fake(clock, MILLISECOND)}, "float", {}, 0.1, beaten)
    assert set(asked) == {"one"}


def test_nobody_runs_alone(clock: Clock) -> None:
    """Once all candidates are beaten the race is over, for the reference too."""
    sessions = {"float": Fake(clock, MILLISECOND), "one": Fake(clock, MILLISECOND)}
    found = race(sessions, "float", {}, seconds=4, beaten=lambda name, speeds: True)
    assert found["one"].rounds == 12
    assert sessions["float"].calls == sessions["one"].calls


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 12), (0.048, 12), (0.2, 50), (1000.0, 2000)])
def test_rounds_are_bounded_at_both_ends(seconds: float, rounds: int, clock: Clock) -> None:
    """No race is shorter than a block, nor longer than 2,000 rounds; between, it takes as long as it was given."""
    sessions = {"float": Fake(clock, 5 * MILLISECOND), "one": Fake(clock, 5 * MILLISECOND)}
    assert race(sessions, "float", {}, seconds)["one"].rounds == rounds


def test_a_call_longer_than_a_round_is_timed_three_times(clock: Clock) -> None:
    """A session slower than a round's four milliseconds runs once untimed and three times timed each round."""
    sessions = {"float": Fake(clock, 1.0), "one": Fake(clock, 0.5)}
    found = race(sessions, "float", {}, seconds=0.01)["one"]
    assert found.ratio == pytest.approx(0.5)
    assert sessions["one"].calls == 3 + 4 * 12
