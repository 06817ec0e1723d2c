"""The front of a study, and how its trials are timed together at the end."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import optuna
import pytest
from search.play import Acted, play_search

from edgecnn.bench import latency
from edgecnn.report.search import plot_front, search_text
from edgecnn.search import run, together
from edgecnn.search.result import Together, pareto_front
from edgecnn.search.space import Limits
from edgecnn.spec import TensorSpec


def _brute_force(accuracy: Any, latency: Any) -> Any:
    at_least = (accuracy[:, None] >= accuracy) & (latency[:, None] <= latency)
    better = (accuracy[:, None] > accuracy) | (latency[:, None] < latency)
    return ~(at_least & better).any(axis=0)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
def test_the_front_is_that_of_brute_force(count: int) -> None:
    """The front equals what comparing every pair gives, with many ties in either respect and in both."""
    chance = np.random.default_rng(count)
    for _ in range(50):
        accuracy = chance.integers(0, 6, count) / 6
        latency = chance.integers(1, 6, count) * 10.0
        assert np.array_equal(pareto_front(list(accuracy), list(latency)), _brute_force(accuracy, latency))


def test_the_front_of_a_study_is_optunas(acted: Acted, tmp_path: Path) -> None:
    """Optuna's own best trials and the brute force mark the same trials; their folders are kept, the others go."""
    report = play_search(tmp_path / "s", 8)
    found = {row.number for row in report.rows if row.front}
    opened = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    done = [row for row in report.rows if row.int8]
    values = np.array([[row.int8.accuracy, row.int8.latency_us] for row in done if row.int8])
    brute = {row.number for row, good in zip(done, _brute_force(values[:, 0], values[:, 1]), strict=True) if good}
    assert found == {one.number for one in opened.best_trials} == brute
    assert 0 < len(found) < 8
    kept = {int(folder.name) for folder in (tmp_path / "s" / "trials").iterdir()}
    assert kept == found
    assert {path.name for path in (tmp_path / "s" / "trials").rglob("*") if path.is_file()} == {
        "int8.onnx", "model.safetensors",
    }  # fmt: skip
    everything = play_search(tmp_path / "all", 3, keep_all=True)
    assert len(list((tmp_path / "all" / "trials").iterdir())) == len(everything.rows) == 3


def test_the_front_is_timed_together_at_the_end(acted: Acted, tmp_path: Path) -> None:
    """Each trial on the front, and no other, gets a second latency; table, picture and limit go by it, the choice does not."""
    report = play_search(tmp_path / "s", 8, Limits(max_latency_us=60))
    front = [row for row in report.rows if row.front]
    assert len(front) > 1
    for row in report.rows:
        assert row.together == (Together(latency_us=100 / (1 + row.number), spread=0, calls=9) if row.front else None)
    assert report.warnings[-1] == "the front was measured together on an unsteady machine: a storm"
    text = search_text(report)
    header, _, *lines = text.splitlines()
    assert "together" in header
    cells = {line.split()[0]: line for line in lines[: len(report.rows)]}
    for row in front:
        assert row.int8 is not None
        assert f" {row.int8.latency_us:.1f} " in cells[str(row.number)]
        assert f" {100 / (1 + row.number):.1f} " in cells[str(row.number)]
        beaten = [
            other.number for other in front
            if other.number > row.number and other.int8 and other.int8.accuracy >= row.int8.accuracy
        ]  # fmt: skip
        told = re.search(rf"^Timed together, trial {row.number} is beaten by (.*)\.$", text, re.MULTILINE)
        assert sorted(map(int, told[1].split(", ")) if told else []) == beaten
        over = f"Timed together, trial {row.number} is over the limit of latency." in text
        assert over is (100 / (1 + row.number) > 60)
    assert "is over the limit of latency" in text, "or the last line above has shown nothing"
    plain = msgspec.structs.replace(report, rows=tuple(msgspec.structs.replace(row, together=None) for row in report.rows))  # fmt: skip
    assert plot_front(report) != plot_front(plain)
    assert "Timed together" not in search_text(plain)


def test_a_front_that_cannot_be_loaded_is_a_warning(
    acted: Acted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a file of the front cannot be loaded the study is reported all the same, with a warning that says so."""
    monkeypatch.setattr(run, "open_files", together.open_files)  # the played files are no graphs
    report = play_search(tmp_path / "s", 2)
    assert any(row.front for row in report.rows)
    assert all(row.together is None for row in report.rows)
    assert re.match(
        r"the front could not be measured together: .*int8\.onnx: ONNX Runtime could not load it", report.warnings[-1]
    )


class Clocked:
    """Stands for a session on a machine that becomes three times as slow half-way; it moves the clock, and notes its runs."""

    def __init__(self, clock: Any, name: str, shape: tuple[int, ...], seconds: float) -> None:
        self.clock, self.name, self.seconds = clock, name, seconds
        self.inputs = (TensorSpec(name=f"image {name}", shape=(None, *shape), dtype="uint8"),)
        self.outputs, self.device = (), "cpu"

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        ((name, image),) = feeds.items()
        self.clock.runs.append((self.name, name, image.shape, str(image.dtype)))
        self.clock.now += self.seconds * (3 if self.clock.now > 0.6 else 1)
        return {}


def test_trials_timed_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that slows down half-way the ratio of two latencies is the true one; each sees images of its own size."""
    clock = SimpleNamespace(now=0.0, runs=[])
    clock.perf_counter, clock.perf_counter_ns = lambda: clock.now, lambda: round(clock.now * 1e9)
    monkeypatch.setattr(latency, "time", clock)
    sessions = {3: Clocked(clock, "small", (8, 8, 1), 0.0005), 11: Clocked(clock, "large", (20, 24, 3), 0.002)}
    found, _ = together.measure_together(sessions, 0.5)  # type: ignore[arg-type]
    assert clock.now > 1, "the machine has slowed down"
    assert found[11].latency_us / found[3].latency_us == pytest.approx(4)
    assert {run[1:] for run in clock.runs} == {
        ("image small", (1, 8, 8, 1), "uint8"), ("image large", (1, 20, 24, 3), "uint8"),
    }  # fmt: skip
    turns = [name for name, _ in itertools.groupby(run[0] for run in clock.runs)]
    assert len(turns) > 20
    assert together.measure_together({}, 0.5) == ({}, ())
