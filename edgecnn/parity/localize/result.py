"""What localizing a difference found, as frozen records for JSON and for the report."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecnn.spec import Frozen

Array = npt.NDArray[Any]
Blame = Literal["", "input", "preprocessing", "model file", "kernel"]
MOST_DB = 300.0  # stands for infinity, which JSON does not know


class Figures(Frozen, frozen=True):
    """How far one tensor is from the reference's, over all its values.

    `relative` is `rms` over the reference's root mean square, `sqnr_db` the same in dB (300 where there is no error).
    All are None where they cannot be had: a value is not finite, or the shapes differ.
    """

    rms: float | None = None
    max_abs: float | None = None
    relative: float | None = None
    sqnr_db: float | None = None


class BlockDifference(Frozen, frozen=True):
    """One block of the candidate: the nodes that its backend computes between two tensors that both sides have.

    `name` is made of the layers' own names and operators, `kernel` what ONNX Runtime makes of the block, `output` the
    candidate's tensor. `alone` is its error when it is fed the reference's own values, `accumulated` when it is fed what
    the candidate's blocks before it gave. `expected` is the root mean square that rounding explains: float32's own noise,
    or int8's steps; `multiple` is the error alone in units of it. `used` is the share of its quantizer's range that
    the reference's values take, above 1 where they go beyond it, `clipped` the share of them outside, and `overrun` the root mean square of what is cut off
    there in units of its rounding, 0 where unseen images may do that; all None in float.
    """

    name: str
    nodes: tuple[str, ...]
    kernel: str
    output: str
    quantized: bool
    alone: Figures
    accumulated: Figures
    expected: float
    multiple: float | None
    used: float | None = None
    clipped: float | None = None
    overrun: float | None = None
    culprit: bool = False
    blame: Blame = ""
    why: str = ""


class Localization(Frozen, frozen=True):
    """The first block at fault, or None, all blocks in their order, and what to do.

    `whole` is the error of the candidate's answer, run in one piece; `whole_reproduced` says whether the blocks one after the
    other answer as that does. Where they did not at first, `joined` is how many neighbours were put together until
    they did. `images` is how many samples were run. `failed` says that a verdict on the candidate failed; one was asked for
    anyway otherwise, and a block at fault is one that differs as rounding does not explain, however little it costs.
    """

    candidate: str
    reference: str
    images: int
    first: BlockDifference | None
    blocks: tuple[BlockDifference, ...]
    advice: tuple[str, ...]
    whole: Figures
    whole_reproduced: bool
    joined: int
    reason: str
    failed: bool = True


def figures(reference: Array, found: Array) -> Figures:
    """Compare two arrays; without numbers where they cannot be compared.

    Raises:
        ValueError: there is nothing to compare.
    """
    if not reference.size:
        raise ValueError("nothing to compare: the tensor is empty")
    if reference.shape != found.shape:
        return Figures()
    truth = reference.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = found.astype(np.float64) - truth
        noise, signal = root_mean_square(error), root_mean_square(truth)
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return Figures()
    relative = noise / signal if signal else None
    return Figures(rms=noise, max_abs=float(np.abs(error).max()), relative=relative, sqnr_db=_db(signal, noise))


def root_mean_square(values: Array) -> float:
    """Compute it in float64."""
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def _db(signal: float, noise: float) -> float:
    if not noise:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 20 * math.log10(signal / noise))) if signal else -MOST_DB
