"""Where a model can be cut without parting what its backend computes in one kernel."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Mish", "Gelu",
)  # fmt: skip
_INT8 = ("QLinear", "QGemm", "Nhwc", "MatMulInteger", "DynamicQuantize")
SILENT = ("BatchNormalization", "Identity", "Dropout", "Cast")  # what another export folds away or leaves out
MOVES = (
    "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The steps of a tensor quantized as a whole: value = scale * (integer - zero), between `least` and `most`."""

    scale: float
    zero: int
    dtype: np.dtype[Any]

    @property
    def least(self) -> float:
        """The smallest value it can hold."""
        return self.scale * (int(np.iinfo(self.dtype).min) - self.zero)

    @property
    def most(self) -> float:
        """The largest value it can hold."""
        return self.scale * (int(np.iinfo(self.dtype).max) - self.zero)

    def quantize(self, values: Array) -> Array:
        """Round half to even and saturate, as operator QuantizeLinear does; NaN becomes 0."""
        limits = np.iinfo(self.dtype)
        steps = np.nan_to_num(np.rint(values.astype(np.float64) / self.scale), nan=0.0) + self.zero
        rounded: Array = np.clip(steps, limits.min, limits.max).astype(self.dtype)
        return rounded

    def steps(self, values: Array) -> Floats:
        """Express values in steps, neither rounded nor cut off."""
        steps: Floats = values.astype(np.float64) / self.scale + self.zero
        return steps

    def dequantize(self, integers: Array) -> Floats:
        """Give the values that integers, or fractions of steps, stand for."""
        values: Floats = (integers.astype(np.float64) - self.zero) * self.scale
        return values


@dataclass(frozen=True)
class Point:
    """A tensor at which the candidate can be cut, and by what the same one can be found in another model.

    `value` names the float tensor that it stands for: itself, or what QuantizeLinear reads. `readers` are the layers
    that read it directly; `maker` is the layer that it comes from through at most activations, and `activated` says that
    there is one, or that a quantizer cuts off what is below zero. `op` is the operator that makes `value`.
    """

    tensor: str
    value: str
    op: str
    grid: Grid | None
    readers: tuple[str, ...]
    maker: str | None
    activated: bool
    output: bool
    kernel: str = ""


def points_of(model: onnx.ModelProto, fused: onnx.ModelProto) -> list[Point]:
    """List the tensors of a model that its optimised graph `fused` keeps, in graph order, its outputs among them.

    A tensor that is dequantized only is left out: it is the quantized one over again.
    """
    look = Look(model)
    kernels = _kernels(look, fused)
    found = []
    for node in model.graph.node:
        for tensor in node.output:
            wanted = tensor in look.outputs or (tensor in kernels and node.op_type != "DequantizeLinear")
            if tensor in look.live and wanted and _is_cuttable(look, node, tensor):
                found.append(look.point(tensor, kernels.get(tensor, node.op_type)))
    return found


class Look:
    """A graph with what is asked of it again and again: who makes, who reads, which tensors depend on what.

    `live` depend on the inputs, `computed` on a convolution or product of them; `above` names the layers before each.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        from edgecnn.quantization.fusion import layers_all
        from edgecnn.quantization.graph import WEIGHTED, makers, readers, weights_of

        self.model = model
        self.makers, self.readers, self.constants = makers(model), readers(model), weights_of(model)
        self.layers = {layer.node: layer.name for layer in layers_all(model)}
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.live = set(self.inputs)
        self.above: dict[str, frozenset[str]] = {name: frozenset() for name in self.inputs}
        self.computed = set[str]()
        for node in model.graph.node:
            if self.live & set(node.input):
                self.live |= set(node.output)
                upstream = frozenset[str]().union(*(self.above.get(name, frozenset()) for name in node.input))
                if node.op_type in WEIGHTED or self.computed & set(node.input):
                    self.computed |= set(node.output)
                own = {self.layers[node.name]} if node.name in self.layers else set()
                self.above.update(dict.fromkeys(node.output, upstream | own))

    def point(self, tensor: str, kernel: str = "") -> Point:
        """Describe one tensor."""
        grid = self.grid(tensor)
        value = str(self.makers[tensor].input[0]) if grid is not None else tensor
        maker, activated = self._maker(value)
        cut_off = grid is not None and grid.least >= 0
        return Point(
            tensor=tensor,
            value=value,
            op=self.makers[value].op_type if value in self.makers else "",
            grid=grid,
            readers=tuple(self._reading(tensor)),
            maker=maker,
            activated=activated or cut_off,
            output=tensor in self.outputs,
            kernel=kernel,
        )

    def grid(self, tensor: str) -> Grid | None:
        """Give a quantized tensor's steps; None for any other, and for one quantized channel by channel."""
        from onnx import numpy_helper

        node = self.makers.get(tensor)
        if (
            node is None
            or node.op_type != "QuantizeLinear"
            or any(name not in self.constants for name in node.input[1:])
        ):
            return None
        scale = numpy_helper.to_array(self.constants[node.input[1]])
        zero = np.zeros(1, np.uint8)
        if len(node.input) > 2 and node.input[2]:
            zero = numpy_helper.to_array(self.constants[node.input[2]])
        if scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
            return None
        return Grid(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), zero.dtype)

    def _reading(self, tensor: str) -> list[str]:
        """Name the layers whose input a tensor is, itself or dequantized."""
        found = []
        for node in self.readers.get(tensor, []):
            if node.name in self.layers and node.input[0] == tensor:
                found.append(self.layers[node.name])
            elif node.op_type == "DequantizeLinear" and tensor == node.input[0]:
                found += self._reading(node.output[0])
        return found

    def _maker(self, tensor: str) -> tuple[str | None, bool]:
        after = self.readers.get(tensor, [])
        if len(after) == 1 and after[0].op_type == "BatchNormalization":  # elsewhere that may be folded: no such tensor
            return None, False
        node, seen = self.makers.get(tensor), set[str]()
        while node is not None and node.op_type in (*ACTIVATIONS, *SILENT) and node.input:
            kind = "activation" if node.op_type in ACTIVATIONS else node.op_type
            if kind in seen or (kind == "activation" and "BatchNormalization" in seen):
                return None, False  # more than a layer with its norm and one activation
            seen |= {kind} & {"activation", "BatchNormalization"}
            node = self.makers.get(node.input[0])
        return (self.layers.get(node.name) if node is not None else None), "activation" in seen


def _is_cuttable(look: Look, node: onnx.NodeProto, tensor: str) -> bool:
    """Say whether a tensor is float, or quantized with one step for all of it."""
    return tensor in look.outputs or node.op_type != "QuantizeLinear" or look.grid(tensor) is not None


def _kernels(look: Look, fused: onnx.ModelProto) -> dict[str, str]:
    """Map the tensors that the optimised graph keeps to the kernels that make them.

    An output of the same name is the same tensor, but for two sorts of kernels, whose outputs are in another layout: a float one
    is named after what it made first (`b_nchwc`), and an int8 one after the node between the quantizers.
    """
    named = {node.name: node for node in look.model.graph.node}
    makers = {name: node for node in fused.graph.node for name in node.output}
    ordinary = {node.input[0]: node.output[0] for node in fused.graph.node if node.op_type == "ReorderOutput"}
    found: dict[str, str] = {}
    for node in fused.graph.node:
        stem = re.sub(r"_token_\d+$", "", node.name)
        kernel = f"nchwc.{node.op_type}" if node.domain.endswith("nchwc") else node.op_type
        if node.domain.endswith("nchwc") and node.op_type.startswith("Reorder"):
            continue
        if node.domain.endswith("nchwc"):
            tensors = [ordinary.get(node.output[0]) or _in_layout(look, node, stem.removesuffix("_nchwc"))]
        elif node.op_type.startswith(_INT8) and stem in named:
            made = named[stem].output[0]
            tensors = _quantized(look, made) or [made]
        elif node.op_type == "Transpose" and node.name not in named:  # of a layout
            tensors, kernel = list(node.output), makers[node.input[0]].op_type if node.input[0] in makers else kernel
        elif not set(node.output) & set(look.makers) and stem in named:  # in a layout, and named as it was
            tensors = [_in_layout(look, node, named[stem].output[0])]
        else:
            tensors = list(node.output)
        found.update({name: found.get(name, kernel) for name in tensors if name in look.makers})
    return found


def _in_layout(look: Look, node: onnx.NodeProto, made: str) -> str:
    """Name the tensor that a kernel in another layout makes: with a fourth input it has taken in the sum that follows."""
    if len(node.input) < 4 or not node.input[3]:
        return made
    after = look.readers.get(made, [])
    if len(after) != 1 or after[0].op_type != "Add":
        return made
    total = str(after[0].output[0])
    last = look.readers.get(total, [])
    activated = any(one.name == "activation" for one in node.attribute)
    return str(last[0].output[0]) if activated and len(last) == 1 and last[0].op_type in ACTIVATIONS else total


def _quantized(look: Look, tensor: str) -> list[str]:
    """Name what a node's output becomes behind its activation and QuantizeLinear."""
    after = look.readers.get(tensor, [])
    if len(after) == 1 and after[0].op_type in ACTIVATIONS:
        return _quantized(look, after[0].output[0])
    return [node.output[0] for node in after if node.op_type == "QuantizeLinear"]


def without(points: Collection[Point], dropped: Collection[str]) -> list[Point]:
    """Leave some points out by their tensors; outputs always stay."""
    return [point for point in points if point.output or point.tensor not in dropped]


def shapes(values: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of arrays by name."""
    return {name: array.shape for name, array in values.items()}
