"""Same decisions? Paired answers on labelled images, and whether the loss is shown to be within the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgecnn.errors import DataError
from edgecnn.metrics import Accuracy, accuracy
from edgecnn.parity.intervals import detectable_drop, drop_interval, images_needed
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Frozen, Tolerance

_LISTED = 20


class Flip(Frozen, frozen=True):
    """One image on which the two sides answer differently."""

    image: str
    truth: str
    reference: str
    candidate: str


class Decisions(Frozen, frozen=True):
    """The answer to the second question, with its arithmetic.

    `lost` and `gained` count images that only the reference, or only the candidate, answers rightly; `changed`
    counts every different answer. All rates are fractions; `drop_low` and `drop_high` are one-sided bounds at
    the tolerance's confidence.
    """

    verdict: Verdict
    reason: str
    n: int
    reference_accuracy: Accuracy
    candidate_accuracy: Accuracy
    lost: int
    gained: int
    changed: int
    drop: float
    drop_low: float
    drop_high: float
    detectable_drop: float
    images_needed: int | None
    flips: tuple[Flip, ...]


def judge_decisions(
    reference: npt.NDArray[np.integer],
    candidate: npt.NDArray[np.integer],
    labels: npt.NDArray[np.integer],
    names: Sequence[str],
    classes: Sequence[str],
    tolerance: Tolerance,
) -> Decisions:
    """Judge two lists of predicted classes (N,) on the same labelled images: non-inferiority, paired.

    Raises:
        DataError: there are no images, or the lists are not of one length.
    """
    if not len(labels) or not len(reference) == len(candidate) == len(labels) == len(names):
        raise DataError(f"decisions need the same images on both sides and at least one, not {len(labels)}")
    right, still = reference == labels, candidate == labels
    lost, gained, n = int((right & ~still).sum()), int((~right & still).sum()), len(labels)
    low, high = drop_interval(lost, gained, n, tolerance.confidence)
    needed = images_needed(lost, gained, n, tolerance.max_drop, tolerance.confidence)
    if high < tolerance.max_drop:
        verdict = Verdict.PASS
    else:
        verdict = Verdict.FAIL if low > tolerance.max_drop else Verdict.INCONCLUSIVE
    changed = np.flatnonzero(reference != candidate)
    return Decisions(
        verdict=verdict,
        reason=_explain(verdict, lost, gained, n, low, high, needed, tolerance),
        n=n,
        reference_accuracy=accuracy(reference, labels),
        candidate_accuracy=accuracy(candidate, labels),
        lost=lost,
        gained=gained,
        changed=len(changed),
        drop=(lost - gained) / n,
        drop_low=low,
        drop_high=high,
        detectable_drop=detectable_drop(n, tolerance.confidence),
        images_needed=needed,
        flips=tuple(
            Flip(
                image=names[index],
                truth=classes[labels[index]],
                reference=classes[reference[index]],
                candidate=classes[candidate[index]],
            )
            for index in changed[:_LISTED]
        ),
    )


def _explain(
    verdict: Verdict, lost: int, gained: int, n: int, low: float, high: float, needed: int | None, tolerance: Tolerance
) -> str:
    budget, sure = f"{tolerance.max_drop * 100:.2f}", f"{tolerance.confidence * 100:.4g}%"
    seen = f"of {n} images {lost} lost and {gained} gained: the drop is {(lost - gained) / n * 100:+.2f} points"
    if verdict is Verdict.PASS:
        exact = 1 - (1 - tolerance.confidence) ** (1 / n)
        told = not lost + gained and abs(exact - high) < 1e-9
        formula = f" (no flip in {n}: 1 - {1 - tolerance.confidence:.2g}^(1/{n}))" if told else ""
        return f"{seen} and, with {sure} confidence, below {high * 100:.2f}{formula}; the budget is {budget}"
    if verdict is Verdict.FAIL:
        return f"{seen} and, with {sure} confidence, above {low * 100:.2f}; the budget is {budget}"
    more = f"about {needed} images are needed" if needed else "the drop seen is no smaller than the budget"
    return f"{seen}, but up to {high * 100:.2f} cannot be excluded, the budget is {budget}: {more}"
