"""A torch module built from a list of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from edgecnn.layers import (
    Activation,
    Conv,
    Depthwise,
    Dropout,
    Layer,
    Linear,
    Pool,
    Residual,
    margin,
    needs_projection,
    outputs,
    projection_stride,
)  # fmt: skip


class Layered(nn.Module):
    """The layers in their order, then a linear layer to the classes.

    Takes normalised float images (N, C, H, W) and gives logits (N, classes). Pooling has fixed windows throughout:
    the exporter turns adaptive pooling into ReduceMean, which has no int8 kernel.
    """

    def __init__(self, layers: Sequence[Layer], image: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        sizes = [shape.size for shape in outputs(layers, image)]
        modules = [_module(layer, before) for layer, before in zip(layers, sizes, strict=False)]
        self.layers = nn.Sequential(*modules)
        self.head = nn.Linear(math.prod(sizes[-1]), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        logits: torch.Tensor = self.head(self.layers(x).flatten(1))
        return logits


class ResidualBlock(nn.Module):
    """Layers, their shortcut, and the activation of the sum."""

    def __init__(self, layer: Residual, before: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [shape.size for shape in outputs(layer.layers, (before[0], before[1], before[2]))]
        self.layers = nn.Sequential(*(_module(part, size) for part, size in zip(layer.layers, sizes, strict=False)))
        self.shortcut: nn.Module = nn.Identity()
        if needs_projection(before, sizes[-1]):
            stride = projection_stride(before, sizes[-1]) or 1
            self.shortcut = _convolution(before[0], sizes[-1][0], 1, stride, 0, 1, True, "none")
        self.activation = _activation(layer.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the layers' output to the shortcut's."""
        total: torch.Tensor = self.activation(self.shortcut(x) + self.layers(x))
        return total


def _module(layer: Layer, before: tuple[int, ...]) -> nn.Module:
    """Build the module of one layer for what comes in, (channels, height, width) or (units,)."""
    if isinstance(layer, Conv):
        return _convolution(
            before[0], layer.filters, layer.kernel, layer.stride, margin(layer), 1, layer.norm, layer.activation
        )
    if isinstance(layer, Depthwise):
        return _convolution(
            before[0], before[0], layer.kernel, layer.stride, margin(layer), before[0], layer.norm, layer.activation
        )
    if isinstance(layer, Pool):
        return _pool(layer, before)
    if isinstance(layer, Linear):
        flat: list[nn.Module] = [nn.Flatten()] if len(before) > 1 else []
        return nn.Sequential(*flat, nn.Linear(math.prod(before), layer.units), _activation(layer.activation))
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.rate)
    return ResidualBlock(layer, before)


def _convolution(
    inputs: int, filters: int, kernel: int, stride: int, padding: int, groups: int, norm: bool, activation: Activation
) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(inputs, filters, kernel, stride, padding, groups=groups, bias=not norm)]
    if norm:
        parts.append(nn.BatchNorm2d(filters))
    if activation != "none":
        parts.append(_activation(activation))
    return nn.Sequential(*parts)


def _pool(layer: Pool, before: tuple[int, ...]) -> nn.Module:
    kernel = (before[1], before[2]) if layer.kernel == "all" else (layer.kernel, layer.kernel)
    stride = kernel if layer.stride is None else (layer.stride, layer.stride)
    if layer.pooling == "max":
        return nn.MaxPool2d(kernel, stride, layer.padding)
    return nn.AvgPool2d(kernel, stride, layer.padding, count_include_pad=False)


def _activation(name: Activation) -> nn.Module:
    if name == "relu6":
        return nn.ReLU6(inplace=True)
    return nn.ReLU(inplace=True) if name == "relu" else nn.Identity()
