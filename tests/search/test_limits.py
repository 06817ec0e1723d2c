"""Limits: what is over one is never trained or not on the front, and costs are those of the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from search.play import Acted, play_search

from edgecnn.cli import cli
from edgecnn.errors import UsageError
from edgecnn.nets import NetChoice, build_net, choose_net, measure_cost
from edgecnn.search.space import Limits, Settings, Space
from edgecnn.spec import Preprocess


def _space(sizes: tuple[int, ...] = (8, 32, 50), channels: Any = 3) -> Space:
    return Space(sizes, sizes[-1], Preprocess(height=sizes[-1], width=sizes[-1], channels=channels), 7)


def test_costs_are_those_of_the_network_itself() -> None:
    """Parameters and MACs told before training equal those counted on the torch network at each resolution."""
    space = _space()
    for width, depth, side in ((0.25, 1, 8), (1.0, 2, 32), (1.75, 3, 50)):
        settings = Settings(lr=0.01, width=width, depth=depth, image_size=side, augment="none")
        preprocess = space.seen_at(side)
        config = choose_net(NetChoice(net="edge", width=width, depth=depth), preprocess, 7)
        counted = measure_cost(build_net(config, preprocess, 7), preprocess)
        assert dataclasses.astuple(_cost(space.cost(settings))) == (counted.parameters, counted.macs)


@dataclasses.dataclass
class _Pair:
    parameters: int
    macs: int


def _cost(cost: Any) -> _Pair:
    return _Pair(cost.parameters, cost.macs)


@pytest.mark.parametrize("limits", [Limits(max_macs=400_000), Limits(max_params=20_000)])
def test_what_is_over_a_limit_is_never_trained(limits: Limits, acted: Acted, tmp_path: Path) -> None:
    """Trials over a limit are refused before training, do not count, and the first is the largest one within."""
    report = play_search(tmp_path, 6, limits)
    space = _space((8,), 1)
    space = dataclasses.replace(space, classes=10)
    assert len(acted.trained) == 6
    assert not any(limits.passed(space.cost(one)) for one in acted.trained)
    refused = [row for row in report.rows if row.state == "refused"]
    assert refused
    assert all(row.passed and row.int8 is None and not row.front for row in refused)
    assert len(report.rows) == 6 + len(refused)
    within = [cost for _, cost in space.architectures() if not limits.passed(cost)]
    assert space.cost(acted.trained[0]).macs == max(cost.macs for cost in within)


def test_limits_under_which_nothing_fits_are_told_before_anything(acted: Acted, tmp_path: Path) -> None:
    """Where no network fits the message gives the least that there is, nothing is trained and no folder made."""
    least = min(cost.macs for _, cost in dataclasses.replace(_space((8,), 1), classes=10).architectures())
    with pytest.raises(UsageError, match=f"{least:,} MACs"):
        play_search(tmp_path / "s", limits=Limits(max_macs=least - 1))
    assert not acted.trained
    assert not (tmp_path / "s").exists()


def test_slow_trials_are_not_on_the_front(acted: Acted, tmp_path: Path) -> None:
    """A trial whose int8 file is over the latency limit is marked, and the front is that of the others."""
    limit = 22.0
    report = play_search(tmp_path, 8, Limits(max_latency_us=limit))
    slow = [row for row in report.rows if row.int8 and row.int8.latency_us > limit]
    assert slow
    assert all(row.passed == ("latency",) and not row.front for row in slow)
    assert any(row.front for row in report.rows)


def test_none_fast_enough_is_the_verdict(acted: Acted, tmp_path: Path) -> None:
    """Where every trial is too slow the command says how fast the fastest was and leaves with 3."""
    done = CliRunner().invoke(
        cli, ["search", "digits", "-o", str(tmp_path), "--trials", "2", "--epochs", "2", "--max-latency-ms", "0.001"]
    )
    assert done.exit_code == 3
    assert "the fastest so far takes 0.0" in done.stderr.splitlines()[-1]
    assert "no trial is within the limits" in done.stdout
