"""ONNX operators in torch, differentiable: what a float CNN is made of, as the operators' own pages define them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional

from edgecnn.quantization.operator_call import Call, integers
from edgecnn.quantization.operator_shapes import SHAPES
from edgecnn.quantization.operator_windows import WINDOWS


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
    along = call.get("axes", None) if axes is None else integers(axes)
    if not along and call.get("noop_with_empty_axes", 0):
        return x
    return x.mean(dim=list(along or range(x.ndim)), keepdim=bool(call.get("keepdims", 1)))


OPERATORS: dict[str, Callable[..., Tensor | list[Tensor]]] = {
    **WINDOWS,
    **SHAPES,
    "Add": lambda call, a, b: a + b,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Div": _div,
    "Elu": lambda call, x: functional.elu(x, call.get("alpha", 1.0)),
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda call, x: x * (x / 6 + 0.5).clamp(0, 1),
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)),
    "LogSoftmax": _softmax,
    "MatMul": lambda call, a, b: a @ b,
    "Mul": lambda call, a, b: a * b,
    "PRelu": lambda call, x, slope: x.clamp(min=0) + slope * x.clamp(max=0),
    "ReduceMean": _reduce_mean,
    "Relu": lambda call, x: x.relu(),
    "Sigmoid": lambda call, x: x.sigmoid(),
    "Softmax": _softmax,
    "Sub": lambda call, a, b: a - b,
    "Tanh": lambda call, x: x.tanh(),
}
