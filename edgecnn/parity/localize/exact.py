"""A graph in float64 as the operators' own pages define it, quantizers too: what its nodes and weights mean, apart from any kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, EdgecnnError

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class _UnknownError(Exception):
    """A node that torch does not evaluate."""


def rounds_to_steps(node: onnx.NodeProto) -> bool:
    """Say whether an operator rounds to few bits, whatever runs it."""
    return node.op_type in QUANTIZERS or rounds_within(node)


def rounds_within(node: onnx.NodeProto) -> bool:
    """Say whether an operator rounds to steps of its own, between quantizers that cannot be seen."""
    return any(word in node.op_type for word in ("QLinear", "Integer", "DynamicQuantize", "QGemm", "QAttention"))


class Exact:
    """One graph, evaluated in float64 by torch's operators where all of them are known, else by onnx's own evaluator.

    With `smooth` quantizers do not round: a quantized tensor then holds steps in float64, as fractions, and is to be fed so.
    Cut off is what lies below a range that begins at 0, where an activation was put into the quantizer, and of the tensors
    asked for what lies outside theirs. `jitter` then moves every quantized weight by up to half a step, evenly at random, so
    that the difference is what rounding weights costs; and `inner` rounds at the quantizers of tensors not asked for, still
    without cutting off, so that the difference is what rounding costs there.
    """

    def __init__(
        self, model: onnx.ModelProto, smooth: bool = False, jitter: int | None = None, inner: bool = False
    ) -> None:
        self.model, self.smooth, self.inner = model, smooth, inner
        self._random = None if jitter is None else np.random.default_rng(jitter)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute any tensors of the graph; floats come as float64.

        Raises:
            BackendError: neither evaluator can run it, or only onnx's, which rounds, can and it was not to round.
        """
        from importlib.util import find_spec

        unknown = "torch, which can, is not installed"
        if find_spec("torch") is not None:
            try:
                return self._by_torch(feeds, outputs)
            except _UnknownError as error:
                unknown = f"torch does not evaluate {error}"
        rounds = sorted({node.op_type for node in self.model.graph.node if rounds_to_steps(node)})
        if self.smooth and rounds:
            raise BackendError(
                f"{rounds[0]} cannot be evaluated without rounding, so what int8 has to cost is unknown: {unknown}; leave that operator in float, or compare where torch is"
            )
        return _by_onnx(self.model, feeds, outputs)

    def _by_torch(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        import torch
        from onnx import numpy_helper

        from edgecnn.quantization.graph import weights_of

        values = {name: _tensor(numpy_helper.to_array(weight)) for name, weight in weights_of(self.model).items()}
        constant = set(values)
        values.update({name: _tensor(array) for name, array in feeds.items()})
        opset = next((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), 1)
        with torch.inference_mode():
            for node in _needed(self.model, outputs):
                inputs: list[Any] = [values[name] if name else None for name in node.input]
                try:
                    results = self._node(node, inputs, opset, constant, outputs)
                except (EdgecnnError, RuntimeError, TypeError) as error:  # an operator, or a use of one, unknown to it
                    raise _UnknownError(f"{node.op_type} (node {node.name})") from error
                for name, result in zip(node.output, results, strict=False):
                    values[name] = result.double() if result.is_floating_point() else result
        return {name: np.array(values[name].numpy()) for name in outputs}

    def _node(
        self, node: onnx.NodeProto, inputs: list[Any], opset: int, constant: set[str], outputs: Sequence[str]
    ) -> list[Any]:
        """Compute one node; what it makes of constants is added to them."""
        from edgecnn.quantization.operators import read_call, run

        if node.op_type in QUANTIZERS and node.domain in ("", "ai.onnx"):
            made = self._quantizer(node, inputs, node.input[0] in constant, node.output[0] in outputs)
            constant |= set(node.output) if node.input[0] in constant else set()
            return [made]
        if node.op_type == "Cast" and _to_float(node) and inputs[0].is_floating_point():
            return inputs[:1]  # a cast between floats rounds, which float64 is to be free of
        if node.op_type == "Sum":
            return [sum(inputs[1:], inputs[0])]
        return run(read_call(node, opset), inputs)

    def _quantizer(self, node: onnx.NodeProto, inputs: Sequence[Any], constant: bool, last: bool) -> Any:
        import torch

        x, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        scale = _along(scale, x, node)
        kind = torch.uint8 if zero is None else zero.dtype
        offset = torch.zeros((), dtype=torch.float64) if zero is None else _along(zero.double(), x, node)
        if node.op_type == "DequantizeLinear":
            shift = torch.zeros_like(x, dtype=torch.float64)
            if constant and self._random is not None and x.dtype in (torch.int8, torch.uint8):
                shift = torch.from_numpy(self._random.uniform(-0.5, 0.5, tuple(x.shape)))
            return (x.double() + shift - offset) * scale
        limits = torch.iinfo(kind)
        if not self.smooth:
            return torch.clamp(torch.round(x / scale) + offset, limits.min, limits.max).to(kind)
        steps = x / scale + offset
        steps = torch.round(steps) if self.inner and not last else steps
        steps = torch.clamp(steps, min=limits.min) if last or float(offset.min()) <= limits.min else steps
        return torch.clamp(steps, max=limits.max) if last else steps


def _along(parameter: Any, x: Any, node: onnx.NodeProto) -> Any:
    """Shape a scale or zero point so that it lies along its axis of `x`."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1) % x.ndim
    return parameter.reshape([-1 if at == axis else 1 for at in range(x.ndim)])


def _to_float(node: onnx.NodeProto) -> bool:
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    return any(one.name == "to" and one.i in floats for one in node.attribute)


def _tensor(array: Array) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    return tensor.double() if tensor.is_floating_point() else tensor


def _needed(model: onnx.ModelProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def _by_onnx(model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Evaluate by onnx's evaluator: in float64 a graph without quantizers, in its own types one with them."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    quantized = any(node.op_type in QUANTIZERS for node in model.graph.node)
    copy = onnx.ModelProto.FromString(model.SerializeToString()) if quantized else _widened(model)
    for entry in copy.opset_import:
        if quantized and entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, 21)  # it knows no older QuantizeLinear; the meaning is the same since 13
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    kind = np.float32 if quantized else np.float64
    fed = {name: array.astype(kind) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    try:
        found = ReferenceEvaluator(copy).run(list(outputs), fed)
    except Exception as error:  # it raises whatever numpy raises
        raise BackendError(f"the graph cannot be evaluated in float64: {' '.join(str(error).split())[:300]}") from error
    return {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in zip(outputs, found, strict=True)
    }


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with its float weights, constants and casts in float64."""
    import onnx
    from onnx import TensorProto, numpy_helper

    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    attributes = [one for node in copy.graph.node for one in node.attribute]
    for tensor in (*copy.graph.initializer, *(one.t for one in attributes if one.type == onnx.AttributeProto.TENSOR)):
        if tensor.data_type in floats:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in copy.graph.node:
        for one in node.attribute:
            if node.op_type == "Cast" and one.name == "to" and one.i in floats:
                one.i = TensorProto.DOUBLE
    for value in (*copy.graph.input, *copy.graph.value_info):
        if value.type.tensor_type.elem_type in floats:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy
