"""Distances, accuracy and confusion against scipy, scikit-learn and numpy by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cosine as cosine_distance
from sklearn.metrics import accuracy_score, confusion_matrix

from edgecnn.metrics import accuracy, confusion, distance


def test_distance_of_a_case_worked_by_hand() -> None:
    """Every field of a two by two case is what pencil and paper give."""
    found = distance(np.array([[3.0, -4.0], [0.0, 2.0]]), np.array([[3.0, -4.5], [1.0, 2.0]]))
    assert found.max_abs == 1.0
    assert found.max_rel == 1.0 / 4.0
    assert found.rms == pytest.approx(math.sqrt(1.25 / 4), rel=1e-15)
    assert found.sqnr_db == pytest.approx(10 * math.log10(29 / 1.25), rel=1e-15)
    assert found.cosine == pytest.approx((9 + 18 + 0 + 4) / math.sqrt(29 * (9 + 20.25 + 1 + 4)), rel=1e-15)
    assert found.top1_agreement == 1.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("noise", [1e-7, 1e-2, 3.0])
def test_distance_agrees_with_numpy_and_scipy(scale: float, noise: float) -> None:
    """On random arrays of any magnitude the fields agree with numpy's and scipy's own formulas."""
    rng = np.random.default_rng(7)
    a = scale * rng.normal(size=(40, 10))
    b = a + scale * noise * rng.normal(size=a.shape)
    found = distance(a, b)
    assert found.rms == pytest.approx(np.linalg.norm(b - a) / math.sqrt(a.size), rel=1e-12)
    assert found.max_abs == np.linalg.norm((b - a).ravel(), np.inf)
    assert found.max_rel == pytest.approx(np.linalg.norm((b - a).ravel(), np.inf) / np.abs(a).max(), rel=1e-12)
    assert found.sqnr_db == pytest.approx(20 * np.log10(np.linalg.norm(a) / np.linalg.norm(b - a)), rel=1e-9)
    assert found.cosine == pytest.approx(1 - cosine_distance(a.ravel(), b.ravel()), abs=1e-12)
    assert found.top1_agreement == accuracy_score(a.argmax(1), b.argmax(1))


def test_distance_computes_in_float64() -> None:
    """A float32 error is measured as it is, although float32 sums of so many squares would lose it."""
    a = np.full((1000, 100), 1000.0, dtype=np.float32)
    b = a.copy()
    b[0, 0] = np.nextafter(np.float32(1000), np.float32(2000))
    ulp = float(b[0, 0]) - 1000.0
    found = distance(a, b)
    assert found.rms == pytest.approx(ulp / math.sqrt(100_000), rel=1e-12)
    assert found.sqnr_db == pytest.approx(10 * math.log10(1e11 / ulp**2), rel=1e-12)


def test_distance_between_equals_is_nothing() -> None:
    """Equal arrays have no error, an infinite SQNR, which is None, and a cosine of one."""
    a = np.arange(1.0, 13.0).reshape(3, 4)
    found = distance(a, a.copy())
    assert (found.max_abs, found.max_rel, found.rms, found.sqnr_db, found.top1_agreement) == (0, 0, 0, None, 1)
    assert found.cosine == pytest.approx(1.0, abs=1e-15)


def test_distance_from_zeros_has_no_ratio() -> None:
    """A reference of zeros gives an infinite relative error, no SQNR and no likeness, and no division by zero."""
    found = distance(np.zeros((2, 3)), np.ones((2, 3)))
    assert (found.max_rel, found.sqnr_db, found.cosine) == (math.inf, None, 0.0)
    both = distance(np.zeros((2, 3)), np.zeros((2, 3)))
    assert (both.max_rel, both.sqnr_db, both.cosine) == (0.0, None, 1.0)


def test_an_opposite_answer_has_cosine_minus_one() -> None:
    """Turning all signs around gives a cosine of minus one and an SQNR of minus 6.02 dB."""
    a = np.array([[1.0, -2.0, 3.0]])
    found = distance(a, -a)
    assert found.cosine == pytest.approx(-1.0, abs=1e-15)
    assert found.sqnr_db == pytest.approx(-20 * math.log10(2), rel=1e-12)
    assert found.top1_agreement == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_distance_refuses_what_is_not_finite(bad: float, side: str) -> None:
    """One value that is not finite, on either side, is refused."""
    arrays = {"reference": np.ones((2, 3)), "candidate": np.ones((2, 3))}
    arrays[side][1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        distance(arrays["reference"], arrays["candidate"])


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (2, 4)), ((2, 3), (3, 2)), ((2, 3), (1, 3)), ((0, 3), (0, 3)), ((2, 0), (2, 0)), ((6,), (6,))]
)
def test_distance_refuses_other_shapes_and_nothing(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Different shapes, even those numpy would broadcast, and empty arrays are refused."""
    with pytest.raises(ValueError, match="cannot compare"):
        distance(np.ones(a), np.ones(b))


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (713, 719), (9967, 10_000)])
def test_accuracy_gives_wilsons_interval(correct: int, n: int) -> None:
    """The interval is scipy's Wilson score interval at 95 %, inside zero and one."""
    labels = np.zeros(n, dtype=np.int64)
    predicted = np.where(np.arange(n) < correct, 0, 1)
    found = accuracy(predicted, labels)
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert (found.value, found.correct, found.n) == (correct / n, correct, n)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilsons_interval_as_published() -> None:
    """Newcombe (1998, table I) gives 0.2553 to 0.3662 for 81 of 263, and 0 to 0.1611 for 0 of 20."""
    some = accuracy(np.arange(263) < 81, np.ones(263, dtype=bool))
    none = accuracy(np.zeros(20, dtype=np.int64), np.ones(20, dtype=np.int64))
    assert (round(some.low, 4), round(some.high, 4)) == (0.2553, 0.3662)
    assert (round(none.low, 4), round(none.high, 4)) == (0.0, 0.1611)


@pytest.mark.parametrize(("answers", "labels"), [(0, 0), (2, 3), (3, 2)])
def test_accuracy_refuses_nothing_and_unequal_lengths(answers: int, labels: int) -> None:
    """No samples, or more answers than labels, is an error and not an accuracy."""
    with pytest.raises(ValueError, match="as many answers"):
        accuracy(np.zeros(answers, dtype=np.int64), np.zeros(labels, dtype=np.int64))


def test_confusion_is_scikit_learns() -> None:
    """The table has true classes in rows, predicted ones in columns, and rows for classes never seen."""
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(0, 5, 300), rng.integers(0, 6, 300)
    table = confusion(predicted, labels, 7)
    assert np.array_equal(table, confusion_matrix(labels, predicted, labels=range(7)))
    assert table.shape == (7, 7)
    assert table.sum() == 300


def test_confusion_does_not_overflow_narrow_labels() -> None:
    """Labels kept in one byte are counted in the right cells, where label times classes exceeds 255."""
    labels = np.array([200, 200, 7], dtype=np.uint8)
    predicted = np.array([3, 199, 7], dtype=np.uint8)
    table = confusion(predicted, labels, 201)
    assert table[200, 3] == table[200, 199] == table[7, 7] == 1
    assert table.sum() == 3
