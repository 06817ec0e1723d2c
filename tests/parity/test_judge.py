"""Judging a recording: pure, repeatable with other tolerances, and closed to recordings that hold nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from parity.fakes import ORT, chain_file, fed
from quantization import graphs, small

from edgecnn.errors import BackendError, DataError
from edgecnn.parity import ParityReport, Verdict, judge, record
from edgecnn.parity.recording import Recording
from edgecnn.parity.subject import Subject
from edgecnn.spec import Tolerance, to_json

Array = npt.NDArray[Any]


@pytest.fixture
def recorded(tmp_path: Path) -> Recording:
    """Return a recording of ONNX Runtime on 40 labelled samples, all labelled as the net answers."""
    images = small.images(40)
    labels = graphs.run(small.chain(), {"x": images})["y"].argmax(axis=1)
    return record(Subject.of_model(chain_file(tmp_path)), None, [ORT], fed(images, tuple(labels.tolist())))


def _with_answers(recording: Recording, answers: Array) -> Recording:
    side = recording.sides["onnxruntime"]
    changed = replace(side, answers={"y": answers}, on_truth=answers[list(recording.head.truth_samples)])
    return replace(recording, sides={**recording.sides, "onnxruntime": changed})


def test_the_same_recording_is_judged_by_any_tolerance(recorded: Recording) -> None:
    """One recording passes or fails by the tolerance it is judged with, and the report carries that."""
    wide, tight = Tolerance(max_drop=0.2), Tolerance(max_drop=0.2, noise_multiple=1e-6)
    assert judge(recorded, wide).verdict is Verdict.PASS
    assert judge(recorded, tight).verdict is Verdict.FAIL
    assert judge(recorded, tight).tolerance == tight
    assert judge(recorded) == judge(recorded)


def test_a_report_survives_json(recorded: Recording) -> None:
    """A report of an ONNX file, without decoding, is read back as it was."""
    report = judge(recorded)
    assert report.decoding is None
    assert msgspec.json.decode(to_json(report), type=ParityReport) == report


def test_flips_have_index_truth_and_margins(recorded: Recording) -> None:
    """Answers swapped in two rows are listed by place, label and both sides' margins, computed by hand."""
    side = recorded.sides["onnxruntime"].answers["y"].copy()
    for row in (3, 17):
        side[row] = -side[row]
    report = judge(_with_answers(recorded, side), Tolerance(max_drop=0.2))
    decisions, agreement = report.cells[0].decisions, report.cells[0].agreement
    assert decisions is not None
    assert agreement is not None
    assert [flip.index for flip in decisions.flips] == [flip.index for flip in agreement.flips] == [3, 17]
    assert (agreement.changed, agreement.share) == (2, 0.95)
    flip = decisions.flips[0]
    truth = np.sort(recorded.sides["float64"].answers["y"][3])
    ours = np.sort(side[3])
    assert flip.image == "row-3"
    assert flip.truth == flip.reference
    assert flip.reference_margin == pytest.approx(truth[-1] - truth[-2])
    assert flip.candidate_margin == pytest.approx(ours[-1] - ours[-2])


def test_agreement_alone_never_fails(recorded: Recording) -> None:
    """Without labels changed answers are listed, and the verdict is the computation's."""
    head = msgspec.structs.replace(recorded.head, samples=msgspec.structs.replace(recorded.head.samples, labels=None))
    report = judge(replace(recorded, head=head))
    assert report.cells[0].decisions is None
    assert report.cells[0].agreement is not None
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: np.where(np.arange(4) == 1, np.nan, y), "not finite"),
        (lambda y: y[:-1], "39 rows for 40 samples"),
        (lambda y: y[:, :3], "shape"),
    ],
)
def test_unfit_answers_in_a_recording_fail(change: Any, reason: str, recorded: Recording) -> None:
    """What a replayed file holds is held to the same rules as what was just run."""
    side = recorded.sides["onnxruntime"]
    changed = replace(side, answers={"y": change(side.answers["y"])})
    report = judge(replace(recorded, sides={**recorded.sides, "onnxruntime": changed}))
    assert report.verdict is Verdict.FAIL
    assert reason in report.cells[0].computation.reason


def test_unfit_references_are_errors(recorded: Recording) -> None:
    """A recorded reference that is not finite gives no verdict."""
    side = recorded.sides["float64"]
    broken = replace(side, answers={"y": side.answers["y"] * np.nan})
    with pytest.raises(BackendError, match="float64, the reference"):
        judge(replace(recorded, sides={**recorded.sides, "float64": broken}))


def test_without_float64_nothing_is_measured(recorded: Recording) -> None:
    """A recording without a truth is NOT MEASURED with the reason it was recorded with, and never a PASS."""
    labels = msgspec.structs.replace(recorded.head.samples, labels=None)
    head = msgspec.structs.replace(recorded.head, truth=None, truth_samples=(), untrue="no torch here", samples=labels)
    report = judge(replace(recorded, head=head, float64=None, float32=None))
    assert report.cells[0].computation.verdict is Verdict.NOT_MEASURED
    assert report.cells[0].computation.reason == "no torch here"
    assert report.verdict is Verdict.NOT_MEASURED


def test_a_recording_of_nothing_is_an_error(recorded: Recording) -> None:
    """Without a candidate or without a sample there is no verdict."""
    alone = msgspec.structs.replace(recorded.head, sides=tuple(s for s in recorded.head.sides if s.ref == "float64"))
    with pytest.raises(DataError, match="nothing was compared"):
        judge(replace(recorded, head=alone))
    none = msgspec.structs.replace(recorded.head, samples=msgspec.structs.replace(recorded.head.samples, n=0))
    with pytest.raises(DataError, match="nothing was compared"):
        judge(replace(recorded, head=none))


def test_a_distribution_is_judged_by_its_logarithm(recorded: Recording) -> None:
    """An error of a hundredth in a logit behind a saturated softmax, 1e-13 of the probability, is found."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (40, 4)) + 30 * np.eye(4)[rng.integers(0, 4, 40)]

    def softmax(values: Array) -> Array:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    truth, wrong = softmax(logits), softmax(logits + 1e-2 * rng.normal(size=logits.shape))
    assert np.abs(truth - wrong).max() < 1e-12
    places = list(recorded.head.truth_samples)
    judged = replace(recorded, float64=truth[places], float32=truth[places].astype(np.float32))
    right = judge(_with_answers(judged, truth.astype(np.float32)), Tolerance(max_drop=0.9))
    found = judge(_with_answers(judged, wrong.astype(np.float32)), Tolerance(max_drop=0.9))
    assert right.cells[0].computation.verdict is Verdict.PASS
    assert found.cells[0].computation.verdict is Verdict.FAIL
