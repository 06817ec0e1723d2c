"""What error of a block rounding explains, and from where on it is a fault.

**In float** the unit is the noise that float32 makes on the same block: its nodes run in float32 without optimisations,
against float64. Another order of summing stays within a few units, a weight off by 1e-3 of its layer's largest comes to
thousands. The limit is that of the whole model's parity, `Tolerance.noise_multiple`, 10. Where weights are float16, what
rounding to that has to cost is added to the unit.

**In int8** the unit is what rounding to eight bits has to cost the block, worked out in float64: what it reads and
makes rounded in 255 steps from the reference's own least to its largest value, and each quantized weight moved by up to half
a step. Clean blocks lie near 1. One is at fault from `QUANTIZED_MULTIPLE` on, if it also stands out among the other
int8 blocks by `STANDS_OUT`: where all are as bad it is the calibration's method that is poor, and no block's scale is wrong.
From `BEYOND_DOUBT` on it is at fault whatever the others are. A calibration has not seen these images: where the reference's
values go beyond a quantizer's range by no more than `OVERSHOOT` of it, and no more than `FEW_CUT_OFF` of them, what is cut
off of them does not count.

A scale that is off need not show in that. One too small cuts values off: a block is at fault as well if that alone comes to
`QUANTIZED_MULTIPLE` times the rounding of its output, and stands out. One too large costs bits: a block is at fault whose
quantizer's range the reference uses by less than `LEAST_USED`, if the others use theirs `USED_OTHERWISE` times as well; and
the other way round one that it would use by more than `MOST_USED`, if what is cut off costs as much as rounding. Tensors
that share their steps, as around a pooling or a concatenation, count as one, and a sigmoid's range is fixed.

What a range cuts off is the doing of the block that writes, though it may show in the one that reads: a block that would
be in order if nothing had been cut off of what it reads is not at fault, and those before it that cut off are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.half import holds_half
from edgecnn.parity.localize.ranges import QUANTIZED_MULTIPLE, STANDS_OUT, cut_off, too_narrow, too_wide, used_together
from edgecnn.parity.localize.result import Blame, BlockDifference, Figures, figures, root_mean_square
from edgecnn.parity.localize.rounding import cost_of_cut, overrun_of, unseen, use_of

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

BEYOND_DOUBT = 30.0


@dataclass(frozen=True)
class Measured:
    """One block's outputs as values, float64: the reference's, and the candidate's on the reference's inputs (`alone`).

    `exact` is the block by definition on the same inputs, `plain` in float32 without optimisations; each None where it
    could not be run, and `failure` then says why the candidate could not. `chained` is the candidate's on its own inputs.
    `step` is what the output needs, 0 in float, and `fed` what the block was given, integers where it takes integers.
    `inherited` is what `alone` is off by because the ranges of what it reads cut off, None where they do not; `stale` says
    that a dequantizer does not fit its quantizer.
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
    inherited: Array | None = None
    stale: str = ""


def describe(measured: Measured, above: bool) -> BlockDifference:
    """Put a block's figures together, without a verdict; `above` says that a layer lies before it or in it, so that it is not preprocessing."""
    block, truth = measured.block, measured.truth
    alone = judged = Figures() if measured.alone is None else figures(truth, measured.alone)
    used = clipped = overrun = None
    if block.point.grid is not None:
        used, clipped = use_of(block.point.grid, truth)
        overrun = overrun_of(block.point.grid, truth, measured.step)
        if measured.alone is not None:
            judged = _judged(measured, measured.alone)
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


def decide(found: Sequence[BlockDifference], measured: Sequence[Measured], allowed: float) -> list[BlockDifference]:
    """Say of each block whether it is at fault, and why."""
    reasons = [_reason(place, found, measured, allowed) for place in range(len(found))]
    for place, one in enumerate(measured):
        before = _cut_before(place, measured)
        doubted = reasons[place] and before and not one.stale and not one.failure
        if doubted and _is_inherited(found[place], one, allowed):
            said = f"what its quantizer's range cuts off makes the error of {found[place].name}, which reads it, {found[place].multiple:.3g} times what rounding has to cost"  # fmt: skip
            for at in before:
                reasons[at] = reasons[at] or said
            reasons[place] = _by_its_range(place, found, measured)
    return [_decided(one, why) for one, why in zip(found, reasons, strict=True)]


def _decided(one: BlockDifference, why: str) -> BlockDifference:
    blame: Blame = one.blame if why else ""
    if why and one.multiple is not None and one.quantized and one.multiple < QUANTIZED_MULTIPLE:
        blame = "model file"  # a range too wide is no kernel's doing
    return msgspec.structs.replace(one, culprit=bool(why), why=why, blame=blame)


def _reason(place: int, found: Sequence[BlockDifference], measured: Sequence[Measured], allowed: float) -> str:
    others = [
        other.multiple
        for at, other in enumerate(found)
        if at != place and other.quantized and other.multiple is not None
    ]
    return (
        measured[place].failure
        or measured[place].stale
        or _fault(found[place], allowed, others, holds_half(measured[place].block.model))
        or _by_its_range(place, found, measured)
    )


def _by_its_range(place: int, found: Sequence[BlockDifference], measured: Sequence[Measured]) -> str:
    """Say what is wrong with the range that a block writes its output in."""
    if not found[place].quantized:
        return ""
    one, used = measured[place], used_together(found, [one.block.point for one in measured])
    grid = one.block.point.grid
    cost = 0.0 if grid is None else cost_of_cut(grid, one.truth, one.step)
    return cut_off(place, [block.overrun for block in found]) or too_wide(place, used) or too_narrow(place, used, cost)


def _is_inherited(one: BlockDifference, measured: Measured, allowed: float) -> bool:
    """Say whether a block would be in order if what it reads had not been cut off before."""
    if measured.inherited is None or measured.alone is None or measured.inherited.shape != measured.alone.shape:
        return False
    own = _multiple(_judged(measured, measured.alone - measured.inherited), measured)
    limit = QUANTIZED_MULTIPLE if one.quantized else allowed
    return own is not None and one.multiple is not None and own < limit <= one.multiple


def _cut_before(place: int, measured: Sequence[Measured]) -> list[int]:
    """List the blocks whose output a block reads, and whose range cuts off what costs as much as rounding at least."""
    inputs = set(measured[place].block.inputs)
    return [
        at
        for at, one in enumerate(measured)
        if one.block.point.tensor in inputs
        and one.block.point.grid is not None
        and cost_of_cut(one.block.point.grid, one.truth, one.step) >= 1
    ]


def _judged(measured: Measured, alone: Array) -> Figures:
    """Compare with the reference, whose values may be cut off where unseen images may go beyond a range."""
    grid = measured.block.point.grid
    return figures(measured.truth if grid is None else unseen(grid, measured.truth), alone)


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


def _fault(one: BlockDifference, allowed: float, others: Sequence[float], half: bool) -> str:
    if one.multiple is None:
        return "its output has values that are not finite"
    if not one.quantized:
        over = one.multiple > allowed
        noise = "what rounding to float16 has to cost" if half else "float32's own noise"
        return f"its error is {one.multiple:.3g} times {noise}; {allowed:g} is allowed" if over else ""
    usual = float(np.quantile(others, 0.25)) if others else 1.0
    if one.multiple < QUANTIZED_MULTIPLE or (one.multiple < STANDS_OUT * usual and one.multiple < BEYOND_DOUBT):
        return ""
    cut_off = f"; {one.clipped:.1%} of the reference's values are cut off" if (one.clipped or 0) >= 0.01 else ""
    return f"its error is {one.multiple:.3g} times what rounding to eight bits has to cost{cut_off}"
