"""The search: its front, its limits, what it prunes, what it shares, and that it never looks at the test images."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import optuna
import pytest
import torch
from click.testing import CliRunner

from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.bench import latency
from edgecnn.cli import cli
from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.errors import ExportError, TrainingError, UsageError
from edgecnn.exporter import Exported
from edgecnn.nets import NetChoice, build_net, choose_net, measure_cost
from edgecnn.report.search import plot_front, search_text
from edgecnn.search import run, study, together, trial
from edgecnn.search.result import Measured, SearchReport, Together, pareto_front
from edgecnn.search.space import Limits, Settings, Space, default_sizes, train_command
from edgecnn.search.trial import Plan, is_behind
from edgecnn.spec import Preprocess, TensorSpec
from edgecnn.training.loop import Epoch

Curve = Callable[[Settings, int], list[float]]


def _epoch(number: int, accuracy: float) -> Epoch:
    return Epoch(number=number, loss=1.0, lr=0.1, val_loss=1.0, val_accuracy=accuracy, seconds=0.0, best=True)


def _usual_curve(settings: Settings, epochs: int) -> list[float]:
    top = 0.9 + 0.03 * settings.width - 0.2 * abs(math.log(settings.lr / 0.005)) / 10
    return [top * (number + 1) / epochs for number in range(epochs)]


class Acted:
    """Plays training, export and measuring in no time, and remembers what was trained."""

    def __init__(self, curve: Curve = _usual_curve) -> None:
        self.curve = curve
        self.trained: list[Settings] = []
        self.of: dict[Path, Settings] = {}

    def train(self, work: Path, settings: Settings, plan: Plan, dataset: Dataset, on_epoch: Any) -> None:
        self.trained.append(settings)
        self.of[work] = settings
        for number, accuracy in enumerate(self.curve(settings, plan.epochs), 1):
            on_epoch(_epoch(number, accuracy))
        (work / "model.safetensors").write_bytes(b"weights")

    def export(self, work: Path, dataset: Dataset, target: str, seed: int) -> Exported:
        (work / "int8.onnx").write_bytes(b"graph")
        return Exported(work / "int8.onnx", "onnx", "int8", "any", {})

    def measure(self, exported: Exported, plan: Plan, dataset: Dataset) -> Measured:
        settings = self.of[exported.path.parent]
        accuracy = max(self.curve(settings, plan.epochs))
        return Measured(
            accuracy=accuracy, latency_us=10 * settings.width + 5 * settings.depth, spread=0.0, calls=1000, cpu="one"
        )

    def together(self, sessions: Any, seconds: float) -> tuple[dict[int, Together], tuple[str, ...]]:
        """Play the measurement at the end, in which the trials after were the faster ones."""
        found = {number: 100.0 / (1 + number) for number in sessions}
        return {number: Together(latency_us=one, spread=0.0, calls=9) for number, one in found.items()}, ("a storm",)


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> Acted:
    """Return the play that stands for training, export and measuring."""
    play = Acted()
    monkeypatch.setattr(trial, "train_trial", play.train)
    monkeypatch.setattr(trial, "export_int8", play.export)
    monkeypatch.setattr(trial, "measure_trial", play.measure)
    monkeypatch.setattr(run, "open_files", contextlib.nullcontext)
    monkeypatch.setattr(run, "measure_together", play.together)
    return play


def _search(out: Path, trials: int = 3, limits: Limits | None = None, epochs: int = 4, **more: Any) -> SearchReport:
    plan = Plan(source="digits", options=DataOptions(), epochs=0, limits=limits or Limits())
    return run.search(plan, out, trials, epochs=epochs, **more)


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
    report = _search(tmp_path / "s", 8)
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
    everything = _search(tmp_path / "all", 3, keep_all=True)
    assert len(list((tmp_path / "all" / "trials").iterdir())) == len(everything.rows) == 3


def test_the_front_is_timed_together_at_the_end(acted: Acted, tmp_path: Path) -> None:
    """Each trial on the front, and no other, gets a second latency; table, picture and limit go by it, the choice does not."""
    report = _search(tmp_path / "s", 8, Limits(max_latency_us=60))
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
    report = _search(tmp_path / "s", 2)
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
    report = _search(tmp_path, 6, limits)
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
        _search(tmp_path / "s", limits=Limits(max_macs=least - 1))
    assert not acted.trained
    assert not (tmp_path / "s").exists()


def test_slow_trials_are_not_on_the_front(acted: Acted, tmp_path: Path) -> None:
    """A trial whose int8 file is over the latency limit is marked, and the front is that of the others."""
    limit = 22.0
    report = _search(tmp_path, 8, Limits(max_latency_us=limit))
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
    _search(tmp_path, 7, epochs=10, name="search")
    opened = study.open_study(tmp_path, None, "search", 0)
    for width, depth in ((2.0, 3), (0.25, 1)):
        opened.enqueue_trial({"lr": 0.0123, "width": width, "depth": depth, "image_size": 8, "augment": "none"})

    def planted(settings: Settings, epochs: int) -> list[float]:
        return [0.1] * epochs if settings.lr == 0.0123 else _usual_curve(settings, epochs)

    acted.curve = planted
    report = _search(tmp_path, 3, epochs=10)
    large, small, other = report.rows[-3:]
    assert (large.state, large.epochs, large.int8) == ("pruned", 4, None)
    assert "behind" in str(large.reason)
    assert (small.state, small.epochs) == ("complete", 10)
    assert other.settings != large.settings
    assert not (tmp_path / "trials" / f"{large.number:03d}").exists()


def test_without_pruning_the_bad_trial_finishes(acted: Acted, tmp_path: Path) -> None:
    """With pruning off a trial that is far behind goes on to its end."""
    _search(tmp_path, 6, epochs=10)
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
    report = _search(tmp_path / "s", 3)
    assert [row.state for row in report.rows] == ["complete", "failed", "complete"]
    assert report.rows[1].reason == "nothing came out of it"

    def always(*given: Any) -> Exported:
        raise ExportError("never")

    monkeypatch.setattr(trial, "export_int8", always)
    with pytest.raises(TrainingError, match="the first: never"):
        _search(tmp_path / "none", 2)


def test_a_study_goes_on_and_is_the_same_for_the_same_seed(acted: Acted, tmp_path: Path) -> None:
    """Two and then two trials are the four of one search; none is tried twice; other settings are refused."""
    _search(tmp_path / "a", 2)
    report = _search(tmp_path / "a", 2)
    settings = [row.settings for row in report.rows]
    assert settings == [row.settings for row in _search(tmp_path / "b", 4).rows]
    assert len(set(settings)) == 4
    with pytest.raises(UsageError, match="had epochs 4, not 5"):
        _search(tmp_path / "a", 1, epochs=5)


def test_an_interrupted_search_is_whole(acted: Acted, tmp_path: Path) -> None:
    """Ctrl-C in the third trial leaves two of them in table and picture, and the same command goes on."""

    def interrupted(settings: Settings, epochs: int) -> list[float]:
        if len(acted.trained) == 3:
            raise KeyboardInterrupt
        return _usual_curve(settings, epochs)

    acted.curve = interrupted
    arguments = ["search", "digits", "-o", str(tmp_path), "--trials", "5", "--epochs", "2"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert rows[2]["reason"] == "interrupted"
    assert not [entry for entry in (tmp_path / "trials").iterdir() if entry.name.startswith(".")]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 8
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


TWO = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_search as here
from pathlib import Path
play = here.Acted()
here.trial.train_trial, here.trial.measure_trial = play.train, play.measure
slow = play.export
def export(*given):
    time.sleep(0.3)
    return slow(*given)
here.trial.export_int8 = export
here._search(Path(sys.argv[2]), 4)
print(len(play.trained))
"""


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Two processes that begin together run four different trials each, and both are in the table at the end."""
    command = [sys.executable, "-c", TWO, str(Path(__file__).parent), str(tmp_path / "s")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out.strip()) == (0, "4"), err
    report = msgspec.json.decode((tmp_path / "s" / "study.json").read_bytes(), type=SearchReport)
    assert [row.number for row in report.rows] == list(range(8))
    assert {row.state for row in report.rows} == {"complete"}
    assert len({row.settings for row in report.rows}) == 8
    kept = {int(folder.name) for folder in (tmp_path / "s" / "trials").iterdir()}
    assert kept == {row.number for row in report.rows if row.front}


class Forbidden:
    """Test images that nobody may touch."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the search looked at the test images: {name}")

    def __len__(self) -> int:
        raise AssertionError("the search counted the test images")


@pytest.mark.slow
def test_a_real_trial_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real trial never touches the test images, times the int8 file it keeps, and its command line repeats it."""
    monkeypatch.setattr(
        trial, "open_data", lambda source, options: dataclasses.replace(open_data(source, options), test=Forbidden())
    )
    loaded: dict[int, tuple[str, int | None]] = {}
    timed: list[tuple[str, int | None]] = []
    load, measure = OnnxRuntimeBackend.load, latency.measure_latency

    def spied_load(self: Any, artifact: Any, device: str, options: Any) -> Any:
        session = load(self, artifact, device, options)
        loaded[id(session)] = (artifact.path.name, options.threads)
        return session

    def spied_measure(sessions: Any, feeds: Any, seconds: float) -> Any:
        for session in sessions.values():
            assert [array.shape for array in getattr(session, "feeds", feeds).values()] == [(1, 8, 8, 1)]
            timed.append(loaded[id(getattr(session, "session", session).inner)])
        return measure(sessions, feeds, seconds)

    monkeypatch.setattr(OnnxRuntimeBackend, "load", spied_load)
    monkeypatch.setattr(trial, "measure_latency", spied_measure)
    monkeypatch.setattr(together, "measure_latency", spied_measure)
    plan = Plan(source="digits", options=DataOptions(), epochs=0, limits=Limits(max_params=5000), latency_seconds=0.1)
    report = run.search(plan, tmp_path / "s", 1, epochs=1)
    row = next(row for row in report.rows if row.front)
    assert timed == [("int8.onnx", 1)] * 2, "in the trial, and at the end"
    assert row.together is not None
    assert row.together.calls > 0
    folder = tmp_path / "s" / str(row.folder)
    assert {file.name for file in folder.iterdir()} == {"int8.onnx", "model.safetensors"}
    graph = onnx.load(str(folder / "int8.onnx")).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert layers
    assert {made.get(name) for node in layers for name in node.input[:2]} == {"DequantizeLinear"}, "all in int8"
    assert row.int8 is not None
    assert row.int8.accuracy == _accuracy(folder / "int8.onnx")
    _repeat(row, tmp_path)


def _accuracy(file: Path) -> float:
    import onnxruntime

    val = open_data("digits", DataOptions()).val
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {session.get_inputs()[0].name: val.pixels})[0]
    return float((logits.argmax(1) == val.labels).mean())


def _repeat(row: Any, tmp_path: Path) -> None:
    """Run the printed command and compare its weights with the trial's."""
    from safetensors.torch import load_file

    words = shlex.split(row.command)
    words[words.index("-o") + 1] = str(tmp_path / "again")
    done = CliRunner().invoke(cli, words[1:])
    assert done.exit_code == 0, done.stderr
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert max(epoch["val_accuracy"] for epoch in metrics["history"]) == row.val_accuracy
    ours = load_file(tmp_path / "s" / row.folder / "model.safetensors")
    theirs = load_file(tmp_path / "again" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_setting_is_in_the_command_line() -> None:
    """Every option of the data, and every setting, comes back from the train command's own parser."""
    options = DataOptions(
        channels=3,
        fit="crop",
        val=0.2,
        test=0.1,
        seed=5,
        strict=True,
        stream=False,
        group_from="a(.)",
        test_from="a box/",
    )
    settings = Settings(lr=0.00123, width=1.25, depth=3, image_size=24, augment="strong")
    words = shlex.split(train_command("my photos", "runs/x", settings, 7, options, "cuda:1"))
    parsed = cli.get_command(None, "train").make_context("train", words[2:]).params  # type: ignore[arg-type,union-attr]
    wanted = {
        "data": "my photos", "out": Path("runs/x"), "lr": "0.00123", "width": 1.25, "depth": 3, "image_size": 24,
        "augment": "strong", "epochs": 7, "seed": 5, "channels": "3", "fit": "crop", "val": 0.2, "test": 0.1,
        "strict": True, "stream": False, "group_from": "a(.)", "test_from": "a box/", "device": "cuda:1", "net": "edge", "resume": False,
    }  # fmt: skip
    assert {name: parsed[name] for name in wanted} == wanted


@pytest.mark.parametrize(("side", "sizes"), [(8, (8,)), (16, (8, 12, 16)), (28, (20, 28)), (96, (48, 72, 96))])
def test_resolutions_by_default(side: int, sizes: tuple[int, ...]) -> None:
    """Half, three quarters and all of the usual side are searched, rounded to fours, from eight pixels on."""
    if side == 28:
        sizes = (16, 20, 28)  # half is 14: three and a half fours, to the even four
    assert default_sizes(side) == sizes


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("nosuch://host/x", "no storage of that kind"),
        ("nonsense", "not the address of a database"),
        ("sqlite:////nonexistent/folder/x.db", "unable to open database file"),
        ("postgresql+asyncpgx://me:secret@host/x", "no storage of that kind"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/x", ""),
    ],
)
def test_bad_storages_are_one_line(storage: str, said: str, acted: Acted, tmp_path: Path) -> None:
    """A storage that cannot be used is told in one line, without its password, and nothing is trained."""
    done = CliRunner().invoke(
        cli, ["search", "digits", "-o", str(tmp_path / "s"), "--epochs", "1", "--storage", storage]
    )
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.output
    assert not acted.trained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "0"], "--trials"),
        (["--image-sizes", "a,b"], "not a list such as"),
        (["--image-sizes", "2,8"], "from 4 to 1024"),
        (["--image-sizes", "8", "--image-size", "8"], "either --image-size or"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--target", "cuda"], "--target cuda: has no int8"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    """What cannot be searched is one line and exit 2."""
    done = CliRunner().invoke(cli, ["search", "digits", "-o", str(tmp_path / "s"), *arguments])
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


def test_a_folder_of_something_else_is_left_alone(acted: Acted, tmp_path: Path) -> None:
    """A folder that holds something else is refused and not written to; so is a file that is no database."""
    (tmp_path / "study.json").write_text('{"kind": "another"}')
    with pytest.raises(UsageError, match="something else than a study"):
        _search(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.json"]
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match="not a database"):
        _search(tmp_path)
    assert not acted.trained


def test_a_foreign_study_is_refused(acted: Acted, tmp_path: Path) -> None:
    """A study that someone else keeps in the storage, with the same name, is not written to."""
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    theirs = optuna.create_study(storage=url, study_name="mine", directions=["maximize", "minimize"])
    theirs.optimize(lambda one: (one.suggest_float("x", 0, 1), 1.0), n_trials=1)
    optuna.create_study(storage=url, study_name="single")
    for name in ("mine", "single"):
        with pytest.raises(UsageError, match="not one of edgecnn"):
            _search(tmp_path / "s", storage=url, name=name)
    assert len(optuna.load_study(study_name="mine", storage=url).trials) == 1


def test_a_shared_storage_works_as_the_folders_own(acted: Acted, tmp_path: Path) -> None:
    """With --storage the trials of two folders are of one study, and the address in the files has no password."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    _search(tmp_path / "one", 2, storage=url, name="both")
    report = _search(tmp_path / "two", 2, storage=url, name="both")
    assert len(report.rows) == 4
    assert not (tmp_path / "two" / "study.db").exists()
    assert study.shown_storage("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"


def test_without_optuna_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Optuna is missing the command names the extra."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = CliRunner().invoke(cli, ["search", "digits", "-o", str(tmp_path / "s")])
    assert done.exit_code == 2
    assert "pip install 'edgecnn[search]'" in done.stderr
