"""A dequantizer that reads by another scale or zero point than its tensor was written by: a slip of whoever quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.cut import Block
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import Look
from edgecnn.parity.localize.result import root_mean_square
from edgecnn.parity.localize.rounding import as_values

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

_BETTER = 0.5  # of the error may be left where the scale is put right; a factor folded in on purpose makes it larger
_KEEP = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Slice", "Gather")


def stale_scale(look: Look, block: Block, fed: Mapping[str, Array], truth: Array) -> str:
    """Say which dequantizer of a block does not fit its quantizer, where the block is nearer to the truth if it does.

    Args:
        look: the whole model, for the quantizer may lie in a block before.
        block: where to look.
        fed: what a smooth graph is fed to stand for the reference's values.
        truth: the reference's output, float64.

    Returns:
        A reason, or "" where none is at fault.

    Raises:
        BackendError: the block cannot be evaluated without rounding.
    """
    for node in block.model.graph.node:
        writer = _writer(look, node) if node.op_type == "DequantizeLinear" else None
        if writer is None or _same(look, node, writer):
            continue
        output = block.point.tensor
        errors = [
            root_mean_square(as_values(Exact(model, smooth=True).run(fed, [output])[output], block.point) - truth)
            for model in (block.model, _repaired(look, block.model, node, writer))
        ]
        if errors[1] <= _BETTER * errors[0]:
            return f"{node.name} reads {node.input[0]} {_how(look, node, writer)} than {writer.name} wrote it by"
    return ""


def _writer(look: Look, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Find the quantizer of what a node reads, behind operators that leave the integers as they are."""
    name = node.input[0]
    while name in look.live and (made := look.makers.get(name)) is not None:
        if made.op_type == "QuantizeLinear":
            constant = all(one in look.constants for one in (*made.input[1:], *node.input[1:]) if one)
            return made if constant else None
        if made.op_type not in _KEEP:
            return None
        name = made.input[0]
    return None


def _parameters(look: Look, node: onnx.NodeProto) -> tuple[Array, Array]:
    from onnx import numpy_helper

    scale = numpy_helper.to_array(look.constants[node.input[1]]).astype(np.float64)
    given = len(node.input) > 2 and node.input[2]
    zero = numpy_helper.to_array(look.constants[node.input[2]]).astype(np.float64) if given else np.zeros(())
    return scale.reshape(-1), zero.reshape(-1)


def _same(look: Look, reader: onnx.NodeProto, writer: onnx.NodeProto) -> bool:
    (scale, zero), (wrote, offset) = _parameters(look, reader), _parameters(look, writer)
    if scale.size != wrote.size or scale.size > 1:  # along an axis, which may have been moved
        return True
    return bool(np.allclose(scale, wrote, rtol=1e-6, atol=0) and np.array_equal(zero, offset))


def _repaired(look: Look, model: onnx.ModelProto, reader: onnx.NodeProto, writer: onnx.NodeProto) -> onnx.ModelProto:
    """Copy a block with one dequantizer reading by what the quantizer wrote by."""
    import onnx

    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    node = next(one for one in copy.graph.node if one.name == reader.name)
    node.input[1:] = list(writer.input[1:])
    there = {tensor.name for tensor in copy.graph.initializer}
    copy.graph.initializer.extend(look.constants[name] for name in node.input[1:] if name and name not in there)
    return copy


def _how(look: Look, reader: onnx.NodeProto, writer: onnx.NodeProto) -> str:
    (scale, zero), (wrote, offset) = _parameters(look, reader), _parameters(look, writer)
    if not np.array_equal(zero, offset):
        return f"by another zero point ({zero[0]:g}, not {offset[0]:g})"
    return f"by another scale ({scale[0] / wrote[0]:.4g} times as large)"
