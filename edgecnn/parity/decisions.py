"""Same decisions? Paired answers on labelled images, and whether the loss is shown to be within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import DataError
from edgecnn.metrics import Accuracy, accuracy
from edgecnn.parity.intervals import detectable_drop, drop_interval, images_needed
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Frozen, Tolerance

LISTED = 20  # flips that are described one by one; all are counted
Array = npt.NDArray[Any]
Margins = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]


class Flip(Frozen, frozen=True):
    """One image on which the two sides answer differently.

    `index` is its place among the samples, `truth` its label where there is one. A margin is the logit of a side's answer
    less that side's next best, None where only classes are known.
    """

    image: str
    reference: str
    candidate: str
    index: int = -1
    truth: str | None = None
    reference_margin: float | None = None
    candidate_margin: float | None = None


class Agreement(Frozen, frozen=True):
    """How often two sides name the same class, labels or not; `flips` lists the first where they do not."""

    n: int
    changed: int
    share: float
    flips: tuple[Flip, ...]


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
    margins: Margins | None = None,
) -> Decisions:
    """Judge two lists of predicted classes (N,) on the same labelled images: non-inferiority, paired.

    `margins` are those of the two sides (N,), for the list of flips.

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
        flips=list_flips(reference, candidate, changed[:LISTED], names, classes, labels, margins),
    )


def agree(
    reference: Array,
    candidate: Array,
    names: Sequence[str],
    classes: Sequence[str],
    labels: npt.NDArray[np.integer] | None = None,
) -> Agreement:
    """Compare the classes that two sides' logits (N, classes) name.

    Raises:
        DataError: there are no samples, or the two are not of one shape.
    """
    if not len(names) or reference.shape != candidate.shape or len(reference) != len(names):
        raise DataError(f"agreement needs the same samples on both sides: {reference.shape} and {candidate.shape}")
    ours, theirs = reference.argmax(axis=1), candidate.argmax(axis=1)
    changed = np.flatnonzero(ours != theirs)
    listed = list_flips(
        ours, theirs, changed[:LISTED], names, classes, labels, (margins_of(reference), margins_of(candidate))
    )
    return Agreement(n=len(names), changed=len(changed), share=1 - len(changed) / len(names), flips=listed)


def margins_of(logits: Array) -> npt.NDArray[np.float64]:
    """Give, of logits (N, classes), the largest less the second of each row; 0 where the two are equal."""
    best = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    margins: npt.NDArray[np.float64] = best[:, 1] - best[:, 0]
    return margins


def list_flips(
    reference: npt.NDArray[np.integer],
    candidate: npt.NDArray[np.integer],
    indices: Iterable[int],
    names: Sequence[str],
    classes: Sequence[str],
    labels: npt.NDArray[np.integer] | None,
    margins: Margins | None,
) -> tuple[Flip, ...]:
    """Describe the samples at `indices`, whose predicted classes are given for all (N,)."""
    return tuple(
        Flip(
            image=names[index],
            index=int(index),
            truth=None if labels is None else classes[labels[index]],
            reference=classes[reference[index]],
            candidate=classes[candidate[index]],
            reference_margin=None if margins is None else float(margins[0][index]),
            candidate_margin=None if margins is None else float(margins[1][index]),
        )
        for index in indices
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
