"""What a QDQ model rounds, rounded in torch while its float weights train; what that is, is read from a QDQ model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import layers_of, makers, readers, weights_of

_SUFFIX = "_quantized"  # what ONNX Runtime's quantizer adds to an initializer's name


@dataclass(frozen=True)
class Grid:
    """The values an activation is rounded to: `rint(x / scale) + zero_point`, clipped to `least` ... `most`.

    Tensors with the same `key` share their scale.
    """

    key: str
    scale: float
    zero_point: int
    least: int
    most: int


@dataclass(frozen=True)
class Layout:
    """What a QDQ model rounds, by the names of the float model that it was made of.

    `weights` gives the axis of each layer's weight that has a scale for each channel, None for one scale; `constants`
    what other initializers became.
    """

    activations: dict[str, Grid]
    weights: dict[str, int | None]
    constants: dict[str, npt.NDArray[np.float32]]


def read_layout(model: onnx.ModelProto, quantized: onnx.ModelProto) -> Layout:
    """Read from a quantized model what it rounds, rather than guess what the quantizer would do.

    Raises:
        QuantizationError: it is not a quantization of `model`, or no layer of it is quantized.
    """
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in weights_of(quantized).items()}
    floats, trained = weights_of(model), {layer.weight for layer in layers_of(model)}
    layout = Layout(_activations(model, quantized, arrays), {}, {})
    for node in quantized.graph.node:
        stored = node.input[0] if node.op_type == "DequantizeLinear" else ""
        name = stored.removesuffix(_SUFFIX)
        # Biases, in int32 at the scale of the products, are as good as float.
        if name not in floats or stored not in arrays or arrays[stored].dtype == np.int32:
            continue
        scale, zero = arrays[node.input[1]], arrays[node.input[2]]
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1) if scale.ndim else None
        if name in trained:
            layout.weights[name] = axis
        else:
            shape = [-1 if at == axis else 1 for at in range(arrays[stored].ndim)]
            levels = arrays[stored].astype(np.float32) - zero.astype(np.float32).reshape(shape)
            layout.constants[name] = (levels * scale.reshape(shape)).astype(np.float32)
    if not layout.weights:
        raise QuantizationError("QAT: no layer is quantized, so that there is nothing to train")
    return layout


def _activations(
    model: onnx.ModelProto, quantized: onnx.ModelProto, arrays: Mapping[str, npt.NDArray[Any]]
) -> dict[str, Grid]:
    known, read = {*makers(model), *(value.name for value in model.graph.input)}, readers(quantized)
    found = {}
    for node in quantized.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        # An output of the graph keeps its name behind the pair, not before it.
        around = [node.input[0], *(name for one in read.get(node.output[0], []) for name in one.output)]
        name = next((name for name in around if name in known), None)
        if name is None:
            raise QuantizationError(f"QAT: {node.input[0]!r} is quantized, but is no tensor of the float model")
        scale, zero = arrays[node.input[1]], arrays[node.input[2]]
        if scale.size != 1:
            raise QuantizationError(f"QAT: activation {name!r} has {scale.size} scales; one is supported")
        limits = np.iinfo(zero.dtype)
        found[name] = Grid(node.input[1], float(scale.item()), int(zero.item()), int(limits.min), int(limits.max))
    return found


class FakeQuantization(nn.Module):
    """Rounds tensors as a layout says; gradients go straight through, but not where a value was clipped.

    Weights are symmetric, their scale always that of their largest magnitude, which becomes `most` (127, or 64 for
    seven bits). With `learn` the activations' scales are parameters (Esser et al. 2020, learned step size), stored as
    the logarithm of the factor by which they grow.
    """

    def __init__(self, layout: Layout, most: int, learn: bool = False) -> None:
        super().__init__()
        self._layout, self._most = layout, most
        self._constants = {name: torch.from_numpy(value) for name, value in layout.constants.items()}
        keys = dict.fromkeys(grid.key for grid in layout.activations.values())
        self._places = {key: place for place, key in enumerate(keys)}
        self.growth = nn.Parameter(torch.zeros(len(keys)), requires_grad=learn)

    def touch(self, name: str, value: Tensor) -> Tensor:
        """Round a tensor if it is one of those that the layout rounds; for `GraphModule.forward`."""
        if name in self._layout.weights:
            return _rounded_weight(value, self._layout.weights[name], self._most)
        if name in self._constants:
            return self._constants[name].to(value.dtype)
        grid = self._layout.activations.get(name)
        if grid is None:
            return value
        if self.growth.requires_grad:
            return _rounded(value, grid, grid.scale * self.growth[self._places[grid.key]].exp())
        return torch.fake_quantize_per_tensor_affine(value, grid.scale, grid.zero_point, grid.least, grid.most)

    def ranges(self, before: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Stretch the ranges that the layout was made of as the scales have grown; zero points are as they were."""
        growth = self.growth.detach().exp().tolist()
        factors = {name: growth[self._places[grid.key]] for name, grid in self._layout.activations.items()}
        return {name: (low * factors.get(name, 1.0), high * factors.get(name, 1.0)) for name, (low, high) in before.items()}  # fmt: skip


def _rounded_weight(weight: Tensor, axis: int | None, most: int) -> Tensor:
    sizes = weight.detach().abs()
    if axis is None:
        scale = float(sizes.max()) / most or 1.0
        return torch.fake_quantize_per_tensor_affine(weight, scale, 0, -most, most)
    scales = sizes.amax(dim=[at for at in range(weight.ndim) if at != axis % weight.ndim]) / most
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 1.0, scales)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis % weight.ndim, -most, most)


def _rounded(value: Tensor, grid: Grid, scale: Tensor) -> Tensor:
    steps = value / scale
    steps = steps + (steps.round() - steps).detach()
    return (torch.clamp(steps + grid.zero_point, grid.least, grid.most) - grid.zero_point) * scale
