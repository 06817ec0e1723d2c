"""A candidate cut into blocks, and all that is run of it: in one piece, block by block, and each block by definition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError
from edgecnn.parity.localize.cut import Block, Open, as_fed, chain, cut, open_unfused, run_block, run_model
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.half import half_noise, holds_half
from edgecnn.parity.localize.judge import Measured, decide, describe
from edgecnn.parity.localize.points import Look, Point, without
from edgecnn.parity.localize.result import BlockDifference, Figures, figures, root_mean_square
from edgecnn.parity.localize.rounding import as_fed_steps, as_values, float_noise, inherited, rounding_noise, steps_of
from edgecnn.parity.localize.stale import stale_scale

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

_OWN_SHARE = (
    0.5  # of the whole's error, by which the blocks may differ from it: int8 kernels differ by a step here and there
)


@dataclass(frozen=True)
class Subject:
    """A candidate, cut, with all that was run of it."""

    look: Look
    measured: tuple[Measured, ...]
    whole: Figures
    reproduced: bool
    joined: int

    @classmethod
    def of(
        cls,
        look: Look,
        points: Sequence[Point],
        truth: Arrays,
        feeds: Mapping[str, Array],
        own: Mapping[str, Array],
        open_model: Open,
    ) -> Subject:
        """Cut the model at `points`, or at fewer where that changes its answer, and run the blocks; `own` are its own feeds."""
        uncut = run_model(look.model, open_model, own, "the model")
        noise = _whole_noise(look, own)
        blocks, values, reproduced, joined = _reproducing(look, points, truth, own, open_model, uncut, noise)
        known = {block.point.tensor: block.point for block in blocks}
        steps = steps_of(points, truth)
        measured = tuple(_measure(look, block, known, steps, truth, feeds, values, open_model) for block in blocks)
        answer = next(point for point in points if point.output)
        return cls(look, measured, figures(truth[answer.tensor], uncut[answer.tensor]), reproduced, joined)

    def judged(self, allowed: float) -> list[BlockDifference]:
        """Judge the blocks in their order."""
        described = []
        for one in self.measured:
            above = one.block.point.value in self.look.computed
            described.append(describe(one, above))
        return decide(described, self.measured, allowed)


def _reproducing(
    look: Look,
    points: Sequence[Point],
    truth: Arrays,
    feeds: Mapping[str, Array],
    open_model: Open,
    uncut: Mapping[str, Array],
    noise: Mapping[str, float],
) -> tuple[list[Block], Arrays, bool, int]:
    """Cut, and join neighbours until the blocks one after the other answer as the model in one piece does."""
    shapes, width = _shapes(look, points, truth, feeds), 1
    while True:
        for kept in _joined(points, width):
            blocks = cut(look, kept, shapes)
            values = chain(blocks, open_model, feeds)
            if all(
                _same(values[name], uncut[name], truth[name], noise.get(name, 0.0)) for name in values if name in uncut
            ):
                return blocks, values, True, width
        if width >= len(points):
            return blocks, values, False, width
        width *= 2


def _joined(points: Sequence[Point], width: int) -> list[list[Point]]:
    """Keep every `width`-th point, counted from two places."""
    starts = {0, width // 2}
    keep = [
        [point for place, point in enumerate(points, start) if place % width == width - 1] for start in sorted(starts)
    ]
    return [without(points, {point.tensor for point in points} - {point.tensor for point in one}) for one in keep]


def _same(chained: Array, uncut: Array, truth: Array, noise: float) -> bool:
    if chained.shape != uncut.shape:
        return False
    if np.array_equal(chained, uncut, equal_nan=chained.dtype.kind == "f"):
        return True
    if not (np.isfinite(chained).all() and np.isfinite(uncut).all()):
        return bool((np.isfinite(chained) == np.isfinite(uncut)).all())
    apart = root_mean_square(chained.astype(np.float64) - uncut)
    error = (
        root_mean_square(uncut.astype(np.float64) - truth) if truth.shape == uncut.shape else root_mean_square(uncut)
    )
    return apart <= max(10 * noise, _OWN_SHARE * error)


def _whole_noise(look: Look, feeds: Mapping[str, Array]) -> dict[str, float]:
    """Give float32's own noise on the model's answers, and float16's where the model holds that."""
    exact = Exact(look.model).run(feeds, look.outputs)
    plain = run_model(look.model, open_unfused, feeds, "the model without optimisations")
    found = {name: float_noise(exact[name], exact[name], plain[name])[0] for name in look.outputs}
    if holds_half(look.model):
        for name in look.outputs:
            found[name] = math.hypot(found[name], half_noise(look.model, feeds, name, exact[name])[0])
    return found


def _shapes(
    look: Look, points: Sequence[Point], truth: Arrays, feeds: Mapping[str, Array]
) -> dict[str, tuple[int | None, ...]]:
    """Give the sizes of all points and inputs; None for those that the two sides do not share."""
    ours = Exact(look.model).run(feeds, [point.tensor for point in points])
    found: dict[str, tuple[int | None, ...]] = {name: array.shape for name, array in feeds.items()}
    for name, array in ours.items():
        sizes: list[int | None] = list(array.shape)
        if len(sizes) == truth[name].ndim:
            sizes = [a if a == b else None for a, b in zip(array.shape, truth[name].shape, strict=True)]
        found[name] = tuple(sizes)
    return found


def _measure(
    look: Look,
    block: Block,
    points: Mapping[str, Point],
    steps: Mapping[str, float],
    truth: Arrays,
    feeds: Mapping[str, Array],
    values: Arrays,
    open_model: Open,
) -> Measured:
    """Run one block on the reference's values, by the candidate and by definition."""
    inputs = {name: truth.get(name, feeds.get(name)) for name in block.inputs}
    given: Arrays = {name: array for name, array in inputs.items() if array is not None}
    grids = {name: points[name].grid for name in block.inputs if name in points}
    fed = {name: array if (grid := grids.get(name)) is None else grid.quantize(array) for name, array in given.items()}
    cast, wanted, failure = as_fed(block, fed), truth[block.point.tensor], ""
    alone = plain = exact = None
    try:
        alone = run_block(block, open_model, cast)
    except BackendError as error:
        failure = f"it does not take the reference's values: {error}"
    try:
        plain = run_block(block, open_unfused, cast)
        exact = Exact(block.model).run(fed, [block.point.tensor])[block.point.tensor]
    except BackendError:
        pass
    alone, plain, exact = (None if one is None else as_values(one, block.point) for one in (alone, plain, exact))
    expected, largest = float_noise(wanted, exact, plain)
    before, stale = None, ""
    if block.quantized:
        expected = rounding_noise(block, points, steps, given, wanted)
        before = inherited(block, points, given)
        smooth = {name: as_fed_steps(array, grids.get(name)) for name, array in given.items()}
        stale = stale_scale(look, block, smooth, wanted)
    if holds_half(block.model):
        half, far = half_noise(block.model, fed, block.point.tensor, wanted)
        expected, largest = math.hypot(expected, half), largest + far
    chained = as_values(values[block.point.tensor], block.point)
    if alone is not None and alone.shape != wanted.shape:
        failure = f"its output is of shape {alone.shape}, the reference's {wanted.shape}"
    return Measured(
        block=block,
        truth=wanted,
        alone=alone,
        exact=exact,
        plain=plain,
        chained=chained,
        expected=expected,
        expected_max=largest,
        step=steps.get(block.point.tensor, 0.0),
        fed=fed,
        failure=failure,
        inherited=before,
        stale=stale,
    )
