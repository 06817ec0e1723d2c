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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError
from edgecnn.parity.computation import ROUNDING
from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import Grid, Point
from edgecnn.parity.localize.result import Blame, BlockDifference, Figures, figures, root_mean_square

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

QUANTIZED_MULTIPLE, STANDS_OUT, BEYOND_DOUBT = 3.0, 2.0, 30.0
LEAST_USED, USED_OTHERWISE = 0.55, 1.6
OVERSHOOT, FEW_CUT_OFF = 0.4, 0.02
_FIXED_RANGE = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh")


@dataclass(frozen=True)
class Measured:
    """One block's outputs as values, float64: the reference's, and the candidate's on the reference's inputs (`alone`).

    `exact` is the block by definition on the same inputs, `plain` in float32 without optimisations; each None where it
    could not be run, and `failure` then says why the candidate could not. `chained` is the candidate's on its own inputs.
    `fed` is what the block was given, integers where it takes integers.
    """

    block: Block
    truth: Array
    alone: Array | None
    exact: Array | None
    plain: Array | None
    chained: Array
    expected: float
    expected_max: float
    fed: Arrays
    failure: str = ""


def describe(measured: Measured, above: bool) -> BlockDifference:
    """Put a block's figures together, without a verdict; `above` says that a layer lies before it or in it, so that it is not preprocessing."""
    block, truth = measured.block, measured.truth
    alone = judged = Figures() if measured.alone is None else figures(truth, measured.alone)
    used = clipped = overrun = None
    if block.point.grid is not None:
        used, clipped = use_of(block.point.grid, truth)
        overrun = overrun_of(block.point, truth)
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


def float_noise(truth: Array, exact: Array | None, plain: Array | None) -> tuple[float, float]:
    """Give float32's own error on a block, root mean square and largest; half a unit in the last place at least."""
    least = ROUNDING * root_mean_square(truth), ROUNDING * float(np.abs(truth).max())
    if exact is None or plain is None or exact.shape != plain.shape:
        return least
    with np.errstate(invalid="ignore", over="ignore"):
        error = plain.astype(np.float64) - exact
        noise = root_mean_square(error), float(np.abs(error).max())
    if not all(map(math.isfinite, noise)):
        return least
    return max(noise[0], least[0]), max(noise[1], least[1])


def rounding_noise(block: Block, points: Mapping[str, Point], inputs: Arrays, truth: Array) -> float:
    """Work out what eight bits have to cost a block, as root mean square: rounding of inputs, weights and output."""
    grids = {name: points[name].grid for name in block.inputs if name in points}
    coarse = {name: _coarse(points[name], value) if name in points else value for name, value in inputs.items()}
    power = _step(block.point, truth) ** 2 / 12
    output = block.point.tensor
    try:
        smooth = Exact(block.model, smooth=True).run(inputs, [output])[output]
        moved = Exact(block.model, smooth=True, jitter=0).run(inputs, [output])[output]
        powers = [root_mean_square(Exact(block.model, smooth=True).run(coarse, [output])[output] - smooth) ** 2]
        powers.append(root_mean_square(moved - smooth) ** 2)
        if _rounds_inside(block):
            fed = {name: _integers(value, grids.get(name)) for name, value in inputs.items()}
            inner = as_values(Exact(block.model).run(fed, [output])[output], block.point)
            powers.append(root_mean_square(inner - smooth) ** 2)
        power += sum(one for one in powers if math.isfinite(one))
    except BackendError:
        pass
    return max(math.sqrt(power), ROUNDING * root_mean_square(truth))


def ideal_step(values: Array, kind: np.dtype[Any]) -> float:
    """Give the step that covers values, and 0, in all the steps of an integer type."""
    limits = np.iinfo(kind)
    return (max(0.0, float(values.max())) - min(0.0, float(values.min()))) / (int(limits.max) - int(limits.min))


def rounded(values: Array, step: float) -> Array:
    """Round values to a step."""
    result: Array = np.rint(values / step) * step if step else values
    return result


def unseen(grid: Grid, values: Array) -> Array:
    """Cut values off where a quantizer does, if they go no further beyond its range than those of unseen images may."""
    span = grid.most - grid.least
    beyond = max(float(values.max()) - grid.most, grid.least - float(values.min()) if grid.least < 0 else 0.0)
    if beyond > OVERSHOOT * span or use_of(grid, values)[1] > FEW_CUT_OFF:
        return values
    return np.clip(values, grid.least, grid.most)


def overrun_of(point: Point, truth: Array) -> float:
    """Give what a range cuts off as root mean square, in units of what rounding has to cost; 0 where that may be."""
    grid, step = point.grid, _step(point, truth)
    if grid is None or not step or unseen(grid, truth) is not truth:
        return 0.0
    least = grid.least if grid.least < 0 else -math.inf
    return root_mean_square(truth - np.clip(truth, least, grid.most)) / (step / math.sqrt(12))


def _coarse(point: Point, values: Array) -> Array:
    """Round what a block reads as its quantizer has to."""
    return values if point.grid is None else rounded(unseen(point.grid, values), _step(point, values))


def _step(point: Point, values: Array) -> float:
    """Give the step that a point needs; that of its file where the operator fixes its range; 0 for a float one."""
    if point.grid is None:
        return 0.0
    return point.grid.scale if point.op in _FIXED_RANGE else ideal_step(values, point.grid.dtype)


def as_values(array: Array, point: Point) -> Array:
    """Give what a point's tensor stands for, in float64."""
    return point.grid.dequantize(array) if point.grid is not None else array.astype(np.float64)


def use_of(grid: Grid, truth: Array) -> tuple[float, float]:
    """Give the share of a quantizer's range that values take, and the share of the values that it cuts off.

    What is below zero does not count where the range begins there: an activation was put into the quantizer.
    """
    least, most = float(truth.min()), float(truth.max())
    low = min(0.0, least) if grid.least < 0 else 0.0
    span = max(0.0, most) - low
    used = span / (grid.most - grid.least)
    if grid.zero == (int(np.iinfo(grid.dtype).max) + int(np.iinfo(grid.dtype).min) + 1) // 2:  # symmetric around 0
        used = max(most, -low) / grid.most
    slack = grid.scale  # a value within one step of the end is rounded, not cut off
    outside = (truth > grid.most + slack) | ((truth < grid.least - slack) & (grid.least < 0))
    return min(1.0, used), float(outside.mean())


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
        if point.grid is not None and one.used is not None and point.op not in _FIXED_RANGE
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


def _rounds_inside(block: Block) -> bool:
    constant = {tensor.name for tensor in block.model.graph.initializer}
    return any(
        node.op_type == "QuantizeLinear" and node.output[0] != block.point.tensor and node.input[0] not in constant
        for node in block.model.graph.node
    )


def _integers(value: Array, grid: Grid | None) -> Array:
    return value if grid is None else grid.quantize(value)
