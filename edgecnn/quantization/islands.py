"""Which nodes without weights are worth eight bits: those that lie among quantized layers, on all sides they read from."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from edgecnn.quantization.graph import WEIGHTED, weights_of


def stranded(model: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """Name the nodes without weights that read at least one tensor no quantized node makes.

    In eight bits they would need a QuantizeLinear of their own on the way in, which costs more than they do: the
    multiplication of a squeeze-and-excitation block by its float gate, or a pool behind a HardSwish.
    """
    constants, int8, found = set(weights_of(model)), set[str](), []
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            if node.name not in floats:
                int8 |= set(node.output)
            continue
        inputs = [name for name in node.input if name and name not in constants]
        if inputs and all(name in int8 for name in inputs) and node.op_type in MADE_OF_INT8:
            int8 |= set(node.output)
        else:
            found.append(node.name)
    return found


# Operators whose output is as quantized as their input; HardSwish, Softmax and all others give floats.
MADE_OF_INT8 = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Slice", "Pad", "Identity",
)  # fmt: skip
