"""Judging logits in units of float32's own error, and quantized ones by their recorded answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from edgecnn.parity.computation import Recorded, Truth, find_fault, judge_float, judge_half, judge_quantized, softmax
from edgecnn.parity.recording import SPECIFIED
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Tolerance

Array = npt.NDArray[Any]
N, CLASSES = 50, 10


def _truth(noise: float = 1e-6) -> Truth:
    """Make a truth whose float32 is off by exactly `noise`, up and down by turns."""
    rng = np.random.default_rng(1)
    exact = rng.normal(0, 4, (N, CLASSES))
    return Truth("by hand", exact, exact + noise * _signs())


def _signs() -> Array:
    return np.where(np.arange(N * CLASSES).reshape(N, CLASSES) % 2, 1.0, -1.0)


@pytest.mark.parametrize("multiple", [0.0, 0.5, 1.0, 7.0, 9.9])
def test_an_error_within_the_multiple_passes(multiple: float) -> None:
    """An error of so many times float32's own is reported as that multiple, and passes up to ten."""
    truth = _truth()
    found = judge_float(truth.float64 + multiple * 1e-6 * _signs()[::-1], truth, Tolerance())
    assert found.multiple == pytest.approx(multiple, rel=1e-6, abs=1e-6)
    assert found.verdict is Verdict.PASS
    assert found.n == N
    assert found.truth == "by hand"


@pytest.mark.parametrize("multiple", [16.1, 1e3, 1e6])
def test_an_error_over_the_multiple_fails(multiple: float) -> None:
    """An error of more than ten times float32's own fails, and the reason says how many times."""
    truth = _truth()
    found = judge_float(truth.float64 - multiple * 1e-6 * _signs(), truth, Tolerance())
    assert found.verdict is Verdict.FAIL
    assert f"{multiple:.3g} times" in found.reason


def test_the_allowed_multiple_is_the_tolerances() -> None:
    """The same answers pass or fail by the multiple that is allowed."""
    truth = _truth()
    logits = truth.float64 + 3e-6 * _signs()
    assert judge_float(logits, truth, Tolerance(noise_multiple=2.9)).verdict is Verdict.FAIL
    assert judge_float(logits, truth, Tolerance(noise_multiple=3.1)).verdict is Verdict.PASS


def test_one_bad_value_among_many_fails() -> None:
    """A single logit that is far off fails by the largest error, although the mean hardly moves."""
    truth = _truth()
    logits = truth.float32.copy()
    logits[3, 4] = truth.float64[3, 4] + 17e-6
    found = judge_float(logits, truth, Tolerance())
    assert found.distance is not None
    assert found.distance.rms < 2e-6
    assert found.multiple == pytest.approx(17, rel=1e-6)
    assert found.verdict is Verdict.FAIL


def test_a_small_error_everywhere_fails_by_the_mean() -> None:
    """Where float32 is off in one value only, an error of that size everywhere fails by the root mean square."""
    truth = _truth()
    exact = truth.float64
    one = exact.copy()
    one[0, 0] += 1e-3
    found = judge_float(exact + 1e-3 * _signs(), Truth("x", exact, one), Tolerance())
    assert found.multiple == pytest.approx(np.sqrt(N * CLASSES), rel=1e-6)
    assert found.verdict is Verdict.FAIL


def test_an_exact_float32_is_judged_by_its_rounding() -> None:
    """Where float32 hits the truth exactly, the unit is half a unit in the last place, not zero."""
    exact = np.full((4, 3), 8.0)
    truth = Truth("exact", exact, exact.astype(np.float32))
    ulp = float(np.spacing(np.float32(8.0)))
    near = judge_float(exact + ulp, truth, Tolerance())
    assert near.verdict is Verdict.PASS
    assert near.multiple == pytest.approx(2.0, rel=1e-9)
    assert judge_float(exact.copy(), truth, Tolerance()).multiple == 0.0
    assert judge_float(exact + 9 * ulp, truth, Tolerance()).verdict is Verdict.FAIL


def test_nothing_but_zeros_is_judged_without_a_division_by_zero() -> None:
    """A truth of zeros passes with zeros and fails with anything else."""
    zeros = np.zeros((2, 2))
    truth = Truth("zeros", zeros, zeros)
    assert judge_float(zeros, truth, Tolerance()).verdict is Verdict.PASS
    assert judge_float(zeros + 1e-30, truth, Tolerance()).verdict is Verdict.FAIL


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_passes(bad: float) -> None:
    """One NaN or infinity among the logits is refused outright."""
    truth = _truth()
    logits = truth.float32.copy()
    logits[0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        judge_float(logits, truth, Tolerance())


@pytest.mark.parametrize("shape", [(N, CLASSES - 1), (N - 1, CLASSES), (1, CLASSES), (N, CLASSES, 1)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Logits that numpy could broadcast against the truth are refused all the same."""
    with pytest.raises(ValueError, match="cannot compare"):
        judge_float(np.zeros(shape), _truth(), Tolerance())


def _recorded(own: float = 0.1) -> tuple[Truth, Recorded]:
    """Make an artifact whose recorded answers are off the truth by exactly `own`."""
    truth = _truth()
    return truth, Recorded(truth.float64 + own * _signs(), truth.float64)


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, Verdict.PASS), (0.3, Verdict.PASS), (0.51, Verdict.FAIL), (20.0, Verdict.FAIL)]
)
def test_a_quantized_artifact_is_judged_by_its_recorded_answers(share: float, verdict: Verdict) -> None:
    """Its difference from what it answered at export is told as a share of its quantization error, half is allowed."""
    truth, recorded = _recorded()
    again = recorded.logits + share * 0.1 * _signs()[:, ::-1]
    found = judge_quantized(again, again, truth, recorded, Tolerance().recorded_share)
    assert found.share == pytest.approx(share, rel=1e-9, abs=1e-9)
    assert found.verdict is verdict
    assert found.truth == "its own recorded answers"
    assert found.multiple is None


def test_the_share_and_the_distance_are_of_their_own_images() -> None:
    """The distance from float64 is of the truth's images, the share of the recorded ones, whatever their number."""
    truth, recorded = _recorded()
    few = Recorded(recorded.logits[:5], recorded.float64[:5])
    found = judge_quantized(truth.float64 + 0.25 * _signs(), few.logits, truth, few, Tolerance().recorded_share)
    assert found.distance is not None
    assert found.distance.rms == pytest.approx(0.25, rel=1e-9)
    assert (found.share, found.n, found.verdict) == (0.0, 5, Verdict.PASS)


def test_a_large_quantization_error_alone_is_not_another_computation() -> None:
    """An artifact far from float64 passes where it answers as it did: its accuracy is the second question's business."""
    truth, recorded = _recorded(own=3.0)
    found = judge_quantized(recorded.logits, recorded.logits, truth, recorded, Tolerance().recorded_share)
    assert found.verdict is Verdict.PASS
    assert found.distance is not None
    assert found.distance.rms == pytest.approx(3.0, rel=1e-9)


def test_without_recorded_answers_nothing_is_measured() -> None:
    """A quantized artifact of which nothing was recorded is NOT MEASURED, even where it hits the truth exactly."""
    truth = _truth()
    found = judge_quantized(truth.float64, None, truth, None, Tolerance().recorded_share)
    assert found.verdict is Verdict.NOT_MEASURED
    assert found.share is None
    assert found.distance is not None


def test_a_quantized_artifact_without_error_of_its_own_must_answer_alike() -> None:
    """Where the recorded answers are the truth itself, the same answers pass and any other fails."""
    truth, recorded = _recorded(own=0.0)
    assert (
        judge_quantized(recorded.logits, recorded.logits, truth, recorded, Tolerance().recorded_share).verdict
        is Verdict.PASS
    )
    other = recorded.logits + 1e-9
    assert judge_quantized(other, other, truth, recorded, Tolerance().recorded_share).verdict is Verdict.FAIL


def _half(off: float) -> tuple[Truth, Recorded]:
    """Make a truth of 2 and -2 throughout, and float16 answers that are off by exactly this share of it."""
    exact = 2 * _signs()[::-1]
    return Truth("by hand", exact, exact), Recorded(exact + 2 * off * _signs()[:, ::-1], exact, SPECIFIED)


@pytest.mark.parametrize(
    ("off", "verdict"),
    [(6e-4, Verdict.PASS), (4.99e-3, Verdict.PASS), (5.01e-3, Verdict.NOT_MEASURED), (1.0, Verdict.NOT_MEASURED)],
)
def test_float16_that_is_off_by_more_than_its_rounding_is_no_unit(off: float, verdict: Verdict) -> None:
    """Up to 5e-3 of the logits' size float16's error is a unit, of which an equal answer has one; beyond, nothing passes by it."""
    truth, recorded = _half(off)
    found = judge_half(recorded.logits, recorded.logits, truth, recorded, Tolerance())
    assert found.verdict is verdict
    assert found.multiple == (pytest.approx(1.0) if verdict is Verdict.PASS else None)
    assert (f"off by {off:.2g} of the logits' size" in found.reason) == (verdict is Verdict.NOT_MEASURED)
    assert found.distance is not None
    assert found.distance.rms == pytest.approx(2 * off)


def test_a_single_value_that_float16_misses_leaves_a_unit() -> None:
    """It is the root mean square that is held to 5e-3: one value of 500 may be off by a tenth, by an eighth it may not."""
    for off, verdict in ((0.11, Verdict.PASS), (0.12, Verdict.NOT_MEASURED)):
        truth, recorded = _half(0.0)
        recorded.logits[7, 3] += 2 * off  # 2 * off / sqrt(500), over 2
        assert (off / np.sqrt(N * CLASSES) < 5e-3) == (verdict is Verdict.PASS)
        assert judge_half(recorded.logits, recorded.logits, truth, recorded, Tolerance()).verdict is verdict


@pytest.mark.parametrize(("multiple", "verdict"), [(0.0, Verdict.PASS), (9.9, Verdict.PASS), (10.1, Verdict.FAIL)])
def test_float16_is_judged_in_units_of_float16(multiple: float, verdict: Verdict) -> None:
    """An error of so many times float16's own is told as that multiple, and passes up to what is allowed."""
    truth, recorded = _half(1e-3)
    again = truth.float64 - multiple * 2e-3 * _signs()
    found = judge_half(truth.float64 + 0.25, again, truth, recorded, Tolerance())
    assert found.multiple == pytest.approx(multiple, rel=1e-9, abs=1e-9)
    assert found.distance is not None
    assert found.distance.rms == pytest.approx(0.25), "the distance is that of the truth's samples"
    assert (found.verdict, found.n) == (verdict, N)


def test_float16_of_nothing_but_zeros_is_judged_without_a_division_by_zero() -> None:
    """Where the truth is zeros and float16 is not, there is no unit and no crash."""
    zeros = np.zeros((2, 2))
    truth, recorded = Truth("zeros", zeros, zeros), Recorded(zeros + 1e-4, zeros, SPECIFIED)
    found = judge_half(zeros, zeros, truth, recorded, Tolerance())
    assert (found.verdict, "off by 0.0001" in found.reason) == (Verdict.NOT_MEASURED, True)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_softmax_is_scipys(size: float) -> None:
    """Probabilities are scipy's softmax over classes, in float64, also for logits whose exponential overflows."""
    logits = (size * np.random.default_rng(2).normal(size=(20, 7))).astype(np.float32)
    found = softmax(logits)
    assert found.dtype == np.float64
    assert np.allclose(found, special.softmax(logits.astype(np.float64), axis=1), rtol=1e-12, atol=0)


def _outputs() -> dict[str, Array]:
    logits = np.random.default_rng(3).normal(0, 3, (6, 4)).astype(np.float32)
    return {"logits": logits, "probabilities": special.softmax(logits, axis=1)}


def test_right_outputs_have_no_fault() -> None:
    """Finite logits with their float32 softmax are fit for comparison."""
    assert find_fault(_outputs()) is None


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_a_fault(output: str, bad: float) -> None:
    """The output with such values is named and they are counted."""
    outputs = _outputs()
    outputs[output] = outputs[output].copy()
    outputs[output][1, :2] = bad
    assert find_fault(outputs) == f"output {output!r} has 2 values that are not finite"


@pytest.mark.parametrize("wrong", ["axis", "scaled", "logits", "sigmoid", "shuffled", "one value"])
def test_probabilities_that_are_no_softmax_are_a_fault(wrong: str) -> None:
    """Each usual way to get the softmax wrong is told by how far it is off."""
    outputs = _outputs()
    logits, right = outputs["logits"], outputs["probabilities"]
    bumped = right.copy()
    bumped[5, 3] += 2e-5
    outputs["probabilities"] = {
        "axis": special.softmax(logits, axis=0),
        "scaled": right * 0.999,
        "logits": logits,
        "sigmoid": special.expit(logits),
        "shuffled": right[:, ::-1],
        "one value": bumped,
    }[wrong]
    fault = find_fault(outputs)
    assert fault is not None
    assert "not the softmax" in fault


@pytest.mark.parametrize("shape", [(6, 3), (6, 5), (6,), (5, 4), (6, 1), (1, 4)])
def test_probabilities_of_another_shape_are_a_fault(shape: tuple[int, ...]) -> None:
    """Probabilities that do not go with the logits are told as a fault and raise nothing."""
    outputs = _outputs()
    outputs["probabilities"] = np.full(shape, 0.25, dtype=np.float32)
    assert find_fault(outputs) is not None
