"""The matrix products that a quantized layer is, its inner dimension in the order of ONNX Runtime's integer kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

Array = npt.NDArray[Any]


def products(node: onnx.NodeProto, weights: Array, tensor: Array, zero: int) -> Iterator[tuple[Array, Array, slice]]:
    """Give each product of a layer as rows (M, K), weights (K, N), and which of the layer's outputs it makes.

    A convolution is one product a group, over patches with the channels innermost, as ONNX Runtime's im2col and MLAS's
    MlasConvSym lay them out; a depthwise one is none. Gemm and MatMul are one each, as they stand.

    Args:
        node: a Conv, Gemm, or MatMul by a matrix.
        weights: as the node has them.
        tensor: the layer's quantized input.
        zero: its zero point, which a convolution's padding is made of.
    """
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Conv":
        yield from _convolution(weights, attributes, tensor, zero)
    elif node.op_type == "Gemm":
        rows = tensor.T if attributes.get("transA") else tensor
        yield rows, weights.T if attributes.get("transB") else weights, slice(None)
    else:
        yield tensor.reshape(-1, tensor.shape[-1]), weights, slice(None)


def _convolution(
    weights: Array, attributes: dict[str, Any], tensor: Array, zero: int
) -> Iterator[tuple[Array, Array, slice]]:
    groups = attributes.get("group", 1)
    channels, count = weights.shape[1], len(weights) // groups
    if channels == count == 1:
        return  # depthwise
    for group in range(groups):
        columns = slice(group * count, (group + 1) * count)
        part = tensor[:, group * channels : (group + 1) * channels]
        kernels = np.moveaxis(weights[columns], 1, -1).reshape(count, -1).T
        yield _patches(part, weights.shape[2:], attributes, zero), kernels, columns


def _patches(tensor: Array, kernel: tuple[int, ...], attributes: dict[str, Any], zero: int) -> Array:
    """Lay out what each output sees as a row: kernel positions outside, channels inside."""
    rank = len(kernel)
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(tensor.shape[2:], extents, strides, attributes)
    padded = np.pad(tensor, [(0, 0), (0, 0), *pads], constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=tuple(range(2, 2 + rank)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))]
    rows = windows.transpose(0, *range(2, 2 + 2 * rank), 1)
    return rows.reshape(math.prod(rows.shape[: 1 + rank]), -1)


def _pads(
    sizes: tuple[int, ...], extents: list[int], strides: list[int], attributes: dict[str, Any]
) -> list[tuple[int, int]]:
    """Work out the padding of each axis, before and after (ONNX, Conv, `pads` and `auto_pad`)."""
    kind = attributes.get("auto_pad", b"NOTSET").decode()
    if not kind.startswith("SAME"):
        pads = attributes.get("pads", [0] * 2 * len(sizes)) if kind == "NOTSET" else [0] * 2 * len(sizes)
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found = []
    for size, extent, step in zip(sizes, extents, strides, strict=True):
        total = max((math.ceil(size / step) - 1) * step + extent - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if kind == "SAME_UPPER" else (more, less))
    return found
