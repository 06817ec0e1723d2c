"""Distances between tensors, and accuracy with its interval; numpy in float64 only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.spec import Frozen

Array = npt.NDArray[Any]

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
    p, z2 = correct / n, Z95_TWO_SIDED**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Accuracy(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half), correct=correct, n=n)


def confusion(
    predicted: npt.NDArray[np.integer], labels: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """Count (true class, predicted class) pairs in a square table."""
    flat = labels.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)
