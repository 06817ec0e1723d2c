"""Answers that are distributions are compared by their logarithm, in which the largest value of each row is taken off.

Near 0 and 1 a probability hardly moves, whatever the error behind it: in logarithms, a saturated softmax shows the error of its
logits. Whether an answer is a distribution is read off the truth: each row is positive and sums to 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from edgecnn.parity.computation import Recorded, Truth
from edgecnn.parity.recording import Array

SMALLEST = 1e-30  # of a probability: float32 rounds smaller ones coarsely
SUM = 1e-9  # by which a distribution in float64 may miss 1


def is_distribution(truth: Array) -> bool:
    """Say whether each row of the truth (N, classes) in float64 is one."""
    whole = np.abs(truth.sum(axis=1) - 1) < SUM
    return bool(truth.shape[1] > 1 and (truth >= 0).all() and whole.all())


def logs(probabilities: Array) -> npt.NDArray[np.float64]:
    """Take logarithms (N, classes), of values that may be a little below 0 by their rounding, and the largest of each row off."""
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    result: npt.NDArray[np.float64] = logarithms - logarithms.max(axis=1, keepdims=True)
    return result


def truth_as_logs(truth: Truth) -> Truth:
    """Take both sides of a truth so, from which the unit comes."""
    return Truth(truth.origin, logs(truth.float64), logs(truth.float32), truth.unit)


def recorded_as_logs(recorded: Recorded) -> Recorded:
    """Take so what a quantized side should answer, and the truth beside it."""
    return dataclasses.replace(recorded, logits=logs(recorded.logits), float64=logs(recorded.float64))
