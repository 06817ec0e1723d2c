"""Localize a difference: cut the candidate at its own fusions' borders, and run each block on the reference's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, UsageError
from edgecnn.parity.localize.advice import advise, input_advice
from edgecnn.parity.localize.cut import Block, Open, as_fed, chain, cut, open_on_cpu, open_unfused, run_block
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.judge import Measured, as_values, decide, describe, float_noise, rounding_noise
from edgecnn.parity.localize.match import comparable
from edgecnn.parity.localize.points import Look, Point, points_of, without
from edgecnn.parity.localize.ready import ready
from edgecnn.parity.localize.result import BlockDifference, Figures, Localization, figures, root_mean_square
from edgecnn.parity.localize.sides import Side
from edgecnn.spec import Tolerance

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

IMAGES = 16  # float64 values of every layer are kept, and more images do not move a fault
_OWN_SHARE = (
    0.5  # of the whole's error, by which the blocks may differ from it: int8 kernels differ by a step here and there
)


def localize(
    reference: Side,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, Array],
    open_model: Open = open_on_cpu,
    candidate_feeds: Mapping[str, Array] | None = None,
    tolerance: Tolerance | None = None,
    name: str = "onnxruntime",
) -> Localization:
    """Find the first block of a model whose output is not what the reference makes of the same inputs.

    The model is cut where ONNX Runtime's optimised graph for this CPU still has a tensor of the original one, so that
    what is computed in one kernel stays together. Each block is run by `open_model` on the reference's values (its
    error alone) and on what the blocks before it gave (accumulated). The blocks together must answer as the model in one piece;
    where they do not, neighbours are joined until they do.

    Args:
        reference: the truth; see `OnnxSide` and `TorchSide`.
        candidate: an ONNX model, float or QDQ.
        feeds: the candidate's inputs by name; at most 16 images of them are used where the batch is free.
        open_model: what runs the candidate's blocks.
        candidate_feeds: what the candidate's own preprocessing makes of the same images, where that is in question too.
        tolerance: `noise_multiple` is what a float block may be off.
        name: what the report calls the candidate.

    Raises:
        UsageError: no feeds, or the reference knows none of the model's outputs.
        BackendError: the model cannot be run.
        QuantizationError: ONNX Runtime does not load it.
    """
    from edgecnn.quantization.fusion import optimised

    tolerance = tolerance or Tolerance()
    model = ready(candidate)
    look = Look(model)
    feeds, own = _few(look, feeds), None if candidate_feeds is None else _few(look, candidate_feeds)
    points, truth = comparable(reference, look, points_of(model, optimised(model)), feeds)
    subject = Subject.of(look, points, truth, feeds, feeds if own is None else own, open_model)
    found = subject.judged(tolerance.noise_multiple)
    if own is not None and _differ(feeds, own):
        found = [_input(feeds, own), *found]
    first = next((one for one in found if one.culprit), None)
    hints = [] if first is None else input_advice(feeds, own) if first.blame == "input" and own is not None else []
    hints += advise(found, first, subject.measured, name, subject.reproduced)
    return Localization(
        candidate=name,
        reference=reference.name,
        images=len(next(iter(feeds.values()))),
        first=first,
        blocks=tuple(found),
        advice=tuple(hints),
        whole=subject.whole,
        whole_reproduced=subject.reproduced,
        joined=subject.joined,
        reason=_reason(found, first, subject),
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
        with open_model(look.model) as session:
            uncut = session.run(own)
        noise = _whole_noise(look, own)
        blocks, values, reproduced, joined = _reproducing(look, points, truth, own, open_model, uncut, noise)
        known = {block.point.tensor: block.point for block in blocks}
        measured = tuple(_measure(block, known, truth, feeds, values, open_model) for block in blocks)
        answer = next(point for point in points if point.output)
        return cls(look, measured, figures(truth[answer.tensor], uncut[answer.tensor]), reproduced, joined)

    def judged(self, allowed: float) -> list[BlockDifference]:
        """Judge the blocks in their order."""
        described = []
        for one in self.measured:
            above = one.block.point.value in self.look.computed
            described.append(describe(one, above))
        return decide(
            described, [one.block.point for one in self.measured], allowed, [one.failure for one in self.measured]
        )


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
    """Give float32's own noise on the model's answers."""
    exact = Exact(look.model).run(feeds, look.outputs)
    with open_unfused(look.model) as session:
        plain = session.run(feeds)
    return {name: float_noise(exact[name], exact[name], plain[name])[0] for name in look.outputs}


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
    block: Block,
    points: Mapping[str, Point],
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
        (alone,) = run_block(block, open_model, [cast])
    except BackendError as error:
        failure = f"it does not take the reference's values: {error}"
    try:
        (plain,) = run_block(block, open_unfused, [cast])
        exact = Exact(block.model).run(fed, [block.point.tensor])[block.point.tensor]
    except BackendError:
        pass
    alone, plain, exact = (None if one is None else as_values(one, block.point) for one in (alone, plain, exact))
    expected, largest = float_noise(wanted, exact, plain)
    if block.quantized:
        expected = rounding_noise(block, points, given, wanted)
    chained = as_values(values[block.point.tensor], block.point)
    if alone is not None and alone.shape != wanted.shape:
        failure = f"its output is of shape {alone.shape}, the reference's {wanted.shape}"
    return Measured(block, wanted, alone, exact, plain, chained, expected, largest, fed, failure)


def _few(look: Look, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Keep a few images from end to end, where the model takes any number.

    Raises:
        UsageError: an input is missing, or there is no image.
    """
    missing = [name for name in look.inputs if name not in feeds]
    if missing or not look.inputs:
        raise UsageError(f"localizing needs feeds for the model's input {missing[0] if missing else '(it has none)'!r}")
    count = len(feeds[look.inputs[0]])
    if not count:
        raise UsageError("localizing needs at least one image: nothing was compared")
    sizes = {value.name: value.type.tensor_type.shape.dim for value in look.model.graph.input}
    fixed = any(sizes[name] and sizes[name][0].HasField("dim_value") for name in look.inputs)
    if fixed or count <= IMAGES:
        return {name: feeds[name] for name in look.inputs}
    chosen = np.linspace(0, count - 1, IMAGES).astype(np.int64)
    return {name: feeds[name][chosen] for name in look.inputs}


def _differ(feeds: Mapping[str, Array], own: Mapping[str, Array]) -> bool:
    return any(not np.array_equal(feeds[name], own[name]) for name in feeds)


def _input(feeds: Mapping[str, Array], own: Mapping[str, Array]) -> BlockDifference:
    """Make a block of what comes before the model."""
    name = next(name for name in feeds if not np.array_equal(feeds[name], own[name]))
    far = figures(feeds[name], own[name])
    return BlockDifference(
        name="input",
        nodes=(),
        kernel="",
        output=name,
        quantized=False,
        alone=far,
        accumulated=far,
        expected=0.0,
        multiple=None,
        culprit=True,
        blame="input",
        why="the two sides were given different values for the same images",
    )


def _reason(found: Sequence[BlockDifference], first: BlockDifference | None, subject: Subject) -> str:
    whole = "" if subject.reproduced else "; but the blocks together do not answer as the model in one piece does"
    if first is not None:
        return f"{first.name} is the first of {len(found)} blocks at fault: {first.why}{whole}"
    return f"none of {len(found)} blocks is off by more than rounding explains{whole}"
