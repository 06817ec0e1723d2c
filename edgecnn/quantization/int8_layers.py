"""Which layers of a QDQ model ONNX Runtime multiplies in integers on x86, read from the graph alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WeightedLayer, layers_of, makers, readers, weights_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Int8Layer:
    """A layer in integers: its quantized input is `weighted.input`, with zero point `zero`; its `weights` are int8.

    `scale` and `offset` are the weights' scales and zero points, one or one an output channel. `unsigned` is whether
    the input is uint8, or becomes uint8 by moving up by 128.
    """

    weighted: WeightedLayer
    node: onnx.NodeProto
    weights: Array
    zero: int
    unsigned: bool
    scale: Floats
    offset: Floats


def int8_layers(model: onnx.ModelProto) -> list[Int8Layer]:
    """List, in graph order, Conv, Gemm and MatMul whose input and constant int8 weights come out of DequantizeLinear.

    A convolution only if its output is quantized again, and a Gemm only if its bias, where it has one, is quantized:
    ONNX Runtime leaves them in float otherwise. A MatMul only by a matrix. An int8 input becomes uint8 where one
    DequantizeLinear alone reads what a QuantizeLinear wrote (ONNX Runtime's QDQS8ToU8Transformer).

    Raises:
        QuantizationError: a quantizer's scale or zero point is not an initializer.
    """
    graph = _Graph.of(model)
    found = []
    for layer in layers_of(_without_dequantizers(model)):
        node, weight = graph.made[layer.output], graph.constants[layer.weight]
        of_input, of_weight = (graph.made.get(name) for name in node.input[:2])
        if of_input is None or of_weight is None or {of_input.op_type, of_weight.op_type} != {"DequantizeLinear"}:
            continue
        if weight.data_type != onnx.TensorProto.INT8 or not graph.runs_in_int8(node):
            continue
        (_, zero), (scale, offset) = graph.parameters(of_input), graph.parameters(of_weight)
        found.append(
            Int8Layer(
                weighted=layer,
                node=node,
                weights=numpy_helper.to_array(weight),
                zero=int(zero[0]),
                unsigned=zero.dtype == np.uint8 or graph.moves_up(layer.input),
                scale=scale.astype(np.float64),
                offset=offset.astype(np.float64),
            )
        )
    return found


@dataclass(frozen=True)
class _Graph:
    """A graph looked at from all sides."""

    made: dict[str, onnx.NodeProto]
    read: dict[str, list[onnx.NodeProto]]
    constants: dict[str, onnx.TensorProto]
    outputs: set[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Graph:
        return cls(makers(model), readers(model), weights_of(model), {value.name for value in model.graph.output})

    def moves_up(self, name: str) -> bool:
        """Say whether an int8 tensor is one that ONNX Runtime makes uint8."""
        writer = self.made.get(name)
        return writer is not None and writer.op_type == "QuantizeLinear" and len(self.read[name]) == 1

    def runs_in_int8(self, node: onnx.NodeProto) -> bool:
        """Say whether ONNX Runtime makes an integer operator of a node with quantized input and weights."""
        if node.op_type == "Conv":  # a bias in float it quantizes itself
            return self.requantizes(node.output[0])
        if node.op_type == "Gemm":
            bias = self.made.get(node.input[2]) if len(node.input) > 2 and node.input[2] else self.made[node.input[1]]
            return bias is not None and bias.op_type == "DequantizeLinear"
        return node.op_type == "MatMul" and len(self.constants[self.made[node.input[1]].input[0]].dims) == 2

    def requantizes(self, name: str) -> bool:
        """Say whether a convolution's output is only ever quantized.

        A Relu or Clip may lie between, if it cuts off nothing that the quantizer could tell apart (ONNX Runtime's
        ReluQuantFusion and ClipQuantFusion).
        """
        following = self.read.get(name, [])
        limits = (-math.inf, math.inf)
        if len(following) == 1 and following[0].op_type in ("Relu", "Clip") and name not in self.outputs:
            limits, name = self._limits(following[0]), following[0].output[0]
            following = self.read.get(name, [])
        if not following or name in self.outputs or any(node.op_type != "QuantizeLinear" for node in following):
            return False
        scale, zero = self.parameters(following[0])
        levels = np.iinfo(zero.dtype)
        least, most = (float(scale[0]) * (level - int(zero[0])) for level in (levels.min, levels.max))
        return limits[0] <= least and most <= limits[1]

    def parameters(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        """Read scale and zero point of a quantizer, each flat; without a zero point it is 0 in uint8."""
        names = [name for name in node.input[1:] if name]
        unknown = [name for name in names if name not in self.constants]
        if unknown:
            raise QuantizationError(
                f"{node.name or node.output[0]}: {unknown[0]} is not constant: fold constants first"
            )
        arrays = [numpy_helper.to_array(self.constants[name]).reshape(-1) for name in names]
        return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros(1, np.uint8)

    def _limits(self, activation: onnx.NodeProto) -> tuple[float, float]:
        """Read the least and largest value of a Relu or Clip; a limit that is computed cuts off what it likes."""
        if activation.op_type == "Relu":
            return 0.0, math.inf
        least, most = ([*activation.input, "", ""][slot] for slot in (1, 2))
        return self._limit(least, -math.inf), self._limit(most, math.inf)

    def _limit(self, name: str, unlimited: float) -> float:
        if not name:
            return unlimited
        return float(numpy_helper.to_array(self.constants[name]).item()) if name in self.constants else -unlimited


def _without_dequantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a QDQ model such that every node reads the quantized tensors themselves: what `layers_of` can read."""
    bare: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    quantized = {node.output[0]: node.input[0] for node in bare.graph.node if node.op_type == "DequantizeLinear"}
    for node in bare.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = quantized.get(name, name)
    return bare
