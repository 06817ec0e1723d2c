"""ONNX operators in torch that change what lies where: shapes, slices, paddings, and Resize."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from edgecnn.quantization.operator_call import Call, integers, padded


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    keeps_zero = call.get("allowzero", 0)
    sides = [x.shape[at] if side == 0 and not keeps_zero else side for at, side in enumerate(integers(shape))]
    return x.reshape(sides)


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = call.get("axes", None) if axes is None else integers(axes)
    return x.squeeze() if along is None else x.squeeze(tuple(along))


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = call.get("axes", []) if axes is None else integers(axes)
    rank = x.ndim + len(along)
    for axis in sorted(axis % rank for axis in along):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=call.get("axis", 0))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis, parts = call.get("axis", 0), len(call.outputs)
    given = call.get("split", None) if sizes is None else integers(sizes)
    if given is None:
        given = -(-x.shape[axis] // parts)
    return list(torch.split(x, given, dim=axis))


def _slice(
    call: Call, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None, axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:  # fmt: skip
    first = call.get("starts", []) if starts is None else integers(starts)
    last = call.get("ends", []) if ends is None else integers(ends)
    along = call.get("axes", list(range(len(first)))) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    if min(strides, default=1) < 1:
        raise call.refusal("steps backwards are not supported")
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    taken = x.index_select(axis, indices.reshape(-1).long() % x.shape[axis])
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _shape(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end", None)], dtype=torch.int64)


def _cast(call: Call, x: Tensor) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(call.get("to", 1))
    return x.to(torch.from_numpy(np.zeros(0, dtype=kind)).dtype)


def _constant(call: Call) -> Tensor:
    (name, value), *others = call.attributes.items()
    if others or name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise call.refusal(f"its attribute {name} is not supported")
    if name == "value":
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


def _dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    if training is not None and bool(training):
        raise call.refusal("it is in training mode")
    return x


def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    sides = list(call.get("pads", [])) if pads is None else integers(pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for at, axis in enumerate(along):
        before[axis], after[axis] = sides[at], sides[at + len(along)]
    mode = call.get("mode", "constant")
    if mode == "constant":
        return padded(x, before, after, float(call.get("value", 0.0)) if value is None else float(value))
    for axis, (front, back) in enumerate(zip(before, after, strict=True)):
        if front or back:
            x = x.index_select(axis, _mirrored(call, mode, x.shape[axis], front, back))
    return x


def _mirrored(call: Call, mode: str, size: int, front: int, back: int) -> Tensor:
    """Say which of `size` elements stands at each place of the padded axis."""
    places = torch.arange(-front, size + back)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if mode == "reflect":
        return (size - 1 - (size - 1 - places.abs()).abs()).clamp(0, size - 1)
    raise call.refusal(f"mode {mode} is not supported")


# Resize, one axis after the other.


def _resize(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    if call.opset < 11 or call.get("antialias", 0) or call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("only nearest and linear Resize of opset 11 and later, without antialiasing, is supported")
    axes = [axis % x.ndim for axis in call.get("axes", list(range(x.ndim)))]
    if sizes is not None and sizes.numel():
        wanted = integers(sizes)
        factors = [side / x.shape[axis] for side, axis in zip(wanted, axes, strict=True)]
    else:
        factors = [float(factor) for factor in cast(Tensor, scales).tolist()]
        wanted = [math.floor(x.shape[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    for axis, side, factor in zip(axes, wanted, factors, strict=True):
        if side != x.shape[axis] or factor != 1:
            x = _resized(call, x, axis, _sources(call, x.shape[axis], side, factor))
    return x


def _sources(call: Call, size: int, wanted: int, factor: float) -> Tensor:
    """Say where in the old axis each place of the new one lies; float64 (wanted,)."""
    places, mode = torch.arange(wanted, dtype=torch.float64), call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "pytorch_half_pixel" and wanted == 1:
        return torch.zeros(1, dtype=torch.float64)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (places + 0.5) / factor - 0.5
    if mode == "asymmetric":
        return places / factor
    if mode == "align_corners":
        return places * ((size - 1) / (wanted - 1) if wanted > 1 else 0.0)
    raise call.refusal(f"coordinate_transformation_mode {mode} is not supported")


def _resized(call: Call, x: Tensor, axis: int, sources: Tensor) -> Tensor:
    last, mode = x.shape[axis] - 1, call.get("mode", "nearest")
    if mode == "linear":
        lower = sources.clamp(0, last).floor()
        share = (sources.clamp(0, last) - lower).to(x.dtype).view([-1 if at == axis else 1 for at in range(x.ndim)])
        low = x.index_select(axis, lower.long())
        return low + share * (x.index_select(axis, (lower.long() + 1).clamp(max=last)) - low)
    rounding = call.get("nearest_mode", "round_prefer_floor")
    roundings: dict[str, Callable[[Tensor], Tensor]] = {
        "round_prefer_floor": lambda place: (place - 0.5).ceil(),
        "round_prefer_ceil": lambda place: (place + 0.5).floor(),
        "floor": torch.floor,
        "ceil": torch.ceil,
    }
    if mode != "nearest":
        raise call.refusal(f"mode {mode} is not supported")
    return x.index_select(axis, roundings[rounding](sources).clamp(0, last).long())


SHAPES: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda call, x: x,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
