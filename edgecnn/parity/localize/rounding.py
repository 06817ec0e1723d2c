"""What rounding has to cost a block: float32's own noise, and steps of eight bits for the reference's own values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError
from edgecnn.parity.computation import ROUNDING
from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import Grid, Point
from edgecnn.parity.localize.result import root_mean_square

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

OVERSHOOT, FEW_CUT_OFF = 0.4, 0.02  # of a range, and of the values: what images unseen in calibration may go beyond
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
    """
    grids = {name: points[name].grid for name in block.inputs if name in points}
    coarse = {name: _coarse(points[name], value, steps) if name in points else value for name, value in inputs.items()}
    power = steps.get(block.point.tensor, 0.0) ** 2 / 12
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
    except BackendError:  # then inputs count as they are, as if the block added them up
        power += sum(steps.get(name, 0.0) ** 2 / 12 for name in block.inputs)
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
    if not step or unseen(grid, truth) is not truth:
        return 0.0
    least = grid.least if grid.least < 0 else -math.inf
    return root_mean_square(truth - np.clip(truth, least, grid.most)) / (step / math.sqrt(12))


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


def _coarse(point: Point, values: Array, steps: Mapping[str, float]) -> Array:
    """Round what a block reads as its quantizer has to."""
    return values if point.grid is None else rounded(unseen(point.grid, values), steps[point.tensor])


def _rounds_inside(block: Block) -> bool:
    constant = {tensor.name for tensor in block.model.graph.initializer}
    return any(
        node.op_type == "QuantizeLinear" and node.output[0] != block.point.tensor and node.input[0] not in constant
        for node in block.model.graph.node
    )


def _integers(value: Array, grid: Grid | None) -> Array:
    return value if grid is None else grid.quantize(value)
