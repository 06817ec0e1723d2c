"""Localize a difference: cut the candidate at its own fusions' borders, and run each block on the reference's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import UsageError
from edgecnn.parity.localize.advice import advise, input_advice
from edgecnn.parity.localize.cut import Open, open_on_cpu
from edgecnn.parity.localize.exact import rounds_within
from edgecnn.parity.localize.match import comparable
from edgecnn.parity.localize.points import Look, points_of
from edgecnn.parity.localize.ready import ready
from edgecnn.parity.localize.result import BlockDifference, Localization, figures
from edgecnn.parity.localize.sides import Side
from edgecnn.parity.localize.subject import Subject
from edgecnn.spec import Tolerance

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

IMAGES = 16  # float64 values of every layer are kept, and more images do not move a fault


def localize(
    reference: Side,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, Array],
    open_model: Open = open_on_cpu,
    candidate_feeds: Mapping[str, Array] | None = None,
    tolerance: Tolerance | None = None,
    name: str = "onnxruntime",
    failed: bool = True,
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
        failed: a verdict on the candidate failed; without one the report does not speak as if something were wrong.

    Raises:
        UsageError: no feeds, too few of them, a model that is neither float nor QDQ or not whole, or the reference
            knows none of its outputs.
        BackendError: the model cannot be run.
        QuantizationError: ONNX Runtime does not load it.
    """
    from edgecnn.quantization.fusion import optimised

    tolerance = tolerance or Tolerance()
    _check(candidate)
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
        reason=_reason(found, first, subject, failed),
        failed=failed,
    )


def _check(model: onnx.ModelProto) -> None:
    """Refuse what cannot be cut into blocks that mean something by themselves.

    Raises:
        UsageError: it rounds inside of operators, or its weights are elsewhere.
    """
    inside = next((node for node in model.graph.node if rounds_within(node)), None)
    if inside is not None:
        raise UsageError(
            f"localizing takes float and QDQ models: {inside.op_type} (node {inside.name}) rounds by itself; quantize with QuantizeLinear and DequantizeLinear around the operators (QDQ)"
        )
    apart = next((one for one in model.graph.initializer if one.data_location == one.EXTERNAL), None)
    if apart is not None:
        raise UsageError(f"weight {apart.name!r} is in a file beside the model; load the model with its external data")


def _few(look: Look, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Keep a few images from end to end, or as many of the first as the model insists on.

    Raises:
        UsageError: an input is missing, or there are no images, or too few.
    """
    missing = [name for name in look.inputs if name not in feeds]
    if missing or not look.inputs:
        raise UsageError(f"localizing needs feeds for the model's input {missing[0] if missing else '(it has none)'!r}")
    count = len(feeds[look.inputs[0]])
    if not count:
        raise UsageError("localizing needs at least one image: nothing was compared")
    sizes = {value.name: value.type.tensor_type.shape.dim for value in look.model.graph.input}
    first = [sizes[name][0] for name in look.inputs if sizes[name]]
    fixed = next((size.dim_value for size in first if size.dim_value > 0), None)
    if fixed is not None and count < fixed:
        raise UsageError(f"localizing needs {fixed} images, which the model takes at once, and got {count}")
    if fixed is not None:
        return {name: feeds[name][:fixed] for name in look.inputs}
    if count <= IMAGES:
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


def _reason(found: Sequence[BlockDifference], first: BlockDifference | None, subject: Subject, failed: bool) -> str:
    whole = "" if subject.reproduced else "; but the blocks together do not answer as the model in one piece does"
    if first is not None and failed:
        return f"{first.name} is the first of {len(found)} blocks at fault: {first.why}{whole}"
    if first is not None:
        return f"no verdict failed, yet {first.name} is the first of {len(found)} blocks that differ as rounding does not explain: {first.why}{whole}"  # fmt: skip
    return f"{'' if failed else 'no verdict failed, and '}none of {len(found)} blocks is off by more than rounding explains{_largest(found)}{whole}"  # fmt: skip


def _largest(found: Sequence[BlockDifference]) -> str:
    """Name the block that comes nearest to being at fault."""
    ranked = [(one.multiple, one.name) for one in found if one.multiple is not None]
    if not ranked:
        return ""
    multiple, name = max(ranked)
    return f"; the largest difference is in {name}, {multiple:.3g} times what rounding explains"
