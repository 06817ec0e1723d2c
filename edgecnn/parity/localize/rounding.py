"""What rounding has to cost a block: float32's own noise, and steps of eight bits for the reference's own values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.parity.computation import ROUNDING
from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import Grid, Point
from edgecnn.parity.localize.result import root_mean_square

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

OVERSHOOT, FEW_CUT_OFF = 0.25, 0.02  # of a range, and of the values: what images unseen in calibration may go beyond
FIXED_RANGE = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh")


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


def rounding_noise(
    block: Block, points: Mapping[str, Point], steps: Mapping[str, float], inputs: Arrays, truth: Array
) -> float:
    """Work out what eight bits have to cost a block, as root mean square: rounding of inputs, weights and output.

    `points` are all by name, and `steps` what `steps_of` gives for them; `inputs` and `truth` are the reference's.

    Raises:
        BackendError: the block cannot be evaluated without rounding.
    """
    grids = {name: points[name].grid if name in points else None for name in inputs}
    coarse = {name: _coarse(points[name], value, steps) if name in points else value for name, value in inputs.items()}
    fine, power = Exact(block.model, smooth=True), steps.get(block.point.tensor, 0.0) ** 2 / 12

    def made(graph: Exact, values: Arrays) -> Array:
        fed = {name: as_fed_steps(value, grids[name]) for name, value in values.items()}
        return as_values(graph.run(fed, [block.point.tensor])[block.point.tensor], block.point)

    smooth = made(fine, inputs)
    changed = [made(fine, coarse), made(Exact(block.model, smooth=True, jitter=0), inputs)]
    if _rounds_inside(block):
        changed.append(made(Exact(block.model, smooth=True, inner=True), inputs))
    powers = [root_mean_square(one - smooth) ** 2 for one in changed]
    power += sum(one for one in powers if math.isfinite(one))
    return max(math.sqrt(power), ROUNDING * root_mean_square(truth))


def steps_of(points: Iterable[Point], truth: Arrays) -> dict[str, float]:
    """Give the step that each quantized point needs for the reference's values.

    Tensors with the same steps in the file, as around a pooling or a concatenation, have to do with one for all of them; where an
    operator fixes the range the file's own step is the one.
    """
    together: dict[Grid, float] = {}
    listed = [(point, point.grid) for point in points if point.grid is not None]
    for point, grid in listed:
        step = grid.scale if point.op in FIXED_RANGE else ideal_step(truth[point.tensor], grid.dtype)
        together[grid] = max(together.get(grid, 0.0), step)
    return {point.tensor: together[grid] for point, grid in listed}


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


def overrun_of(grid: Grid, truth: Array, step: float) -> float:
    """Give what a range cuts off as root mean square, in units of what rounding has to cost; 0 where that may be."""
    return cost_of_cut(grid, truth, step) if unseen(grid, truth) is truth else 0.0


def cost_of_cut(grid: Grid, truth: Array, step: float) -> float:
    """Give what a range cuts off, whatever the reason, in the same units."""
    return root_mean_square(truth - _cut(grid, truth)) / (step / math.sqrt(12)) if step else 0.0


def as_values(array: Array, point: Point) -> Array:
    """Give what a point's tensor stands for, in float64."""
    return point.grid.dequantize(array) if point.grid is not None else array.astype(np.float64)


def use_of(grid: Grid, truth: Array) -> tuple[float, float]:
    """Give the share of a quantizer's range that values take, above 1 where they go beyond it, and the share cut off.

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
    return used, float(outside.mean())


def as_fed_steps(values: Array, grid: Grid | None) -> Array:
    """Express what stands for a tensor as a smooth graph is fed it: in steps where the tensor is quantized."""
    return values if grid is None else grid.steps(values)


def inherited(block: Block, points: Mapping[str, Point], inputs: Arrays) -> Array | None:
    """Give what a block's output changes by because the ranges of what it reads cut values off; None where they do not.

    Raises:
        BackendError: the block cannot be evaluated without rounding.
    """
    grids = {name: points[name].grid if name in points else None for name in inputs}
    cut = {name: value if (grid := grids[name]) is None else _cut(grid, value) for name, value in inputs.items()}
    if all(np.array_equal(cut[name], value) for name, value in inputs.items()):
        return None
    made = []
    for values in (cut, inputs):
        fed = {name: as_fed_steps(value, grids[name]) for name, value in values.items()}
        graph = Exact(block.model, smooth=True)
        made.append(as_values(graph.run(fed, [block.point.tensor])[block.point.tensor], block.point))
    difference: Array = made[0] - made[1]
    return difference


def _cut(grid: Grid, values: Array) -> Array:
    """Cut values off where a range ends; not at 0, for there an activation was put into the quantizer."""
    cut: Array = np.clip(values, grid.least if grid.least < 0 else -math.inf, grid.most)
    return cut


def _coarse(point: Point, values: Array, steps: Mapping[str, float]) -> Array:
    """Round what a block reads as its quantizer has to."""
    return values if point.grid is None else rounded(unseen(point.grid, values), steps[point.tensor])


def _rounds_inside(block: Block) -> bool:
    constant = {tensor.name for tensor in block.model.graph.initializer}
    return any(
        node.op_type == "QuantizeLinear" and node.output[0] != block.point.tensor and node.input[0] not in constant
        for node in block.model.graph.node
    )
