"""Racing on planted times: who wins, who stops, and that ties, drift and outliers decide nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy import stats

from edgecnn.device import racing
from edgecnn.device.racing import DELTA, FIRST_LOOK, Race, Runner, compare, race


class Machine:
    """A machine on which each candidate takes its planted time, moved by noise and by what `weather` says of the moment."""

    def __init__(
        self,
        costs: Mapping[str, float],
        seed: int = 0,
        noise: float = 0.05,
        weather: Callable[[float, int], float] = lambda now, call: 1.0,
    ) -> None:
        self.costs, self.noise, self.weather = costs, noise, weather
        self.rng = np.random.default_rng(seed)
        self.now, self.calls = 0.0, list[str]()

    def clock(self) -> float:
        return self.now

    def sample(self, name: str) -> float:
        taken = self.costs[name] * math.exp(self.rng.normal(0, self.noise)) * self.weather(self.now, len(self.calls))
        self.calls.append(name)
        self.now += taken
        return taken


def run(machine: Machine, seconds: float = 1e6, seed: int = 0) -> Race:
    return race(list(machine.costs), machine.sample, seconds, machine.clock, seed=seed)


def stopped(found: Race) -> dict[str, str]:
    """Give the reasons by name."""
    return {runner.name: runner.why or "" for runner in found.runners if runner.stopped is not None}


def test_the_fastest_wins_and_the_slowest_stops_first() -> None:
    """Of five the planted fastest wins, all others but the default stop as slower, and the one that is far off stops first."""
    machine = Machine({"default": 1.0, "best": 0.85, "close": 0.90, "slow": 1.3, "awful": 5.0})
    found = run(machine)
    assert (found.winner, found.complete) == ("best", True)
    why = stopped(found)
    assert set(why) == {"close", "slow", "awful"}
    assert all(reason.startswith("slower: ") for reason in why.values())
    rounds = {runner.name: len(runner.times) for runner in found.runners}
    assert rounds["awful"] <= rounds["slow"] <= rounds["close"] <= rounds["best"] == rounds["default"] == found.rounds
    assert rounds["awful"] < rounds["close"]


def test_stopping_saves_the_time_of_the_losers() -> None:
    """With twenty candidates far off, most of the calls are not theirs."""
    machine = Machine({"default": 1.0, "best": 0.97} | {f"slow{index}": 2.0 for index in range(20)})
    found = run(machine)
    assert found.winner == "best"
    slow = sum(name.startswith("slow") for name in machine.calls)
    assert slow < 20 * found.rounds / 2
    assert all(len(runner.times) < found.rounds for runner in found.runners[2:])


def test_the_default_stays_to_the_end_even_as_the_slowest() -> None:
    """A default three times slower than everything else takes part in every round."""
    found = run(Machine({"default": 3.0, "a": 1.0, "b": 1.2}))
    assert found.winner == "a"
    assert found.runners[0].stopped is None
    assert len(found.runners[0].times) == found.rounds


def test_of_equals_the_default_is_chosen() -> None:
    """Candidates of the same speed stop as alike, nobody is called slower, and the first of them wins."""
    for seed in range(20):
        found = run(Machine({"default": 1.0, "a": 1.0, "b": 1.0}, seed, noise=0.02), seed=seed)
        assert found.winner == "default", seed
        assert found.complete
        assert all(reason.startswith("alike: ") for reason in stopped(found).values())


def test_of_equals_the_one_nearest_the_default_is_chosen() -> None:
    """Two that are equally fast, and faster than the default: the one that stands earlier wins."""
    for seed in range(20):
        found = run(Machine({"default": 1.0, "near": 0.8, "far": 0.8}, seed, noise=0.02), seed=seed)
        assert found.winner == "near", seed


def test_wrong_decisions_are_as_rare_as_promised() -> None:
    """Over 200 races of six equals hardly ever is one stopped as slower: no more often than DELTA, by a binomial test."""
    wrong = 0
    for seed in range(200):
        machine = Machine(dict.fromkeys("abcdef", 1.0), seed, noise=0.3)
        found = run(machine, seconds=6 * 60, seed=seed)
        wrong += any(reason.startswith("slower") for reason in stopped(found).values())
    assert stats.binomtest(wrong, 200, DELTA, alternative="greater").pvalue > 0.01


def test_the_true_winner_survives_close_races() -> None:
    """Of neighbours a few per cent apart the fastest is stopped as slower no more often than promised."""
    lost = 0
    for seed in range(60):
        machine = Machine({"default": 1.0, "best": 0.94, "next": 0.96}, seed, noise=0.1)
        lost += stopped(run(machine, seconds=1500, seed=seed)).get("best", "").startswith("slower")
    assert stats.binomtest(lost, 60, DELTA, alternative="greater").pvalue > 0.01


def test_drift_of_the_machine_decides_nothing() -> None:
    """While the machine becomes many times slower the ratio stays what was planted, and the winner the same."""
    machine = Machine({"default": 1.0, "best": 0.9}, noise=0.01, weather=lambda now, call: 1 + call / 100)
    found = run(machine)
    assert found.winner == "best"
    default, best = (runner.times for runner in found.runners)
    assert max(best) > min(default), "without pairs by rounds the two would overlap"
    steady = Machine({"default": 1.0, "best": 1.0}, noise=0.01, weather=lambda now, call: 1 + call / 100)
    assert run(steady).winner == "default"
    longer = run(machine, seconds=1.0)
    between = compare(longer.runners[1].times, longer.runners[0].times)
    assert between.low < 0.9 < between.high


def test_a_place_in_the_round_is_no_advantage() -> None:
    """Where whoever comes first in a round is a fifth slower, equals still are equals: the order is drawn afresh."""
    for seed in range(10):
        machine = Machine({"default": 1.0, "a": 1.0, "b": 1.0}, seed, noise=0.02)
        machine.weather = lambda now, call: 1.2 if call % 3 == 0 else 1.0
        found = run(machine, seconds=120, seed=seed)
        assert not [reason for reason in stopped(found).values() if reason.startswith("slower")]


def test_outliers_decide_nothing() -> None:
    """A tenth of the calls taking fifty times as long, on whomever they fall, leaves winner and ratio what they are."""
    spikes = np.random.default_rng(5).random(100_000) < 0.1
    machine = Machine(
        {"default": 1.0, "best": 0.9, "slow": 1.2}, weather=lambda now, call: 50.0 if spikes[call] else 1.0
    )
    found = run(machine)
    assert found.winner == "best"
    between = compare(found.runners[2].times, found.runners[0].times)
    assert between.low < 1.2 < between.high < 2


def test_one_outlier_of_the_best_does_not_stop_it() -> None:
    """A single call a thousand times slower does not throw the fastest out."""
    machine = Machine({"default": 1.0, "best": 0.8})
    machine.weather = lambda now, call: 1000.0 if call == 1 else 1.0
    assert run(machine).winner == "best"


def test_every_round_calls_each_that_runs_once_in_changing_order() -> None:
    """Before anyone stops, each round has every candidate once, and the rounds do not all have the same order."""
    machine = Machine(dict.fromkeys("abcd", 1.0))
    run(machine, seconds=0.001)
    rounds = [machine.calls[at : at + 4] for at in range(0, len(machine.calls), 4)]
    assert len(rounds) == FIRST_LOOK
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 6


def test_time_that_runs_out_is_told() -> None:
    """Where the time is too short to decide, the race says so and takes the fastest so far."""
    found = run(Machine({"default": 1.0, "a": 0.97, "b": 0.95}, noise=0.05), seconds=45)
    assert not found.complete
    assert found.winner in ("a", "b")
    assert found.seconds >= 45


def test_a_default_without_rivals_is_timed_and_wins() -> None:
    """One candidate alone runs as many rounds as it takes to have a median, and no more."""
    machine = Machine({"default": 1.0})
    found = run(machine)
    assert (found.winner, found.rounds, found.complete) == ("default", FIRST_LOOK, True)
    assert len(machine.calls) == FIRST_LOOK


def test_who_stops_is_told_once_and_at_once() -> None:
    """The listener hears of every candidate that stops, once, with its reason and the time on the clock."""
    machine, heard = Machine({"default": 1.0, "a": 2.0, "b": 3.0}), list[tuple[str, float]]()

    def tell(runner: Runner) -> None:
        heard.append((runner.name, machine.now))

    found = race(list(machine.costs), machine.sample, 1e6, machine.clock, tell)
    assert sorted(name for name, _ in heard) == ["a", "b"]
    assert {runner.name: runner.stopped for runner in found.runners if runner.stopped} == dict(heard)


@pytest.mark.parametrize(("n", "alpha"), list(itertools.product([1, 5, 6, 12, 33, 100, 777], [0.2, 0.05, 1e-3, 1e-6])))
def test_the_interval_is_scipys_binomial_one(n: int, alpha: float) -> None:
    """The rank is the largest whose lower tail of the binomial, by scipy, is within half of alpha."""
    rank = racing._rank(n, alpha)
    assert 0 <= rank <= n // 2
    if rank:
        assert stats.binom.cdf(rank - 1, n, 0.5) <= alpha / 2 * (1 + 1e-9)
    if rank < n // 2:
        assert stats.binom.cdf(rank, n, 0.5) > alpha / 2 * (1 - 1e-9)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of skewed ratios with a known median 95 % intervals hold it in at least about 95 of 100 trials."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = compare(list(np.exp(rng.normal(0.1, 0.4, 51) ** 3)), [1.0] * 51)
        held += found.low <= math.exp(0.1**3) <= found.high
    assert stats.binomtest(held, 400, 0.95, alternative="less").pvalue > 0.01


def test_too_few_rounds_have_no_interval() -> None:
    """Four rounds cannot speak for 95 %: the interval is everything, and nobody is beaten by it."""
    found = compare([2.0] * 4, [1.0] * 4)
    assert (found.median, found.low, found.high) == (2.0, 0.0, math.inf)


def test_only_rounds_that_both_ran_are_compared() -> None:
    """A candidate that stopped early is compared over its own rounds alone."""
    found = compare([2.0] * 10, [1.0] * 10 + [100.0] * 30)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
