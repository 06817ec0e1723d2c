"""What kind of difference it is: one channel, a constant, a factor, another order, the borders, a turned kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError
from edgecnn.parity.localize.exact import Exact

if TYPE_CHECKING:
    import onnx

    from edgecnn.parity.localize.cut import Block

Array = npt.NDArray[Any]
_EXPLAINED = 0.1  # of the error's power may stay unexplained: int8's rounding does
_LONGEST = 8  # channels listed


def fingerprint(truth: Array, found: Array, axis: int = 1) -> list[str]:
    """Say in words how `found` differs from `truth`; channels lie along `axis`. Nothing where no pattern fits.

    Where one of the two is exactly 0 an activation may have cut off what would tell, so those places do not count.
    """
    if truth.shape != found.shape:
        return [f"its shape is {found.shape}, the reference's {truth.shape}"]
    ours, theirs = _rows(truth, axis), _rows(found, axis)
    if not np.isfinite(theirs).all():
        return [f"not finite: channel {_listed(np.flatnonzero(~np.isfinite(theirs).all(axis=1)))} of {len(theirs)}"]
    tests: tuple[Callable[[], str], ...] = (
        lambda: _reordered(ours, theirs),
        lambda: _constant(ours, theirs),
        lambda: _factor(ours, theirs),
    )
    said = next((text for test in tests if (text := test())), "")
    return [text for text in (said, _few_channels(ours, theirs), _border(truth, found)) if text]


def turned(block: Block, inputs: Mapping[str, Array], truth: Array, as_values: Callable[[Array], Array]) -> list[str]:
    """Try what a block with other weights would give: kernels turned over, or the channels of its input the other way round.

    `inputs` are fed as the block takes them; `truth` is the reference's output.
    """
    said = []
    for change, text in (
        (lambda weight: weight.swapaxes(-1, -2), "with the rows and columns of its kernel exchanged it would be right"),
        (
            lambda weight: weight[:, ::-1],
            "with the channels of its input in reverse order (RGB or BGR) it would be right",
        ),
    ):
        model = _changed(block.model, change)
        if model is None:
            continue
        try:
            found = as_values(Exact(model).run(inputs, [block.point.tensor])[block.point.tensor])
            before = as_values(Exact(block.model).run(inputs, [block.point.tensor])[block.point.tensor])
        except BackendError:
            continue
        if found.shape == before.shape == truth.shape and _explains(found - truth, before - truth):
            said.append(text)
    return said


def _changed(model: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto | None:
    """Copy a block with its only convolution's weights changed; None without such, or where that changes nothing."""
    import onnx
    from onnx import numpy_helper

    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    if len(nodes) != 1:
        return None
    source = {name: node for node in model.graph.node for name in node.output}.get(nodes[0].input[1])
    wanted = nodes[0].input[1] if source is None else source.input[0]
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name == wanted:
            weight = numpy_helper.to_array(tensor)
            other = np.ascontiguousarray(change(weight)) if weight.ndim == 4 else weight
            if other.shape != weight.shape or np.array_equal(other, weight):
                return None
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
            return copy
    return None


def _rows(array: Array, axis: int) -> Array:
    """View as (channels, values), float64."""
    moved = np.moveaxis(array.astype(np.float64), axis if array.ndim > 1 else 0, 0)
    return moved.reshape(len(moved), -1)


def _power(error: Array) -> float:
    return float(np.square(error).sum())


def _explains(left: Array, error: Array) -> bool:
    return _power(error) > 0 and _power(left) <= _EXPLAINED * _power(error)


def _reordered(truth: Array, found: Array) -> str:
    """See whether each channel is another one of the reference's."""
    if not 1 < len(truth) <= 1024:
        return ""
    far = np.square(found).sum(axis=1)[:, None] + np.square(truth).sum(axis=1)[None] - 2 * found @ truth.T
    order = far.argmin(axis=1)
    moved = np.flatnonzero(order != np.arange(len(order)))
    if not moved.size or len(set(order.tolist())) != len(order) or not _explains(found - truth[order], found - truth):
        return ""
    pairs = ", ".join(f"{place} is the reference's {order[place]}" for place in moved[:_LONGEST])
    return f"its channels are in another order: {pairs}{', ...' if moved.size > _LONGEST else ''}"


def _constant(truth: Array, found: Array) -> str:
    mask = (truth != 0) & (found != 0)
    counts = np.maximum(mask.sum(axis=1), 1)
    offsets = np.where(mask, found - truth, 0.0).sum(axis=1) / counts
    left = np.where(mask, found - truth - offsets[:, None], 0.0)
    if mask.sum() <= 2 * len(mask) or not _explains(left, np.where(mask, found - truth, 0.0)):
        return ""
    return f"it is off by a constant in each channel (the largest {offsets[np.abs(offsets).argmax()]:+.3g}): a bias, or a mean"


def _factor(truth: Array, found: Array) -> str:
    mask = (truth != 0) & (found != 0)
    power = np.where(mask, truth * truth, 0.0).sum(axis=1)
    gains = np.divide(np.where(mask, truth * found, 0.0).sum(axis=1), power, out=np.ones_like(power), where=power > 0)
    left = np.where(mask, found - gains[:, None] * truth, 0.0)
    if mask.sum() <= 2 * len(mask) or not _explains(left, np.where(mask, found - truth, 0.0)):
        return ""
    most = gains[np.abs(np.log(np.maximum(np.abs(gains), 1e-12))).argmax()]
    return f"it is off by a factor in each channel (the furthest {most:.3g}): a scale"


def _few_channels(truth: Array, found: Array) -> str:
    """Name the channels that hold nearly all of the error, where they are few."""
    powers = np.square(found - truth).sum(axis=1)
    order = np.argsort(-powers)
    needed = int(np.searchsorted(np.cumsum(powers[order]), (1 - _EXPLAINED) * powers.sum())) + 1
    if len(powers) < 3 or needed > max(1, len(powers) // 4):
        return ""
    return f"nearly all of it is in channel {_listed(np.sort(order[:needed]))} of {len(powers)}"


def _border(truth: Array, found: Array) -> str:
    if truth.ndim != 4 or min(truth.shape[2:]) < 4:
        return ""
    error = found.astype(np.float64) - truth
    inside = _power(error[:, :, 1:-1, 1:-1])
    return "it differs along the borders only: look at the padding" if inside <= 0.01 * _power(error) else ""


def _listed(places: npt.NDArray[np.integer]) -> str:
    return ", ".join(map(str, places[:_LONGEST].tolist())) + (", ..." if places.size > _LONGEST else "")
