"""Which of the candidate's points the reference knows, and their values there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, UsageError
from edgecnn.parity.localize.cut import cut
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import Look, Point
from edgecnn.parity.localize.result import root_mean_square
from edgecnn.parity.localize.rounding import as_fed_steps, as_values
from edgecnn.parity.localize.sides import Side

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

_EQUAL = 1e-4  # relative: folding a batch norm in float32 changes some 1e-7 of a tensor
_EQUAL_QUANTIZED, _NEXT_BEST = 0.1, 2.0  # weights in eight bits change some hundredths


def comparable(
    side: Side, look: Look, points: Sequence[Point], feeds: Mapping[str, Array]
) -> tuple[list[Point], Arrays]:
    """Keep the points whose values the reference has, and give those, float64 by the candidate's names.

    What no rule finds, such as a sum that is no module's output, is looked for by value: the block that makes it is
    evaluated in float64 on the reference's inputs, and a tensor of the reference that equals the result is it. That cannot hide a
    fault, for such a block is seen to be right; where nothing equals, the point goes and its block becomes part of the next.
    Of what lies before the first layers only what they read is kept: that is preprocessing, one block. Points that only
    reshape go too.

    Raises:
        UsageError: the reference has no values for the model's answer.
    """
    candidates = [
        point for point in points if point.output or point.readers or point.value in look.computed or point.grid
    ]
    truth = side.values(look, candidates, feeds)
    shapes = {
        name: value.shape for name, value in Exact(look.model).run(feeds, [one.tensor for one in candidates]).items()
    }
    shapes.update({name: array.shape for name, array in feeds.items()})
    _by_value(side, look, candidates, feeds, truth, shapes)
    kept = [point for point in candidates if point.tensor in truth]
    if not any(point.output for point in kept):
        raise UsageError(f"{side.name} has no output that the model has too: the two do not belong together")
    moves = {block.point.tensor for block in cut(look, kept, shapes) if block.moves and not block.point.output}
    return [point for point in kept if point.tensor not in moves], truth


def _by_value(
    side: Side,
    look: Look,
    points: Sequence[Point],
    feeds: Mapping[str, Array],
    truth: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Add to `truth`, in place, what can be told by its values."""
    unknown = {point.tensor for point in points if point.tensor not in truth}
    if not unknown:
        return
    pool = side.pool(feeds, {shapes[name] for name in unknown})
    for point in points:
        if point.tensor in unknown:
            known = [one for one in points if one.tensor in truth]
            block = next(one for one in cut(look, [*known, point], shapes) if one.point is point)
            inputs = {name: truth.get(name, feeds.get(name)) for name in block.inputs}
            grids = {one.tensor: one.grid for one in known}
            given = {name: as_fed_steps(array, grids.get(name)) for name, array in inputs.items() if array is not None}
            try:
                made = as_values(Exact(block.model, smooth=True).run(given, [point.tensor])[point.tensor], point)
            except BackendError:
                continue
            found = _equal(made, pool, block.quantized)
            if found is not None:
                truth[point.tensor] = found


def _equal(made: Array, pool: Sequence[Array], quantized: bool) -> Array | None:
    """Find the one tensor that equals what was made; None where none does, or several quantized ones nearly do."""
    scale = root_mean_square(made)
    near = [(root_mean_square(one - made), place) for place, one in enumerate(pool) if one.shape == made.shape]
    near = sorted(pair for pair in near if np.isfinite(pair[0]))
    if not near or near[0][0] > (_EQUAL_QUANTIZED if quantized else _EQUAL) * scale:
        return None
    best = pool[near[0][1]]
    rivals = [far for far, place in near[1:] if not np.allclose(pool[place], best, rtol=1e-9, atol=0)]
    if quantized and rivals and rivals[0] < _NEXT_BEST * near[0][0]:
        return None
    return best
