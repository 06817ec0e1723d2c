"""What error of a block rounding explains, and from where on it is a fault.

**In float** the unit is the noise that float32 makes on the same block: its nodes run in float32 without optimisations,
against float64. Another order of summing stays within a few units, a weight off by 1e-3 of its layer's largest comes to
thousands. The limit is that of the whole model's parity, `Tolerance.noise_multiple`, 10.

**In int8** the unit is what rounding to eight bits has to cost the block, worked out in float64: what it reads and
makes rounded in 255 steps from the reference's own least to its largest value, and each quantized weight moved by up to half
a step. Clean blocks lie near 1. One is at fault from `QUANTIZED_MULTIPLE` on, if it also stands out among the other
int8 blocks by `STANDS_OUT`: where all are as bad it is the calibration's method that is poor, and no block's scale is wrong.
From `BEYOND_DOUBT` on it is at fault whatever the others are. A calibration has not seen these images: where the reference's
values go beyond a quantizer's range by no more than `OVERSHOOT` of it, and no more than `FEW_CUT_OFF` of them, what is cut
off of them does not count.

A scale that is off need not show in that. One too small cuts values off: a block is at fault as well if that alone comes to
`QUANTIZED_MULTIPLE` times the rounding of its output, and stands out. One too large costs bits: a block is at fault whose
quantizer's range the reference uses by less than `LEAST_USED`, if the others use theirs `USED_OTHERWISE` times as well. Tensors
that share their steps, as around a pooling or a concatenation, count as one, and a sigmoid's range is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.points import Point
from edgecnn.parity.localize.result import Blame, BlockDifference, Figures, figures, root_mean_square
from edgecnn.parity.localize.rounding import FIXED_RANGE, overrun_of, unseen, use_of

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

QUANTIZED_MULTIPLE, STANDS_OUT, BEYOND_DOUBT = 3.0, 2.0, 30.0
LEAST_USED, USED_OTHERWISE = 0.55, 1.6


@dataclass(frozen=True)
class Measured:
    """One block's outputs as values, float64: the reference's, and the candidate's on the reference's inputs (`alone`).

    `exact` is the block by definition on the same inputs, `plain` in float32 without optimisations; each None where it
    could not be run, and `failure` then says why the candidate could not. `chained` is the candidate's on its own inputs.
    `step` is what the output needs, 0 in float, and `fed` what the block was given, integers where it takes integers.
    """

    block: Block
    truth: Array
    alone: Array | None
    exact: Array | None
    plain: Array | None
    chained: Array
    expected: float
    expected_max: float
    step: float
    fed: Arrays
    failure: str = ""


def describe(measured: Measured, above: bool) -> BlockDifference:
    """Put a block's figures together, without a verdict; `above` says that a layer lies before it or in it, so that it is not preprocessing."""
    block, truth = measured.block, measured.truth
    alone = judged = Figures() if measured.alone is None else figures(truth, measured.alone)
    used = clipped = overrun = None
    if block.point.grid is not None:
        used, clipped = use_of(block.point.grid, truth)
        overrun = overrun_of(block.point.grid, truth, measured.step)
        if measured.alone is not None:
            judged = figures(unseen(block.point.grid, truth), measured.alone)
    return BlockDifference(
        name=block.name,
        nodes=block.nodes,
        kernel=block.point.kernel,
        output=block.point.tensor,
        quantized=block.quantized,
        alone=alone,
        accumulated=figures(truth, measured.chained),
        expected=measured.expected,
        multiple=_multiple(judged, measured),
        used=used,
        clipped=clipped,
        overrun=overrun,
        blame=_blame(measured, above),
    )


def decide(
    found: Sequence[BlockDifference], points: Sequence[Point], allowed: float, failures: Sequence[str]
) -> list[BlockDifference]:
    """Say of each block whether it is at fault, and why; `failures` are what kept a block from being compared, or ""."""
    used, overruns = _used_together(found, points), [one.overrun for one in found]
    decided = []
    for place, one in enumerate(found):
        others = [
            other.multiple
            for at, other in enumerate(found)
            if at != place and other.quantized and other.multiple is not None
        ]
        rest = [share for at, share in enumerate(used) if at != place and share is not None]
        why = (
            failures[place]
            or _fault(one, allowed, others)
            or _cut_off(place, overruns)
            or (_idle_bits(used[place], rest) if one.quantized else "")
        )
        blame: Blame = one.blame if why else ""
        if why and one.multiple is not None and one.quantized and one.multiple < QUANTIZED_MULTIPLE:
            blame = "model file"  # a range too wide is no kernel's doing
        decided.append(msgspec.structs.replace(one, culprit=bool(why), why=why, blame=blame))
    return decided


def _multiple(alone: Figures, measured: Measured) -> float | None:
    if alone.rms is None or alone.max_abs is None:
        return None
    ratios = [_ratio(alone.rms, measured.expected)]
    if not measured.block.quantized:
        ratios.append(_ratio(alone.max_abs, measured.expected_max))
    return max(ratios)


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit else (0.0 if not value else 1e300)


def _blame(measured: Measured, above: bool) -> Blame:
    """Say what most of a block's error comes from: the file's own meaning, or the kernel that computed it."""
    ours: Blame = "model file" if above else "preprocessing"
    if measured.alone is None or measured.exact is None or measured.exact.shape != measured.truth.shape:
        return ours
    if not np.isfinite(measured.exact).all():
        return ours
    if not np.isfinite(measured.alone).all():
        return "kernel"
    by_file = root_mean_square(measured.exact - measured.truth)
    by_kernel = root_mean_square(measured.alone - measured.exact)
    return "kernel" if by_kernel > by_file else ours


def _fault(one: BlockDifference, allowed: float, others: Sequence[float]) -> str:
    if one.multiple is None:
        return "its output has values that are not finite"
    if not one.quantized:
        over = one.multiple > allowed
        return f"its error is {one.multiple:.3g} times float32's own noise; {allowed:g} is allowed" if over else ""
    usual = float(np.quantile(others, 0.25)) if others else 1.0
    if one.multiple < QUANTIZED_MULTIPLE or (one.multiple < STANDS_OUT * usual and one.multiple < BEYOND_DOUBT):
        return ""
    cut_off = f"; {one.clipped:.1%} of the reference's values are cut off" if (one.clipped or 0) >= 0.01 else ""
    return f"its error is {one.multiple:.3g} times what rounding to eight bits has to cost{cut_off}"


def _used_together(found: Sequence[BlockDifference], points: Sequence[Point]) -> list[float | None]:
    """Give each block the largest use of all tensors with the same steps; None where nothing can be said."""
    best: dict[tuple[float, int], float] = {}
    for one, point in zip(found, points, strict=True):
        if point.grid is not None and one.used is not None:
            key = (point.grid.scale, point.grid.zero)
            best[key] = max(best.get(key, 0.0), one.used)
    return [
        best[point.grid.scale, point.grid.zero]
        if point.grid is not None and one.used is not None and point.op not in FIXED_RANGE
        else None
        for one, point in zip(found, points, strict=True)
    ]


def _cut_off(place: int, overruns: Sequence[float | None]) -> str:
    own = overruns[place]
    others = [one for at, one in enumerate(overruns) if at != place and one is not None]
    usual = float(np.quantile(others, 0.25)) if others else 0.0
    if own is None or own < max(QUANTIZED_MULTIPLE, STANDS_OUT * usual):
        return ""
    return f"what its quantizer's range cuts off of the reference's values is {own:.3g} times what rounding has to cost"


def _idle_bits(used: float | None, others: Sequence[float]) -> str:
    if used is None or used >= LEAST_USED or not others or float(np.median(others)) < USED_OTHERWISE * used:
        return ""
    return f"the reference's values take {used:.0%} of its quantizer's range, the others' about {float(np.median(others)):.0%}"
