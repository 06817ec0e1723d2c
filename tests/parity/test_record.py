"""Recording: every side once over every sample, failures kept, and the truth of any ONNX file by independent means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from parity.fakes import ORT, PLUGGED, Call, answers, chain_file, fed, int8_file, plug, specs
from quantization import graphs, small

from edgecnn.backends.base import Tensors
from edgecnn.errors import BackendError, DataError, UsageError
from edgecnn.parity import Verdict, judge, record
from edgecnn.parity.further import HANDFUL
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef

Array = npt.NDArray[Any]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """Return a float net in a file."""
    return Subject.of_model(chain_file(tmp_path))


def test_the_answers_kept_are_a_plain_sessions(subject: Subject) -> None:
    """All rows of all outputs are kept, in order, as ONNX Runtime gives them when called by hand."""
    images = small.images(150)
    found = record(subject, None, [ORT], fed(images))
    np.testing.assert_allclose(
        answers(found, "onnxruntime"), graphs.run(small.chain(), {"x": images})["y"], rtol=1e-5, atol=1e-6
    )
    assert found.head.samples.n == 150
    assert found.head.reference == "float64"
    assert [side.ref for side in found.head.sides] == ["onnxruntime"]


def test_the_truth_is_float64_by_another_evaluator(subject: Subject) -> None:
    """The truth agrees with onnx's own evaluator, run on float64 weights, far below float32's precision."""
    images = small.images(8)
    model = small.chain()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
    (expected,) = ReferenceEvaluator(model).run(["y"], {"x": images.astype(np.float64)})
    found = record(subject, None, [ORT], fed(images))
    assert found.float64 is not None
    np.testing.assert_allclose(found.float64, expected, rtol=1e-12, atol=1e-12)
    assert found.head.truth == "the graph run by torch in float64 on 8 samples"
    assert found.head.truth_samples == tuple(range(8))


def test_each_sample_runs_once_in_one_session(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples each is run once but for the few further runs, and one session does all but the other threads."""
    plugged = plug(monkeypatch)
    images = small.images(300)
    record(subject, None, [PLUGGED], fed(images))
    plain = plugged.calls[:5]
    assert [call.rows for call in plain] == [64, 64, 64, 64, 44]
    np.testing.assert_array_equal(np.concatenate([call.feeds["x"] for call in plain]), images)
    assert sum(call.rows for call in plugged.calls[5:]) == 64 + 32 + 64
    assert len(plugged.opened) == 2
    assert plugged.opened[0].threads is None
    assert plugged.opened[1].threads is not None


def test_a_batch_is_made_once_for_all_sides(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sides there are, each sample is made once in the main pass: images are not decoded anew a side."""
    plug(monkeypatch)
    made: list[int] = []
    samples = fed(small.images(100))
    counted = type(samples)(lambda index: made.append(index) or samples.make(index), samples.record)  # type: ignore[func-returns-value]
    record(subject, None, [ORT, PLUGGED, BackendRef(backend="reference")], counted)
    assert made[:100] == list(range(100))
    # Then the truth's, and for each candidate 64 once more, 32 alone, and 64 with other threads.
    assert len(made) == 100 + 100 + 3 * (64 + 32 + 64)


def _crash(call: Call, outputs: Tensors) -> Tensors:
    raise RuntimeError("out of registers")


def _nan(call: Call, outputs: Tensors) -> Tensors:
    return {"y": np.where(np.arange(4) == 2, np.float32(np.nan), outputs["y"])}


FAULTS: dict[str, tuple[Any, str]] = {
    "crashes": (_crash, "out of registers"),
    "is not finite": (_nan, "not finite"),
    "lacks an output": (lambda call, outputs: {}, "named"),
    "has another output too": (lambda call, outputs: {**outputs, "z": outputs["y"]}, "named"),
    "misses a row": (lambda call, outputs: {"y": outputs["y"][:-1]}, "rows for"),
    "gives nothing": (lambda call, outputs: {"y": outputs["y"][:0]}, "'y'"),
    "gives another dtype": (lambda call, outputs: {"y": outputs["y"].astype(np.float64)}, "float64"),
    "gives another shape": (lambda call, outputs: {"y": outputs["y"][:, :3]}, "'y'"),
    "gives rows in another order": (lambda call, outputs: {"y": outputs["y"][::-1]}, "times torch float32's own"),
    "fails on a later batch": (
        lambda call, outputs: _crash(call, outputs) if call.number else outputs,
        "out of registers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_candidate_at_fault_fails_and_the_others_go_on(
    fault: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a candidate does wrong it is a FAIL with its reason, and one that is right beside it passes."""
    change, reason = FAULTS[fault]
    plug(monkeypatch, change)
    report = judge(record(subject, None, [PLUGGED, ORT], fed(small.images(100))))
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.FAIL, Verdict.PASS]
    assert reason in report.cells[0].computation.reason
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("fault", ["crashes", "is not finite", "lacks an output", "misses a row"])
def test_a_reference_at_fault_is_an_error(fault: str, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its reference there is nothing to compare with: an error and no verdict."""
    change, reason = FAULTS[fault]
    plug(monkeypatch, change)
    with pytest.raises(BackendError, match=reason):
        record(subject, PLUGGED, [ORT], fed(small.images(10)))


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (specs(("z", (None, 4), "float32")), "output 'y' is missing"),
        (specs(("y", (None, 5), "float32")), r"shape \(None, 5\); the model has dtype float32"),
        (specs(("y", (None, 4), "float16")), "dtype float16"),
        (specs(("y", (None, 4), "float32"), ("z", (None, 4), "float32")), "no such output"),
    ],
)
def test_a_candidate_is_held_to_the_models_signature(
    outputs: Any, reason: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that announces other outputs than the model's, by name, shape or dtype, is a FAIL before it is run."""
    plugged = plug(monkeypatch, outputs=outputs)
    (cell,) = judge(record(subject, None, [PLUGGED], fed(small.images(4)))).cells
    assert cell.computation.verdict is Verdict.FAIL
    assert __import__("re").search(reason, cell.computation.reason)
    assert not plugged.calls


def test_nothing_to_compare_is_an_error(subject: Subject) -> None:
    """No candidate, no sample, and one candidate named twice are refused."""
    with pytest.raises(UsageError, match="at least one candidate"):
        record(subject, None, [], fed(small.images(4)))
    with pytest.raises(DataError, match="nothing was compared"):
        record(subject, None, [ORT], fed(small.images(0)))
    with pytest.raises(UsageError, match="named twice"):
        record(subject, None, [ORT, ORT], fed(small.images(4)))


def test_the_reference_may_be_a_candidate_too(subject: Subject) -> None:
    """Where one is both it is run twice, and its cell is its own."""
    report = judge(record(subject, ORT, [ORT], fed(small.images(10))))
    assert report.reference == "onnxruntime as reference"
    assert [cell.candidate for cell in report.cells] == ["onnxruntime"]
    assert report.verdict is Verdict.PASS


def test_labels_make_float64_answer_every_sample(subject: Subject) -> None:
    """With labels decisions are paired on all samples, not on the truth's few hundred alone."""
    images = small.images(400)
    labels = graphs.run(small.chain(), {"x": images})["y"].argmax(axis=1)
    report = judge(record(subject, None, [ORT], fed(images, tuple(labels.tolist()))))
    decisions = report.cells[0].decisions
    assert decisions is not None
    assert (decisions.n, decisions.lost, decisions.verdict) == (400, 0, Verdict.PASS)
    assert report.cells[0].computation.n == 256
    assert report.cells[0].where is not None
    assert report.cells[0].where.runtime.startswith("onnxruntime 1.")


def test_a_file_whose_weight_moved_is_another_computation(subject: Subject, tmp_path: Path) -> None:
    """A second float file is compared with the first one's float64: one weight of a thousandth more fails."""
    from parity.fakes import change_weight

    model = small.chain()
    change_weight(model, "b.weight", 1e-3)
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    equal = chain_file(tmp_path, name="equal.onnx")
    refs = [BackendRef(backend="onnxruntime", artifact=str(path)) for path in (equal, tmp_path / "other.onnx")]
    report = judge(record(subject, None, refs, fed(small.images(64))))
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.PASS, Verdict.FAIL]


def test_a_quantized_file_is_held_to_the_evaluators_answers(subject: Subject, tmp_path: Path) -> None:
    """ONNX Runtime computes an int8 file as onnx's evaluator does, in units of the error against the float model."""
    path = int8_file(tmp_path)
    ref = BackendRef(backend="onnxruntime", artifact=str(path))
    images = small.images(40)
    found = record(subject, None, [ref], fed(images))
    (side,) = found.head.sides
    assert (side.precision, side.quantized, side.recorded_from) == ("int8", True, "the answers of onnx's evaluator")
    np.testing.assert_allclose(
        found.sides[str(ref)].recorded, small.reference(onnx.load(path), {"x": images[:HANDFUL]})[0], atol=1e-5
    )
    report = judge(found)
    assert report.cells[0].computation.verdict is Verdict.PASS
    assert report.cells[0].computation.share is not None
    assert report.verdict is Verdict.NOT_MEASURED  # what was rounded away only labels can tell


def test_a_quantized_candidate_that_computes_otherwise_fails(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that is off by the quantization error once more is a FAIL."""
    path = int8_file(tmp_path)
    images = small.images(40)
    exact = graphs.run(small.chain(), {"x": images})["y"]
    error = float(np.abs(graphs.run(onnx.load(path), {"x": images})["y"] - exact).max())
    plug(monkeypatch, lambda call, outputs: {"y": outputs["y"] + np.float32(2 * error)})
    report = judge(record(subject, None, [BackendRef(backend="plugged", artifact=str(path))], fed(images)))
    assert report.cells[0].computation.verdict is Verdict.FAIL
    assert "onnx's evaluator" in report.cells[0].computation.reason


def test_the_evaluator_does_not_vouch_for_itself(subject: Subject, tmp_path: Path) -> None:
    """A quantized file run by onnx's evaluator has nothing to be held to, and is not measured."""
    ref = BackendRef(backend="reference", artifact=str(int8_file(tmp_path)))
    report = judge(record(subject, None, [ref], fed(small.images(10))))
    assert report.cells[0].computation.verdict is Verdict.NOT_MEASURED
    assert report.verdict is Verdict.NOT_MEASURED


def test_a_quantized_subject_is_judged_without_its_float_model(tmp_path: Path) -> None:
    """An int8 file by itself is judged by its own graph without rounding: right passes, other answers fail."""
    subject = Subject.of_model(int8_file(tmp_path))
    found = record(subject, None, [ORT], fed(small.images(40)))
    assert found.head.truth is not None
    assert "not rounded" in found.head.truth
    assert judge(found).verdict is Verdict.PASS
    assert answers(found, "onnxruntime").std() > 0
    answers(found, "onnxruntime")[:] += 1
    found.sides["onnxruntime"].goldens[:] += 1  # type: ignore[index]
    assert judge(found).verdict is Verdict.FAIL


def test_a_float_reference_is_the_truth_of_a_quantized_subject(tmp_path: Path) -> None:
    """With -r onnxruntime:FLOAT.onnx the truth of an int8 file is that file in float64."""
    subject = Subject.of_model(int8_file(tmp_path))
    reference = BackendRef(backend="onnxruntime", artifact=str(chain_file(tmp_path)))
    images = small.images(20)
    found = record(subject, reference, [ORT], fed(images))
    np.testing.assert_allclose(found.float64, graphs.run(small.chain(), {"x": images})["y"], rtol=1e-4, atol=1e-5)
    assert judge(found).cells[0].agreement is not None
