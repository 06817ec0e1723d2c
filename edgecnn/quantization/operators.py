"""ONNX operators in torch, differentiable: what a float CNN is made of, as the operators' own pages define them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from edgecnn.errors import QuantizationError

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d
}  # fmt: skip
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d
}  # fmt: skip
_LARGEST: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d
}  # fmt: skip
_MEANS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One node as it is called: its operator, names of tensors ("" for one left out), and attributes as Python values."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, attribute: str, default: Any) -> Any:
        """Give an attribute's value, text as str."""
        value = self.attributes.get(attribute, default)
        return value.decode() if isinstance(value, bytes) else value

    def refusal(self, reason: str) -> QuantizationError:
        """Say that this node cannot be trained through, and why."""
        name = self.name or (self.outputs[0] if self.outputs else "?")
        return QuantizationError(
            f"QAT cannot run {self.op} (node {name}): {reason}; leave fine-tuning out, or keep more layers in float"
        )


def read_call(node: onnx.NodeProto, opset: int) -> Call:
    """Read a node.

    Raises:
        QuantizationError: there is no such operator in `OPERATORS`.
    """
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    call = Call(domain + node.op_type, node.name, tuple(node.input), tuple(node.output), attributes, opset)
    if call.op not in OPERATORS:
        raise call.refusal("this operator has no gradient here")
    return call


def run(call: Call, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """Compute a node's outputs.

    Raises:
        QuantizationError: an attribute asks for what is not supported.
    """
    result = OPERATORS[call.op](call, *inputs)
    return result if isinstance(result, list) else [result]


# Windows: convolutions and pooling.


@dataclass(frozen=True)
class _Window:
    """Where a window goes along each axis of the image; `before` and `after` are the padding."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def spans(self) -> list[int]:
        return [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]


def _window(call: Call, x: Tensor, kernel: Sequence[int]) -> _Window:
    rank = len(kernel)
    strides, dilations = list(call.get("strides", [1] * rank)), list(call.get("dilations", [1] * rank))
    pads = list(call.get("pads", [0] * 2 * rank))
    window = _Window(list(kernel), strides, dilations, pads[:rank], pads[rank:])
    automatic = call.get("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        return window
    totals = [0] * rank
    if automatic != "VALID":
        sides = zip(x.shape[2:], strides, window.spans, strict=True)
        totals = [max((-(-size // stride) - 1) * stride + span - size, 0) for size, stride, span in sides]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    before, after = (large, small) if automatic == "SAME_LOWER" else (small, large)
    return _Window(window.kernel, strides, dilations, before, after)


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes; a negative number cuts off."""
    if not any(before) and not any(after):
        return x
    flat = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, flat, value=value)


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(call, x, weight.shape[2:])
    padding = window.before
    if window.before != window.after or min(window.before) < 0:
        x, padding = _padded(x, window.before, window.after), [0] * len(padding)
    function = _CONVOLUTIONS[len(padding)]
    return function(x, weight, bias, window.strides, padding, window.dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if call.get("output_shape", None) or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refusal("output_shape and automatic padding are not supported")
    window = _window(call, x, weight.shape[2:])
    more = list(call.get("output_padding", [0] * len(window.kernel)))
    whole = _TRANSPOSED[len(more)](
        x, weight, bias, window.strides, 0, more, call.get("group", 1), window.dilations
    )  # fmt: skip
    return _padded(whole, [-side for side in window.before], [-side for side in window.after])


def _overhang(call: Call, x: Tensor, window: _Window) -> list[int]:
    """Count what the last window hangs over the padded image; one that would begin behind the image is left out."""
    over = []
    for size, stride, span, before, after in zip(
        x.shape[2:], window.strides, window.spans, window.before, window.after, strict=True
    ):
        room = size + before + after - span
        steps = room // stride
        if call.get("ceil_mode", 0):
            steps = -(-room // stride)
            steps -= steps * stride >= size + before
        over.append(max(steps * stride - room, 0))
    return over


def _max_pool(call: Call, x: Tensor) -> Tensor:
    if len(call.outputs) > 1:
        raise call.refusal("its second output, the indices, is not supported")
    window = _window(call, x, call.get("kernel_shape", []))
    after = [side + over for side, over in zip(window.after, _overhang(call, x, window), strict=True)]
    x = _padded(x, window.before, after, -math.inf)
    return _LARGEST[len(after)](x, window.kernel, window.strides, 0, window.dilations)


def _average_pool(call: Call, x: Tensor) -> Tensor:
    window = _window(call, x, call.get("kernel_shape", []))
    if any(dilation != 1 for dilation in window.dilations):
        raise call.refusal("dilations are not supported")
    over = _overhang(call, x, window)
    mean = _MEANS[len(over)]
    if not any((*window.before, *window.after, *over)):
        return mean(x, window.kernel, window.strides)
    counted = _padded(torch.ones_like(x[:1, :1]), window.before, window.after, float(call.get("count_include_pad", 0)))
    nothing = [0] * len(over)
    whole = _padded(_padded(x, window.before, window.after), nothing, over)
    share = mean(_padded(counted, nothing, over), window.kernel, window.strides)
    return mean(whole, window.kernel, window.strides) / share


def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


# Matrices, norms and functions of one value.


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = a.t() if call.get("transA", 0) else a, b.t() if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def _batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if call.get("training_mode", 0):
        raise call.refusal("it is in training mode")
    shape = [1, -1] + [1] * (x.ndim - 2)
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return (x - mean.view(shape)) * factor.view(shape) + bias.view(shape)


def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if call.opset < 11:
        return x.clamp(call.get("min", None), call.get("max", None))
    return x.clamp(None if low is None else low.item(), None if high is None else high.item())


def _softmax(call: Call, x: Tensor) -> Tensor:
    function: Callable[..., Tensor] = torch.softmax if call.op == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    rows = x.flatten(call.get("axis", 1) % x.ndim)  # all axes from this one on are one
    return function(rows, -1).view(x.shape)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _reduce_mean(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = call.get("axes", None) if axes is None else _integers(axes)
    if not along and call.get("noop_with_empty_axes", 0):
        return x
    return x.mean(dim=list(along or range(x.ndim)), keepdim=bool(call.get("keepdims", 1)))


# Shapes.


def _integers(values: Tensor) -> list[int]:
    return [int(value) for value in values.reshape(-1).tolist()]


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    keeps_zero = call.get("allowzero", 0)
    sides = [x.shape[at] if side == 0 and not keeps_zero else side for at, side in enumerate(_integers(shape))]
    return x.reshape(sides)


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = call.get("axes", None) if axes is None else _integers(axes)
    return x.squeeze() if along is None else x.squeeze(tuple(along))


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    along = call.get("axes", []) if axes is None else _integers(axes)
    rank = x.ndim + len(along)
    for axis in sorted(axis % rank for axis in along):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=call.get("axis", 0))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis, parts = call.get("axis", 0), len(call.outputs)
    given = call.get("split", None) if sizes is None else _integers(sizes)
    if given is None:
        given = -(-x.shape[axis] // parts)
    return list(torch.split(x, given, dim=axis))


def _slice(
    call: Call, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None, axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:  # fmt: skip
    first = call.get("starts", []) if starts is None else _integers(starts)
    last = call.get("ends", []) if ends is None else _integers(ends)
    along = call.get("axes", list(range(len(first)))) if axes is None else _integers(axes)
    strides = [1] * len(first) if steps is None else _integers(steps)
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
    sides = list(call.get("pads", [])) if pads is None else _integers(pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in _integers(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for at, axis in enumerate(along):
        before[axis], after[axis] = sides[at], sides[at + len(along)]
    mode = call.get("mode", "constant")
    if mode == "constant":
        return _padded(x, before, after, float(call.get("value", 0.0)) if value is None else float(value))
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
        wanted = _integers(sizes)
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


OPERATORS: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "Add": lambda call, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": lambda call, x: functional.elu(x, call.get("alpha", 1.0)),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": lambda call, x: x.amax(dim=list(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda call, x: x * (x / 6 + 0.5).clamp(0, 1),
    "Identity": lambda call, x: x,
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)),
    "LogSoftmax": _softmax,
    "MatMul": lambda call, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda call, a, b: a * b,
    "PRelu": lambda call, x, slope: x.clamp(min=0) + slope * x.clamp(max=0),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda call, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda call, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda call, a, b: a - b,
    "Tanh": lambda call, x: x.tanh(),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
