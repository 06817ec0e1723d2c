"""Distances between tensors, accuracy with its interval, scores by class, calibration; numpy in float64 only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.spec import Frozen

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

ECE_BINS = 15
Z95_TWO_SIDED = 1.959963984540054


class Distance(Frozen, frozen=True):
    """How far `candidate` is from `reference`, over all elements.

    `sqnr_db` is 10 log10 of signal power over error power, None where there is no error (then it is infinite)
    or no signal. `max_rel` is the largest error relative to the reference's largest magnitude, which stays
    meaningful where single elements pass through zero.
    """

    max_abs: float
    max_rel: float
    rms: float
    sqnr_db: float | None
    cosine: float
    top1_agreement: float


class Accuracy(Frozen, frozen=True):
    """Share of right answers among `n`, with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    correct: int
    n: int


class ClassScore(Frozen, frozen=True):
    """How well one class is told from the others; `support` is how many images of it there were.

    What would be a division by zero is None, neither 0 nor NaN: precision of a class that was never answered,
    recall of a class without an image, F1 of a class that is neither in the images nor in the answers.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class Mistake(Frozen, frozen=True):
    """A wrong answer: the image's name, the label it has, the one it got, and the probability of the latter."""

    image: str
    truth: str
    answer: str
    confidence: float


class ReliabilityBin(Frozen, frozen=True):
    """The answers given with a confidence above `low` and up to `high`; None where there were none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class Calibration(Frozen, frozen=True):
    """Whether probabilities mean what they say.

    `ece` is the expected calibration error. `ece_by_chance` is about what a perfectly calibrated net of the same
    confidences would show on as many images: an ECE that is not clearly above it is no finding. `nll` is the mean
    negative log-likelihood in nats. `brier` is the mean of the squared distance between probabilities and truth,
    summed over all classes (Brier 1950): 0 to 2, and for two classes twice the one-column form.
    """

    ece: float
    ece_by_chance: float
    nll: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


def distance(reference: Array, candidate: Array) -> Distance:
    """Compare two arrays of the same shape (samples, classes).

    Raises:
        ValueError: the shapes differ, there is nothing to compare, or a value is not finite.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or reference.size == 0:
        raise ValueError(f"cannot compare arrays of shape {reference.shape} and {candidate.shape}")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("cannot compare arrays with values that are not finite")
    error = b - a
    peak, signal, noise = float(np.abs(a).max()), float(np.square(a).sum()), float(np.square(error).sum())
    lengths = math.sqrt(signal * float(np.square(b).sum()))
    return Distance(
        max_abs=float(np.abs(error).max()),
        max_rel=float(np.abs(error).max()) / peak if peak else math.inf if noise else 0.0,
        rms=math.sqrt(noise / a.size),
        sqnr_db=10 * math.log10(signal / noise) if signal and noise else None,
        cosine=float((a * b).sum()) / lengths if lengths else 1.0 if not noise else 0.0,
        top1_agreement=float((a.argmax(1) == b.argmax(1)).mean()),
    )


def accuracy(predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]) -> Accuracy:
    """Count right answers and give Wilson's score interval at 95 % (Wilson 1927).

    Raises:
        ValueError: no samples, or as many answers as there are not labels.
    """
    if predicted.shape != labels.shape or labels.size == 0:
        raise ValueError(f"accuracy needs as many answers as labels and at least one: {predicted.size}, {labels.size}")
    n, correct = int(labels.size), int((predicted == labels).sum())
    low, high = wilson(correct, n)
    return Accuracy(value=correct / n, low=low, high=high, correct=correct, n=n)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Bound a share at 95 % by Wilson's score interval (1927)."""
    p, z2 = correct / n, Z95_TWO_SIDED**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion(
    predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """Count (true class, predicted class) pairs in a square table."""
    flat = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def class_scores(table: npt.NDArray[np.integer], labels: Sequence[str]) -> tuple[ClassScore, ...]:
    """Compute precision, recall and F1 of every class from a confusion table (true, predicted).

    Raises:
        ValueError: the table is not square, or has not one row a label.
    """
    if table.shape != (len(labels), len(labels)):
        raise ValueError(f"a confusion table of shape {table.shape} does not fit {len(labels)} labels")
    right, truth, answers = (line.tolist() for line in (table.diagonal(), table.sum(axis=1), table.sum(axis=0)))
    return tuple(
        ClassScore(
            label=label,
            precision=right[index] / answers[index] if answers[index] else None,
            recall=right[index] / truth[index] if truth[index] else None,
            f1=2 * right[index] / both if (both := truth[index] + answers[index]) else None,
            support=truth[index],
        )
        for index, label in enumerate(labels)
    )


def macro_f1(scores: Sequence[ClassScore]) -> float | None:
    """Average F1 over the classes that have one; None if none has."""
    return _mean([score.f1 for score in scores if score.f1 is not None])


def balanced_accuracy(scores: Sequence[ClassScore]) -> float | None:
    """Average recall over the classes that have images; None if none has."""
    return _mean([score.recall for score in scores if score.recall is not None])


def roc_auc(scores: Array, positive: npt.NDArray[np.bool_]) -> float | None:
    """Compute the area under the ROC curve: how often a positive scores above a negative, ties counting half.

    That is Mann and Whitney's rank statistic (Hanley and McNeil 1982). Infinite scores are allowed. None where
    positives or negatives are absent.

    Raises:
        ValueError: the shapes differ, or a score is NaN.
    """
    if scores.shape != positive.shape or scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"AUC needs one score an image, none NaN: {scores.shape}, {positive.shape}")
    ours, others = scores[positive], np.sort(scores[~positive])
    if not (ours.size and others.size):
        return None
    twice = np.searchsorted(others, ours, "left").sum() + np.searchsorted(others, ours, "right").sum()
    return float(int(twice) / (2 * ours.size * others.size))


def auc(logits: Array, labels: npt.NDArray[np.integer]) -> float | None:
    """Compute the AUC of two classes, or for more the mean of one class against the rest.

    Images are ranked by the log-odds of the class, which order as its probability does but never saturate at 0 or 1.
    The mean is over the classes that have images; None where the images are all of one class.

    Raises:
        ValueError: the shapes do not fit, there is nothing, or a logit is not finite or a label out of range.
    """
    shifted, present = _checked(logits, labels), np.unique(labels)
    if len(present) < 2:
        return None
    odds = _log_odds(shifted)
    # Of two classes either gives the same area, so one will do.
    chosen = present[-1:] if logits.shape[1] == 2 else present
    areas = [roc_auc(odds[:, index], labels == index) for index in chosen]
    return _mean([area for area in areas if area is not None])


def softmax(logits: Array) -> Floats:
    """Turn logits (N, classes) into probabilities, in float64."""
    powers: Floats = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def nll(logits: Array, labels: npt.NDArray[np.integer]) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats.

    Raises:
        ValueError: the shapes do not fit, there is nothing, or a logit is not finite or a label out of range.
    """
    shifted = _checked(logits, labels)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())


def calibration(logits: Array, labels: npt.NDArray[np.integer]) -> Calibration:
    """Compare confidence, the largest probability, with how often the answer is right.

    The expected calibration error is the mean gap between the two over 15 bins of equal width, weighted by the
    images in each (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Raises:
        ValueError: the shapes do not fit, there is nothing, or a logit is not finite or a label out of range.
    """
    probabilities = softmax(_checked(logits, labels))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.arange(ECE_BINS + 1) / ECE_BINS
    where = np.searchsorted(edges[1:-1], confidence, "left")
    count, sure, hits, spread = (
        np.bincount(where, weights=weights, minlength=ECE_BINS)
        for weights in (np.ones(len(labels)), confidence, right.astype(np.float64), confidence * (1 - confidence))
    )
    of_truth = probabilities[np.arange(len(labels)), labels]
    # The hits of a calibrated net scatter around its confidences: the mean of that is 0.8 sigma, and no more than
    # twice the misses it expects.
    by_chance = np.minimum(np.sqrt(spread * 2 / math.pi), 2 * (count - sure))
    return Calibration(
        ece=float(np.abs(hits - sure).sum() / len(labels)),
        ece_by_chance=float(np.maximum(by_chance, 0.0).sum() / len(labels)),
        nll=nll(logits, labels),
        brier=float((np.square(probabilities).sum(axis=1) - 2 * of_truth + 1).mean()),
        bins=tuple(
            ReliabilityBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(count[index]),
                confidence=float(sure[index] / count[index]) if count[index] else None,
                accuracy=float(hits[index] / count[index]) if count[index] else None,
            )
            for index in range(ECE_BINS)
        ),
    )


def _checked(logits: Array, labels: npt.NDArray[np.integer]) -> Floats:
    """Return the logits in float64, shifted so that the largest of each row is 0."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise ValueError(f"logits of shape {logits.shape} do not fit labels of shape {labels.shape}, or are none")
    if not np.isfinite(logits).all() or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError("a logit is not finite, or a label is not one of the classes")
    shifted: Floats = logits.astype(np.float64) - logits.max(axis=1, keepdims=True).astype(np.float64)
    return shifted


def _log_odds(shifted: Floats) -> Floats:
    """Compute log(p / (1 - p)) of every class without ever forming 1 - p, which would cancel near 1."""
    rows, top = np.arange(len(shifted)), shifted.argmax(axis=1)
    powers = np.exp(shifted)
    others = np.maximum(powers.sum(axis=1, keepdims=True) - powers, 0.0)
    odds: Floats = shifted - np.log(
        np.maximum(others, 1.0)
    )  # beside a class that is not the top one stands at least the top
    rest = shifted.copy()
    rest[rows, top] = -np.inf
    second = rest.max(axis=1)
    odds[rows, top] = -second - np.log(np.exp(rest - second[:, None]).sum(axis=1))
    return odds


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
