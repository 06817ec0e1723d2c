"""A layer's weights in one layout, (group, output, input, position), whatever the operator and its attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Floats = npt.NDArray[np.float64]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Read one attribute of a node, or the operator's default."""
    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def laid_out(weight: Floats, node: onnx.NodeProto) -> Floats:
    """View a node's weight as (groups, outputs per group, inputs per group, kernel positions).

    Output channel `m` of the layer is [m // outputs per group, m % outputs per group], and inputs likewise, which is
    how ONNX numbers them (operators Conv, ConvTranspose, Gemm, MatMul). What is written to the view is written to
    `weight`, which has to be contiguous; a MatMul's has two axes.
    """
    groups = attribute(node, "group", 1)
    if node.op_type == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).swapaxes(1, 2)
    outputs_first = weight if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.T
    return outputs_first[None, :, :, None]


def own(model: onnx.ModelProto, node: onnx.NodeProto, slot: int) -> onnx.TensorProto:
    """Give the initializer that a node reads at `slot`; a copy of it, which the node then reads, if others read it too."""
    name: str = node.input[slot]
    tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = sum(one == name for other in model.graph.node for one in other.input)
    if readers == 1 and all(name != value.name for value in model.graph.output):
        return tensors[name]
    copy: onnx.TensorProto = model.graph.initializer.add()
    copy.CopyFrom(tensors[name])
    copy.name = unused(model, f"{name}.{node.name or node.output[0]}")
    node.input[slot] = copy.name
    return copy


def unused(model: onnx.ModelProto, name: str) -> str:
    """Make a name that no tensor of the graph has."""
    graph = model.graph
    taken = {one for node in graph.node for one in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    while name in taken:
        name += "_"
    return name
