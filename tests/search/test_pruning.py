"""Trials that are given up, and trials that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from search.play import Acted, play_search, usual_curve

from edgecnn.data import DataOptions
from edgecnn.errors import ExportError, TrainingError
from edgecnn.exporter import Exported
from edgecnn.search import run, study, trial
from edgecnn.search.space import Settings
from edgecnn.search.trial import Plan, is_behind


@pytest.mark.parametrize(
    ("curve", "peers", "behind"),
    [
        ([0.1] * 4, [[0.5] * 10] * 4, True),
        ([0.1] * 4, [[0.5] * 10] * 3, False),  # too few peers
        ([0.1] * 3, [[0.5] * 10] * 4, False),  # in the warm-up of three in ten
        ([0.1] * 10, [[0.5] * 10] * 4, False),  # it has finished
        ([0.6, 0.1, 0.1, 0.1], [[0.5] * 10] * 4, False),  # its best counts
        ([0.5] * 4, [[0.5] * 10] * 4, False),  # as good as the median
        ([0.5] * 4, [[0.4] * 3 + [0.9] * 7] * 2 + [[0.4] * 10] * 2, True),  # below a median of 0.65
        ([0.5] * 4, [[0.4] * 4 + [0.9] * 6] * 4, False),  # what peers came to later does not count
        ([0.1] * 4, [[0.5] * 3] * 4, False),  # peers that did not get so far
    ],
)
def test_who_is_behind(curve: list[float], peers: list[list[float]], behind: bool) -> None:
    """A trial is given up by the median of its peers' best at the same epoch, and only when that says something."""
    assert is_behind(curve, peers, epochs=10) is behind


def test_a_planted_bad_trial_is_given_up(acted: Acted, tmp_path: Path) -> None:
    """A large net that learns nothing is pruned after the warm-up; small ones, as bad, have no peers and are not."""
    play_search(tmp_path, 7, epochs=10, name="search")
    opened = study.open_study(tmp_path, None, "search", 0)
    for width, depth in ((2.0, 3), (0.25, 1)):
        opened.enqueue_trial({"lr": 0.0123, "width": width, "depth": depth, "image_size": 8, "augment": "none"})

    def planted(settings: Settings, epochs: int) -> list[float]:
        return [0.1] * epochs if settings.lr == 0.0123 else usual_curve(settings, epochs)

    acted.curve = planted
    report = play_search(tmp_path, 3, epochs=10)
    large, small, other = report.rows[-3:]
    assert (large.state, large.epochs, large.int8) == ("pruned", 4, None)
    assert "behind" in str(large.reason)
    assert (small.state, small.epochs) == ("complete", 10)
    assert other.settings != large.settings
    assert not (tmp_path / "trials" / f"{large.number:03d}").exists()


def test_without_pruning_the_bad_trial_finishes(acted: Acted, tmp_path: Path) -> None:
    """With pruning off a trial that is far behind goes on to its end."""
    play_search(tmp_path, 6, epochs=10)
    acted.curve = lambda settings, epochs: [0.1] * epochs
    plan = Plan(source="digits", options=DataOptions(), epochs=0, prune=False)
    assert run.search(plan, tmp_path, 2, epochs=10).rows[-1].state == "complete"


def test_a_failing_trial_does_not_end_the_study(acted: Acted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failed export fails its trial, with the reason kept; where all fail the first reason is the error."""
    whole, calls = acted.export, []

    def broken(work: Path, *rest: Any) -> Exported:
        calls.append(work)
        if len(calls) == 2:
            raise ExportError("nothing came out of it")
        return whole(work, *rest)

    monkeypatch.setattr(trial, "export_int8", broken)
    report = play_search(tmp_path / "s", 3)
    assert [row.state for row in report.rows] == ["complete", "failed", "complete"]
    assert report.rows[1].reason == "nothing came out of it"

    def always(*given: Any) -> Exported:
        raise ExportError("never")

    monkeypatch.setattr(trial, "export_int8", always)
    with pytest.raises(TrainingError, match="the first: never"):
        play_search(tmp_path / "none", 2)
