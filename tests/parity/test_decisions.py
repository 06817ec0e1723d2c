"""Verdicts on paired answers: counts by hand, non-inferiority, and honest words about too little evidence."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from edgecnn.errors import DataError
from edgecnn.parity.decisions import Decisions, judge_decisions
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Tolerance

CLASSES = ("ant", "bee", "cat")
Answers = npt.NDArray[np.int64]


def _pairs(n: int, lost: int, gained: int, both_wrong: int = 0, swapped: int = 0) -> tuple[Answers, Answers, Answers]:
    """Make truth, reference and candidate with these counts; `swapped` images are wrong in two different ways."""
    labels = np.zeros(n, dtype=np.int64)
    reference, candidate = labels.copy(), labels.copy()
    edges = np.cumsum([0, lost, gained, both_wrong, swapped])
    candidate[edges[0] : edges[1]] = 1
    reference[edges[1] : edges[2]] = 2
    reference[edges[2] : edges[3]] = candidate[edges[2] : edges[3]] = 1
    reference[edges[3] : edges[4]], candidate[edges[3] : edges[4]] = 1, 2
    return labels, reference, candidate


def _judge(
    n: int, lost: int, gained: int, both_wrong: int = 0, swapped: int = 0, tolerance: Tolerance | None = None
) -> Decisions:
    labels, reference, candidate = _pairs(n, lost, gained, both_wrong, swapped)
    names = [f"image-{index}" for index in range(n)]
    return judge_decisions(reference, candidate, labels, names, CLASSES, tolerance or Tolerance())


def test_counts_and_accuracies_are_those_by_hand() -> None:
    """Lost, gained, changed and both accuracies of a case counted by hand come out."""
    found = _judge(100, lost=5, gained=2, both_wrong=7, swapped=3)
    assert (found.lost, found.gained, found.changed, found.n) == (5, 2, 10, 100)
    assert found.drop == pytest.approx(0.03, abs=1e-15)
    assert found.reference_accuracy.correct == 100 - 2 - 7 - 3
    assert found.candidate_accuracy.correct == 100 - 5 - 7 - 3
    assert found.reference_accuracy.value - found.candidate_accuracy.value == pytest.approx(found.drop, abs=1e-15)
    assert found.drop_low < found.drop < found.drop_high


@pytest.mark.parametrize(
    ("n", "lost", "gained", "verdict"),
    [
        (298, 0, 0, Verdict.INCONCLUSIVE),  # 1 - 0.05^(1/298) is 1.0003 points
        (299, 0, 0, Verdict.PASS),
        (5, 0, 0, Verdict.INCONCLUSIVE),
        (10_000, 0, 500, Verdict.PASS),
        (10_000, 60, 20, Verdict.PASS),
        (10_000, 100, 0, Verdict.INCONCLUSIVE),  # right on the budget
        (10_000, 85, 0, Verdict.INCONCLUSIVE),
        (10_000, 300, 0, Verdict.FAIL),
        (100, 20, 0, Verdict.FAIL),
        (3, 3, 0, Verdict.FAIL),
        (3, 1, 0, Verdict.INCONCLUSIVE),
    ],
)
def test_verdict_is_non_inferiority(n: int, lost: int, gained: int, verdict: Verdict) -> None:
    """PASS needs the bound inside a point, FAIL a drop shown to be over it, and all else is INCONCLUSIVE."""
    assert _judge(n, lost, gained).verdict is verdict


@pytest.mark.parametrize("lost", range(0, 60, 3))
def test_one_sided_losses_are_judged_as_the_binomial_does(lost: int) -> None:
    """Where nothing is gained, a PASS implies that the exact binomial limit is inside the budget too."""
    found = _judge(2000, lost, 0, tolerance=Tolerance(max_drop=0.02))
    limit = stats.beta.ppf(0.95, lost + 1, 2000 - lost)
    assert found.drop_high >= limit * (1 - 1e-9)
    assert found.verdict is not Verdict.PASS or limit < 0.02
    assert found.verdict is not Verdict.FAIL or lost / 2000 > 0.02


def test_equal_accuracy_is_not_enough() -> None:
    """Many flips that cancel out leave the drop at zero and the verdict open."""
    found = _judge(400, lost=40, gained=40)
    assert found.drop == 0
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "images are needed" in found.reason


def test_the_budget_and_the_confidence_are_the_tolerances() -> None:
    """A wider budget or less confidence turns the same answers from INCONCLUSIVE to PASS, a narrower one to FAIL."""
    assert _judge(500, 5, 0).verdict is Verdict.INCONCLUSIVE
    assert _judge(500, 5, 0, tolerance=Tolerance(max_drop=0.05)).verdict is Verdict.PASS
    assert _judge(500, 5, 0, tolerance=Tolerance(max_drop=0.001)).verdict is Verdict.FAIL
    assert _judge(260, 0, 0, tolerance=Tolerance(confidence=0.9)).verdict is Verdict.PASS
    assert _judge(260, 0, 0).verdict is Verdict.INCONCLUSIVE


def test_a_budget_of_nothing_is_never_met() -> None:
    """With no drop allowed, not even equal answers on many images prove it."""
    assert _judge(5000, 0, 0, tolerance=Tolerance(max_drop=0.0)).verdict is Verdict.INCONCLUSIVE


def test_too_few_images_says_how_many_are_needed() -> None:
    """An INCONCLUSIVE verdict tells a number, and with that many images at the same rates it is a PASS."""
    found = _judge(100, 0, 0)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.images_needed == 300
    assert "about 300 images are needed" in found.reason
    assert _judge(found.images_needed, 0, 0).verdict is Verdict.PASS


def test_a_drop_over_the_budget_is_not_promised_to_go_away() -> None:
    """Where the drop seen is over the budget, the reason does not ask for more images."""
    found = _judge(100, 2, 0)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.images_needed is None
    assert "no smaller than the budget" in found.reason


@pytest.mark.parametrize(("n", "lost", "gained"), [(719, 0, 0), (5000, 3, 4), (100, 20, 0), (100, 1, 1)])
def test_the_reason_states_the_arithmetic(n: int, lost: int, gained: int) -> None:
    """The reason holds the counts, the drop in points, the bound and the budget."""
    found = _judge(n, lost, gained)
    shown = found.drop_low if found.verdict is Verdict.FAIL else found.drop_high
    assert f"of {n} images {lost} lost and {gained} gained" in found.reason
    assert f"{(lost - gained) / n * 100:+.2f} points" in found.reason
    assert f" {shown * 100:.2f}" in found.reason
    assert "the budget is 1.00" in found.reason


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_a_formula_in_the_reason_gives_the_number_beside_it(confidence: float) -> None:
    """Where the reason names the formula of its bound, evaluating it gives that bound."""
    found = _judge(5000, 0, 0, tolerance=Tolerance(confidence=confidence))
    assert found.verdict is Verdict.PASS
    said = re.search(r"below ([\d.]+)", found.reason)
    formula = re.search(r"1 - ([\d.]+)\^\(1/(\d+)\)", found.reason)
    assert said is not None
    assert float(said.group(1)) == pytest.approx(found.drop_high * 100, abs=0.0051)
    if formula is not None:
        value = -math.expm1(math.log(float(formula.group(1))) / int(formula.group(2)))
        assert value == pytest.approx(found.drop_high, rel=1e-6)


def test_flips_are_named() -> None:
    """Every different answer is listed with the image and the three classes, right or wrong."""
    found = _judge(10, lost=1, gained=1, swapped=1, tolerance=Tolerance(max_drop=0.9))
    rows = [(flip.image, flip.truth, flip.reference, flip.candidate) for flip in found.flips]
    assert rows == [
        ("image-0", "ant", "ant", "bee"),
        ("image-1", "ant", "cat", "ant"),
        ("image-2", "ant", "bee", "cat"),
    ]


def test_a_long_list_of_flips_is_cut_and_still_counted() -> None:
    """At most twenty flips are listed, and `changed` counts them all."""
    found = _judge(100, lost=30, gained=0)
    assert len(found.flips) == 20
    assert found.changed == 30


def test_wrong_answers_that_agree_are_no_flips() -> None:
    """Two backends that are wrong alike have no flip, no drop and their own, low, accuracy."""
    found = _judge(400, 0, 0, both_wrong=400)
    assert (found.changed, found.lost, found.gained, found.candidate_accuracy.value) == (0, 0, 0, 0.0)
    assert found.verdict is Verdict.PASS


def test_no_images_is_an_error() -> None:
    """An empty set is refused, not passed."""
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(DataError, match="at least one"):
        judge_decisions(none, none, none, [], CLASSES, Tolerance())


@pytest.mark.parametrize("short", ["reference", "candidate", "labels", "names"])
def test_lists_of_different_lengths_are_an_error(short: str) -> None:
    """Answers, labels and names that do not belong to the same images are refused, also where numpy would broadcast."""
    lists = {name: np.zeros(4, dtype=np.int64) for name in ("reference", "candidate", "labels")}
    names = ["a", "b", "c", "d"]
    if short == "names":
        names = names[:1]
    else:
        lists[short] = lists[short][:1]
    with pytest.raises(DataError, match="the same images"):
        judge_decisions(lists["reference"], lists["candidate"], lists["labels"], names, CLASSES, Tolerance())
