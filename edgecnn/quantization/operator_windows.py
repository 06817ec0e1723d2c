"""ONNX operators in torch that move a window over the image: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgecnn.quantization.operator_call import Call, padded

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


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _window(call, x, weight.shape[2:])
    padding = window.before
    if window.before != window.after or min(window.before) < 0:
        x, padding = padded(x, window.before, window.after), [0] * len(padding)
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
    return padded(whole, [-side for side in window.before], [-side for side in window.after])


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
    x = padded(x, window.before, after, -math.inf)
    return _LARGEST[len(after)](x, window.kernel, window.strides, 0, window.dilations)


def _average_pool(call: Call, x: Tensor) -> Tensor:
    window = _window(call, x, call.get("kernel_shape", []))
    if any(dilation != 1 for dilation in window.dilations):
        raise call.refusal("dilations are not supported")
    over = _overhang(call, x, window)
    mean = _MEANS[len(over)]
    if not any((*window.before, *window.after, *over)):
        return mean(x, window.kernel, window.strides)
    counted = padded(torch.ones_like(x[:1, :1]), window.before, window.after, float(call.get("count_include_pad", 0)))
    nothing = [0] * len(over)
    whole = padded(padded(x, window.before, window.after), nothing, over)
    share = mean(padded(counted, nothing, over), window.kernel, window.strides)
    return mean(whole, window.kernel, window.strides) / share


def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


WINDOWS: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": lambda call, x: x.amax(dim=list(range(2, x.ndim)), keepdim=True),
    "MaxPool": _max_pool,
}
