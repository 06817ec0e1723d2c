"""Distances, accuracy, confusion, scores by class and calibration against scipy, scikit-learn and numpy by hand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.spatial.distance import cosine as cosine_distance
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from edgecnn.metrics import (
    ECE_BINS,
    Array,
    accuracy,
    auc,
    balanced_accuracy,
    calibration,
    class_scores,
    confusion,
    distance,
    macro_f1,
    nll,
    roc_auc,
    softmax,
)


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


def random_answers(classes: int, n: int = 400, sharp: float = 2.0) -> tuple[Array, npt.NDArray[np.int64]]:
    """Make logits of a net that is often right, and the labels."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += sharp
    return logits, labels


@pytest.mark.parametrize("classes", [2, 3, 10, 43])
def test_class_scores_agree_with_scikit_learn(classes: int) -> None:
    """Precision, recall, F1 and support of every class, macro F1 and balanced accuracy are scikit-learn's."""
    logits, labels = random_answers(classes)
    predicted = logits.argmax(axis=1)
    names = [f"class {index}" for index in range(classes)]
    found = class_scores(confusion(predicted, labels, classes), names)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(classes))
    for column, field in zip(expected, ("precision", "recall", "f1", "support"), strict=True):
        assert [getattr(score, field) for score in found] == pytest.approx(column.tolist(), abs=1e-15)
    assert [score.label for score in found] == names
    assert macro_f1(found) == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-15)
    assert balanced_accuracy(found) == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-15)


def test_scores_that_divide_by_zero_are_none() -> None:
    """A class never answered has no precision, one without images no recall, one without either no F1 either."""
    predicted, labels = np.array([0, 0, 2, 0]), np.array([0, 1, 0, 0])
    table = confusion(predicted, labels, 4)
    first, silent, foreign, absent = class_scores(table, ("first", "silent", "foreign", "absent"))
    assert (first.precision, first.recall, first.f1, first.support) == (2 / 3, 2 / 3, 2 / 3, 3)
    assert (silent.precision, silent.recall, silent.f1, silent.support) == (None, 0.0, 0.0, 1)
    assert (foreign.precision, foreign.recall, foreign.f1, foreign.support) == (0.0, None, 0.0, 0)
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (None, None, None, 0)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=np.nan)
    for column, field in zip(expected[:3], ("precision", "recall", "f1"), strict=True):
        ours = [getattr(score, field) for score in (first, silent, foreign, absent)]
        assert [value is None for value in ours] == np.isnan(column).tolist()
    assert macro_f1((first, silent, foreign, absent)) == pytest.approx(2 / 9)
    assert balanced_accuracy((first, silent, foreign, absent)) == pytest.approx(1 / 3)
    assert macro_f1(()) is None
    assert balanced_accuracy((absent,)) is None


def test_class_scores_hold_table_and_labels_to_each_other() -> None:
    """A table that is not square, or has not one row a label, is refused."""
    for shape in ((2, 2), (3, 2), (4, 4)):
        with pytest.raises(ValueError, match="does not fit 3 labels"):
            class_scores(np.ones(shape, dtype=np.int64), ("a", "b", "c"))


def test_roc_auc_with_ties_agrees_with_scikit_learn() -> None:
    """Whatever the ties, the area is scikit-learn's."""
    rng = np.random.default_rng(11)
    for levels in (2, 5, 1000):
        scores, positive = rng.integers(0, levels, 500).astype(np.float64), rng.random(500) < 0.2
        assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_roc_auc_of_cases_known_by_heart() -> None:
    """All in order is 1, all the wrong way round 0, all tied one half, and without one side it is None."""
    positive = np.array([False, False, True, True])
    assert roc_auc(np.array([-np.inf, 1.0, 2.0, np.inf]), positive) == 1.0
    assert roc_auc(np.array([4.0, 3.0, 2.0, 1.0]), positive) == 0.0
    assert roc_auc(np.ones(4), positive) == 0.5
    assert roc_auc(np.ones(4), np.ones(4, dtype=bool)) is None
    assert roc_auc(np.ones(4), np.zeros(4, dtype=bool)) is None
    with pytest.raises(ValueError, match="NaN"):
        roc_auc(np.array([1.0, np.nan, 2.0, 3.0]), positive)


def test_auc_of_two_classes_agrees_with_scikit_learn() -> None:
    """The area of two classes is scikit-learn's of the second class's probability, and the same seen from the first."""
    logits, labels = random_answers(2, sharp=0.5)
    assert auc(logits, labels) == pytest.approx(roc_auc_score(labels, softmax(logits)[:, 1]), abs=1e-12)
    assert auc(logits[:, ::-1], 1 - labels) == pytest.approx(auc(logits, labels) or 0.0, abs=1e-12)


@pytest.mark.parametrize("classes", [3, 10, 43])
def test_auc_of_many_classes_agrees_with_scikit_learn(classes: int) -> None:
    """The mean of one class against the rest is scikit-learn's."""
    logits, labels = random_answers(classes, sharp=0.5)
    expected = roc_auc_score(labels, softmax(logits), multi_class="ovr")
    assert auc(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_auc_leaves_out_classes_without_images() -> None:
    """The mean is over the classes that have images; with images of one class alone there is none."""
    logits, labels = random_answers(5)
    kept = labels < 3
    probabilities = softmax(logits)[kept]
    expected = np.mean([roc_auc_score(labels[kept] == index, probabilities[:, index]) for index in range(3)])
    assert auc(logits[kept], labels[kept]) == pytest.approx(expected, abs=1e-12)
    assert auc(logits[labels == 1], labels[labels == 1]) is None


@pytest.mark.parametrize("classes", [2, 3])
def test_auc_ranks_where_probabilities_saturate(classes: int) -> None:
    """Logits so large that every probability is 0 or 1 in float64 are ranked all the same."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 50)
    logits = np.zeros((100, classes))
    logits[:, 1] = 1000 + labels * 5 + rng.normal(size=100)
    assert set(softmax(logits)[:, 1]) == {1.0}
    expected = [roc_auc_score(labels == 1, logits[:, 1])] if classes == 2 else [
        roc_auc_score(labels == 0, -logits[:, 1]), roc_auc_score(labels == 1, logits[:, 1])
    ]  # fmt: skip
    assert auc(logits, labels) == pytest.approx(np.mean(expected), abs=1e-12)
    assert np.mean(expected) > 0.99


def test_nll_and_brier_agree_with_scikit_learn() -> None:
    """Negative log-likelihood and Brier score are scikit-learn's; of two classes Brier's is twice the one-column form."""
    for classes in (2, 7):
        logits, labels = random_answers(classes)
        found = calibration(logits, labels)
        assert found.nll == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-12)
        one_hot = np.eye(classes)[labels]
        assert found.brier == pytest.approx(np.square(softmax(logits) - one_hot).sum(axis=1).mean(), rel=1e-12)
    logits, labels = random_answers(2)
    assert calibration(logits, labels).brier == pytest.approx(
        2 * brier_score_loss(labels, softmax(logits)[:, 1]), rel=1e-12
    )


def test_nll_of_a_wrong_certainty_is_finite() -> None:
    """A net that is certain and wrong pays the distance of its logits, where its probability is 0 in float64."""
    assert nll(np.array([[2000.0, 0.0]]), np.array([1])) == 2000.0
    assert nll(np.array([[2000.0, 0.0]]), np.array([0])) == 0.0


def with_confidence(confidence: npt.NDArray[np.float64]) -> Array:
    """Make logits of two classes that answer 0 with these confidences."""
    return np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)


def test_ece_of_a_case_worked_by_hand() -> None:
    """Five answers in three bins give the gaps that pencil and paper give."""
    confidence = np.array([0.65, 0.66, 0.85, 0.86, 0.95])
    labels = np.array([0, 1, 0, 0, 1])
    found = calibration(with_confidence(confidence), labels)
    # (0.6, 0.667] holds two with one right, (0.8, 0.867] two with both, (0.933, 1] one with none.
    by_hand = (abs(1 - 1.31) + abs(2 - 1.71) + abs(0 - 0.95)) / 5
    assert found.ece == pytest.approx(by_hand, rel=1e-12)
    filled = {index: score for index, score in enumerate(found.bins) if score.count}
    assert sorted(filled) == [9, 12, 14]
    assert [score.count for score in filled.values()] == [2, 2, 1]
    assert [score.accuracy for score in filled.values()] == [0.5, 1.0, 0.0]
    assert [score.confidence for score in filled.values()] == pytest.approx([0.655, 0.855, 0.95])
    empty = [score for score in found.bins if not score.count]
    assert all(score.confidence is None and score.accuracy is None for score in empty)


def test_bins_are_fifteen_open_below_and_closed_above() -> None:
    """The bins divide 0 to 1 into fifteen, and a confidence of exactly 1 or one half falls into the bin it closes."""
    found = calibration(np.array([[800.0, 0.0], [0.0, 0.0]]), np.array([0, 0]))
    assert len(found.bins) == ECE_BINS == 15
    assert [score.low for score in found.bins] == pytest.approx(np.linspace(0, 1, 16)[:-1].tolist())
    assert [score.high for score in found.bins] == pytest.approx(np.linspace(0, 1, 16)[1:].tolist())
    assert [index for index, score in enumerate(found.bins) if score.count] == [7, 14]
    fifths = calibration(np.zeros((1, 5)), np.array([0]))
    assert [index for index, score in enumerate(fifths.bins) if score.count] == [2]  # 1/5 is the edge 3/15


def test_ece_of_calibrated_draws_is_what_chance_makes() -> None:
    """Labels drawn with the very probabilities give an ECE near 0, of the size said to be chance's, at every size."""
    rng = np.random.default_rng(5)
    for n, rounds, sharp in ((100, 400, 3.0), (300, 400, 14.0), (5000, 100, 3.0)):
        found = []
        for _ in range(rounds):
            logits = sharp * rng.normal(size=(n, 4))
            labels = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
            found.append(calibration(logits, np.minimum(labels, 3)))
        assert np.mean([one.ece for one in found]) == pytest.approx(
            np.mean([one.ece_by_chance for one in found]), rel=0.1
        )
    assert max(one.ece for one in found) < 0.03


def test_ece_of_an_overconfident_net_is_its_gap() -> None:
    """A net that is 99 % sure and right four times in five has an ECE of 19 points, far from chance's."""
    confidence = np.full(5000, 0.99)
    labels = (np.arange(5000) % 5 == 0).astype(np.int64)
    found = calibration(with_confidence(confidence), labels)
    assert found.ece == pytest.approx(0.19, abs=1e-12)
    assert found.ece_by_chance < 0.002


@pytest.mark.parametrize("fault", ["nan", "negative", "too large", "length", "nothing", "one dimension"])
def test_scores_refuse_what_cannot_be_scored(fault: str) -> None:
    """Logits that are not finite, labels that are no class, other lengths and empty sets are refused by all three."""
    logits, labels = random_answers(3, n=6)
    if fault == "nan":
        logits[2, 1] = np.nan
    elif fault in ("negative", "too large"):
        labels[0] = -1 if fault == "negative" else 3
    elif fault == "length":
        labels = labels[:5]
    elif fault == "nothing":
        logits, labels = logits[:0], labels[:0]
    else:
        logits = logits[:, 0]
    for score in (nll, auc, calibration):
        with pytest.raises(ValueError, match="logit"):
            score(logits, labels)


def test_scores_compute_in_float64() -> None:
    """float32 logits give exactly what their float64 copies give."""
    logits, labels = random_answers(10)
    narrow = logits.astype(np.float32)
    assert calibration(narrow, labels) == calibration(narrow.astype(np.float64), labels)
    assert auc(narrow, labels) == auc(narrow.astype(np.float64), labels)
