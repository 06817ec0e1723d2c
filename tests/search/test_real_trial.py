"""One real trial: it never looks at the test images, and its command line repeats it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.bench import latency
from edgecnn.cli import cli
from edgecnn.data import DataOptions, open_data
from edgecnn.search import run, together, trial
from edgecnn.search.space import Limits, Settings, default_sizes, train_command
from edgecnn.search.trial import Plan


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
