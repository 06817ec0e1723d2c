"""The further runs: planted backends that change with time, batch and threads are found, and steady ones pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from parity.fakes import ORT, PLUGGED, Call, chain_file, fed, int8_file, plug
from quantization import small

from edgecnn.backends.base import Tensors
from edgecnn.parity import ParityReport, Verdict, judge, record
from edgecnn.parity.computation import Noise, Recorded
from edgecnn.parity.steadiness import Steadiness, judge_again, other_threads
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef, Tolerance

Array = npt.NDArray[Any]
OFF = np.float32(1e-3)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """Return a float net in a file."""
    return Subject.of_model(chain_file(tmp_path))


def _report(subject: Subject, patch: pytest.MonkeyPatch, change: Any, count: int = 100) -> ParityReport:
    plug(patch, change)
    return judge(record(subject, None, [PLUGGED], fed(small.images(count))))


def _by_what(report: ParityReport) -> dict[str, Steadiness]:
    return {one.what: one for one in report.cells[0].steadiness}


def _drifts(call: Call, outputs: Tensors) -> Tensors:
    return {"y": outputs["y"] + (OFF if call.number > 1 else 0)}


def _alone(call: Call, outputs: Tensors) -> Tensors:
    return {"y": outputs["y"] + (OFF if call.rows == 1 else 0)}


def _threaded(call: Call, outputs: Tensors) -> Tensors:
    return {"y": outputs["y"] + (OFF if call.options.threads else 0)}


@pytest.mark.parametrize(("change", "what"), [(_drifts, "repeat"), (_alone, "batch"), (_threaded, "threads")])
def test_an_unsteady_backend_fails_though_its_answers_are_right(
    change: Any, what: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend whose plain run is right, but which answers otherwise when run otherwise, is a FAIL that says how."""
    report = _report(subject, monkeypatch, change)
    found = _by_what(report)
    assert report.cells[0].computation.verdict is Verdict.PASS
    assert found[what].verdict is Verdict.FAIL
    assert found[what].max_abs == pytest.approx(1e-3, rel=1e-2)
    assert found[what].multiple is not None
    assert found[what].multiple > 10
    assert not found[what].bit_equal
    assert report.verdict is Verdict.FAIL
    steady = {"repeat", "batch", "threads"} - {what} - ({"batch"} if what == "repeat" else set())
    assert all(found[one].verdict is Verdict.PASS for one in steady)


def test_random_answers_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that adds new noise each time is not steady in any way."""
    rng = np.random.default_rng(0)

    def noisy(call: Call, outputs: Tensors) -> Tensors:
        return {"y": outputs["y"] + rng.normal(0, 1e-2, outputs["y"].shape).astype(np.float32)}

    assert {one.verdict for one in _report(subject, monkeypatch, noisy).cells[0].steadiness} == {Verdict.FAIL}


def test_a_further_run_that_fails_is_a_fail_with_its_reason(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that crashes on single samples, and only on those, fails by that question alone."""

    def change(call: Call, outputs: Tensors) -> Tensors:
        if call.rows == 1:
            raise RuntimeError("no kernel for one row")
        return outputs

    report = _report(subject, monkeypatch, change)
    found = _by_what(report)
    assert found["batch"].verdict is Verdict.FAIL
    assert "no kernel for one row" in found["batch"].reason
    assert (report.cells[0].computation.verdict, report.verdict) == (Verdict.PASS, Verdict.FAIL)


def test_values_that_are_not_finite_in_a_further_run_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that only other threads bring is a FAIL."""

    def change(call: Call, outputs: Tensors) -> Tensors:
        return {"y": outputs["y"] * np.float32(np.nan) if call.options.threads else outputs["y"]}

    found = _by_what(_report(subject, monkeypatch, change))
    assert found["threads"].verdict is Verdict.FAIL
    assert "not finite" in found["threads"].reason


def test_rounding_is_no_fault(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that sums in another order for one row, off by one unit in the last place, is steady enough."""

    def change(call: Call, outputs: Tensors) -> Tensors:
        return {"y": np.nextafter(outputs["y"], np.float32(np.inf)) if call.rows == 1 else outputs["y"]}

    found = _by_what(_report(subject, monkeypatch, change))
    assert (found["batch"].verdict, found["batch"].bit_equal) == (Verdict.PASS, False)
    assert found["repeat"].bit_equal


def test_a_single_sample_shows_nothing_of_batches(subject: Subject) -> None:
    """With one sample there is no batch to compare with, and the question is open rather than passed."""
    report = judge(record(subject, None, [ORT], fed(small.images(1))))
    assert _by_what(report)["batch"].verdict is Verdict.NOT_MEASURED
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize(("share", "verdict"), [(0.04, Verdict.PASS), (0.06, Verdict.FAIL)])
def test_a_quantized_candidate_is_judged_by_its_quantization_error(share: float, verdict: Verdict) -> None:
    """The same difference passes or fails by its share of the quantization error, whose limit is 5 %."""
    truth = np.random.default_rng(0).normal(size=(20, 4))
    signs = np.where(np.arange(80).reshape(20, 4) % 2, 1.0, -1.0)
    logits = truth + 0.1 * signs
    pair = (logits, logits + 0.1 * share * signs)
    found = judge_again({"repeat": pair}, {}, Recorded(logits, truth), Tolerance())
    assert [one.verdict for one in found] == [verdict, Verdict.NOT_MEASURED, Verdict.NOT_MEASURED]
    assert found[0].multiple == pytest.approx(share)
    assert "quantization error" in found[0].reason


@pytest.mark.parametrize(("times", "verdict"), [(9.9, Verdict.PASS), (10.1, Verdict.FAIL)])
def test_a_float_candidate_is_judged_by_float32s_own_error(times: float, verdict: Verdict) -> None:
    """The limit is the tolerance's multiple of the unit."""
    before = np.ones((10, 3))
    found = judge_again({"threads": (before, before + times * 1e-6)}, {}, Noise(1e-6, 1e-6), Tolerance())
    assert found[2].verdict is verdict
    assert found[2].multiple == pytest.approx(times, rel=1e-6)


def test_without_a_unit_a_difference_is_inconclusive() -> None:
    """Answers that differ are never passed for lack of something to judge them by; equal ones need no unit."""
    before = np.ones((10, 3))
    pairs = {"repeat": (before, before + 1e-9), "batch": (before, before.copy())}
    found = judge_again(pairs, {}, None, Tolerance())
    assert [one.verdict for one in found] == [Verdict.INCONCLUSIVE, Verdict.PASS, Verdict.NOT_MEASURED]


def test_onnx_runtimes_int8_is_steady(tmp_path: Path) -> None:
    """ONNX Runtime answers to the bit when repeated and with other threads, and within tolerance alone, in int8 too."""
    ref = BackendRef(backend="onnxruntime", artifact=str(int8_file(tmp_path)))
    report = judge(record(Subject.of_model(chain_file(tmp_path)), None, [ref], fed(small.images(70))))
    found = _by_what(report)
    assert {one.verdict for one in found.values()} == {Verdict.PASS}
    assert found["repeat"].bit_equal
    assert (found["repeat"].n, found["batch"].n, found["threads"].n) == (64, 32, 64)


def test_the_other_number_of_threads_is_another() -> None:
    """The further run never has the number of threads that the plain one had."""
    from edgecnn.host import usable_threads

    assert other_threads() != usable_threads()
    assert other_threads() >= 1
