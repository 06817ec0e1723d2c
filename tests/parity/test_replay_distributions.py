"""Replays of models that answer with probabilities: judged by their logarithm, as at first, small ones not overlooked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from commands import invoke
from onnx import helper, numpy_helper
from parity.fakes import PLUGGED, Call, fed, plug
from recordings import FP32, INT8, recording
from scipy import special

from edgecnn.backends.base import Tensors
from edgecnn.parity import ParityReport, Verdict, judge, record
from edgecnn.parity.computation import Computation
from edgecnn.parity.distributions import SMALLEST, is_distribution, logs
from edgecnn.parity.evidence import read_evidence, write_evidence
from edgecnn.parity.recording import Recording
from edgecnn.parity.replay import compare_recordings
from edgecnn.parity.subject import Subject

Array = npt.NDArray[Any]
N, LOUD = 200, 4  # logits some 12 to either side: the smallest probabilities are near 1e-15
ROW = 101  # of no float64 truth, which is known for every second sample


def softmax_file(folder: Path) -> Path:
    """Write y = softmax(x W), (N, 6) to (N, 4), saturated on most inputs."""
    weight = np.random.default_rng(11).normal(0, 5, (6, 4)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 6), ("y", 4))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "softmax.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return folder / "softmax.onnx"


def small_raised(outputs: Array, share: float) -> Array:
    """Raise every probability below a millionth by a share of itself."""
    changed: Array = np.where(outputs < 1e-6, outputs * np.float32(1 + share), outputs)
    assert (changed != outputs).any() == (share > 0)
    return changed


def raised(share: float) -> Callable[[Call, Tensors], Tensors]:
    """Make a backend err in small probabilities alone."""
    return lambda call, outputs: {"y": small_raised(outputs["y"], share)}


def kept(made: Recording, path: Path) -> Recording:
    """Write a recording to a file, and read it back."""
    write_evidence(path, made)
    return read_evidence(path)


def probabilities(seed: int = 0) -> Recording:
    """Make the small recording's answers and truth the probabilities of louder logits."""
    made = recording(n=N, seed=seed)

    def said(logits: Array) -> Array:
        exact = special.softmax(LOUD * logits.astype(np.float64), axis=1)
        return np.asarray(exact, dtype=logits.dtype)

    def maybe(logits: Array | None) -> Array | None:
        return None if logits is None else said(logits)

    sides = {
        ref: replace(
            side,
            answers={name: said(one) if name == "logits" else one for name, one in side.answers.items()},
            on_truth=maybe(side.on_truth),
            goldens=maybe(side.goldens),
            recorded=maybe(side.recorded),
            again={what: (said(before), said(after)) for what, (before, after) in side.again.items()},
        )
        for ref, side in made.sides.items()
    }
    truth = {name: maybe(getattr(made, name)) for name in ("float64", "float32", "golden_float64")}
    return replace(made, sides=sides, **truth)


def computation(report: ParityReport, ref: str) -> Computation:
    return next(cell.computation for cell in report.cells if cell.candidate == ref)


def by_logarithm(one: Array | None, other: Array | None) -> Array:
    """Take the difference of two distributions' logarithms, each row's against its own largest."""
    assert one is not None
    assert other is not None
    first, second = np.log(one.astype(np.float64)), np.log(other.astype(np.float64))
    return np.asarray((second - second.max(1, keepdims=True)) - (first - first.max(1, keepdims=True)))


def ratio(change: Array, own: Array) -> float:
    """Give a difference in units of another, by mean square or at the most, whichever is larger."""
    rms = np.sqrt((change**2).mean()) / np.sqrt((own**2).mean())
    return float(max(rms, np.abs(change).max() / np.abs(own).max()))


def test_a_kept_run_of_probabilities_is_judged_as_at_first(tmp_path: Path) -> None:
    """--replay without the model gives the run's own report, and the recording compared with itself is equal to the bit."""
    model, place = softmax_file(tmp_path), tmp_path / "kept.evidence"
    first = invoke("parity", model, "--random", "40", "--keep", place, "--json")
    model.unlink()
    again = invoke("parity", "--replay", place, "--json")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    both = invoke("parity", "--replay", place, place, "--json")
    (cell,) = [one for one in json.loads(both.stdout)["cells"] if one["candidate"] == "onnxruntime"]
    assert (both.exit_code, cell["computation"]["multiple"]) == (0, 0.0)


@pytest.mark.parametrize(("share", "verdict"), [(0.0, Verdict.PASS), (0.01, Verdict.FAIL)])
def test_a_small_probability_is_found_by_either_replay(
    share: float, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth of what is below a millionth is found by the run, by its replay, and against a sound machine's."""
    subject = Subject.of_model(softmax_file(tmp_path))
    samples = fed(np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32))
    plug(monkeypatch)
    sound = record(subject, None, [PLUGGED], samples)
    monkeypatch.undo()
    plug(monkeypatch, raised(share))
    wrong = record(subject, None, [PLUGGED], samples)
    first, second = (one.sides["plugged"].answers["y"] for one in (sound, wrong))
    assert np.abs(first - second).max() <= 1e-8, "too little for the probabilities themselves to show"
    replayed = judge(kept(wrong, tmp_path / "wrong"))
    assert replayed == judge(wrong)
    assert computation(replayed, "plugged").verdict is verdict
    assert computation(judge(kept(sound, tmp_path / "sound")), "plugged").verdict is Verdict.PASS
    against = compare_recordings(read_evidence(tmp_path / "sound"), read_evidence(tmp_path / "wrong"))
    assert computation(against, "plugged").verdict is verdict
    assert against.verdict is verdict


def test_two_machines_rounding_is_judged_in_logarithms() -> None:
    """Two right machines pass with the multiple of float32's own error, both by numpy's logarithms over all samples."""
    before, after = probabilities(), probabilities(seed=1)
    found = computation(compare_recordings(before, after), FP32)
    change = by_logarithm(*(one.sides[FP32].answers["logits"] for one in (before, after)))
    wanted = ratio(change, by_logarithm(before.float64, before.float32))
    assert (found.verdict, found.n) == (Verdict.PASS, N)
    assert found.multiple == pytest.approx(wanted, rel=1e-6)
    assert 1 < wanted < 5
    assert found.distance is not None
    assert found.distance.max_abs == pytest.approx(np.abs(change).max(), rel=1e-6)


def test_one_small_probability_of_two_machines_fails() -> None:
    """A thousandth of a single probability below 1e-6, on a sample without float64, fails; without logarithms it would pass."""
    before, after = probabilities(), probabilities()
    answer = after.sides[FP32].answers["logits"]
    assert answer[ROW].min() < 1e-6
    assert ROW not in before.head.truth_samples
    answer[ROW] = small_raised(answer[ROW], 1e-3)
    found = computation(compare_recordings(before, after), FP32)
    assert found.verdict is Verdict.FAIL
    change = by_logarithm(*(one.sides[FP32].answers["logits"] for one in (before, after)))
    assert found.multiple == pytest.approx(ratio(change, by_logarithm(before.float64, before.float32)), rel=1e-6)
    plain = answer.astype(np.float64) - before.sides[FP32].answers["logits"]
    assert before.float64 is not None
    assert before.float32 is not None
    assert ratio(plain, before.float32 - before.float64) < 0.1


@pytest.mark.parametrize(("share", "verdict"), [(0.02, Verdict.PASS), (0.5, Verdict.FAIL)])
def test_a_quantized_distribution_is_judged_by_its_own_error_in_logarithms(share: float, verdict: Verdict) -> None:
    """The share is the logarithms' difference over that of its quantization error, by numpy; the same machine is let pass 5 %."""
    before, after = probabilities(), probabilities()
    ours = before.sides[INT8]
    changed = small_raised(ours.answers["logits"], share * 0.1)
    after.sides[INT8].answers["logits"][:] = changed
    found = computation(compare_recordings(before, after), INT8)
    wanted = ratio(by_logarithm(ours.answers["logits"], changed), by_logarithm(before.float64, ours.on_truth))
    assert found.share == pytest.approx(wanted, rel=1e-6)
    assert found.verdict is verdict
    assert found.multiple is None


def test_the_second_recordings_truth_says_as_much() -> None:
    """Where only the second machine had float64 its truth tells that the answers are probabilities, to the same multiples."""
    before, after = probabilities(), probabilities(seed=1)
    after.sides[INT8].answers["logits"][:] = small_raised(after.sides[INT8].answers["logits"], 1e-3)
    bare = replace(
        before,
        head=msgspec.structs.replace(before.head, truth=None, truth_samples=()),
        float64=None,
        float32=None,
        sides={ref: replace(one, on_truth=None) for ref, one in before.sides.items()},
    )
    for ref in (FP32, INT8):
        one, other = (computation(compare_recordings(first, after), ref) for first in (before, bare))
        assert (one.multiple, one.share) == (other.multiple, other.share)
        assert one.multiple or one.share


@pytest.mark.parametrize(
    ("truth", "wanted"),
    [
        ([[0.25, 0.75], [1.0, 0.0]], True),
        ([[0.25, 0.75 + 9e-10]], True),
        ([[0.25, 0.75 + 1.1e-9]], False),
        ([[0.25, 0.75], [0.5, 0.4]], False),
        ([[1.5, -0.5]], False),
        ([[1.0], [1.0]], False),
    ],
)
def test_what_a_distribution_is(truth: list[list[float]], wanted: bool) -> None:
    """Every row has at least two values, none below 0, and sums to 1 within a billionth."""
    assert is_distribution(np.array(truth)) is wanted


def test_logarithms_are_against_the_largest_and_end_at_the_smallest() -> None:
    """By hand: the largest of a row is 0, and what is 0, below it or tiny is taken as the smallest that is told apart."""
    found = logs(np.array([[0.5, 0.25, 0.25], [1.0, 0.0, -1e-9], [1.0, 1e-40, 1e-20]]))
    end = np.log(SMALLEST)
    wanted = [[0, -np.log(2), -np.log(2)], [0, end, end], [0, end, -20 * np.log(10)]]
    assert np.allclose(found, wanted, rtol=1e-12, atol=0)
