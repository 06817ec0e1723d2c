"""A backend by somebody else: small float ONNX graphs in numpy, each operator as its page in ONNX's specification has it.

It computes in float64 and rounds its answers to float32 at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.backends.base import SessionOptions
from edgecnn.errors import BackendError
from edgecnn.spec import Artifact, TensorSpec

Array = npt.NDArray[Any]
Attributes = dict[str, Any]


class PlainBackend:
    """Runs ONNX files of a dozen operators on the CPU."""

    name = "plain-numpy"
    formats = ("onnx",)
    requires = {"onnx": "pip install edgecnn-plain-numpy"}  # noqa: RUF012 -- a constant

    def devices(self) -> tuple[str, ...]:
        """List `cpu`."""
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> PlainSession:
        """Parse an ONNX file from its verified bytes.

        Raises:
            BackendError: it is none, or has an operator that is not known here.
        """
        import onnx

        data = artifact.read_bytes()
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:
            raise BackendError(f"{artifact.path}: not an ONNX model ({error})") from error
        unknown = sorted({node.op_type for node in model.graph.node} - set(OPERATORS))
        if unknown or not model.graph.node:
            raise BackendError(f"{artifact.path}: plain-numpy has no {', '.join(unknown) or 'empty graphs'}")
        return PlainSession(model)


class PlainSession:
    """One graph with its weights in float64."""

    device = "cpu"

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper

        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._constants: dict[str, Array] | None = {name: _widened(array) for name, array in tensors.items()}
        self._nodes = [
            (
                OPERATORS[node.op_type],
                list(node.input),
                node.output[0],
                {one.name: helper.get_attribute_value(one) for one in node.attribute},
            )
            for node in model.graph.node
        ]
        self.inputs = tuple(_spec(value) for value in model.graph.input if value.name not in tensors)
        self.outputs = tuple(_spec(value) for value in model.graph.output)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on host arrays."""
        if self._constants is None:
            raise BackendError("this session is closed; load the model again")
        values: dict[str, Array] = {**self._constants, **feeds}
        for operator, inputs, output, attributes in self._nodes:
            given = [values[name] if name else None for name in inputs]
            values[output] = operator(attributes, *given)
        return {spec.name: values[spec.name].astype(spec.dtype) for spec in self.outputs}

    def __enter__(self) -> PlainSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._constants = None


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _spec(value: Any) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=str(tensor_dtype_to_np_dtype(tensor.elem_type)))


def _cast(attributes: Attributes, x: Array) -> Array:
    from onnx.helper import tensor_dtype_to_np_dtype

    return _widened(x.astype(tensor_dtype_to_np_dtype(attributes["to"])))


def _windows(attributes: Attributes, x: Array, kernel: tuple[int, ...], fill: float) -> Array:
    """Give what each output sees of `x` (N, C, H, W): (N, C, rows, columns, *kernel)."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or set(attributes.get("dilations", [1])) != {1}:
        raise BackendError("plain-numpy knows neither auto_pad nor dilations")
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    down, across = attributes.get("strides", [1, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, ::down, ::across]


def _conv(attributes: Attributes, x: Array, weight: Array, bias: Array | None = None) -> Array:
    if attributes.get("group", 1) != 1:
        raise BackendError("plain-numpy knows no groups")
    y: Array = np.einsum("nchwij,fcij->nfhw", _windows(attributes, x, weight.shape[2:], 0.0), weight, optimize=True)
    return y if bias is None else y + bias[:, None, None]


def _max_pool(attributes: Attributes, x: Array) -> Array:
    result: Array = _windows(attributes, x, tuple(attributes["kernel_shape"]), -np.inf).max(axis=(-2, -1))
    return result


def _average_pool(attributes: Attributes, x: Array) -> Array:
    if any(attributes.get("pads", [])) or attributes.get("ceil_mode", 0):
        raise BackendError("plain-numpy pools averages without padding only")
    result: Array = _windows(attributes, x, tuple(attributes["kernel_shape"]), 0.0).mean(axis=(-2, -1))
    return result


def _mean(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
    along = tuple(attributes.get("axes", [2, 3]) if axes is None else axes.tolist())
    return np.asarray(x.mean(axis=along, keepdims=bool(attributes.get("keepdims", 1))))


def _flatten(attributes: Attributes, x: Array) -> Array:
    return x.reshape(int(np.prod(x.shape[: attributes.get("axis", 1)])), -1)


def _reshape(attributes: Attributes, x: Array, shape: Array) -> Array:
    copied = not attributes.get("allowzero", 0)
    return x.reshape([x.shape[axis] if copied and not size else size for axis, size in enumerate(shape.tolist())])


def _gemm(attributes: Attributes, a: Array, b: Array, c: Array | None = None) -> Array:
    left, right = (a.T if attributes.get("transA") else a), (b.T if attributes.get("transB") else b)
    product: Array = attributes.get("alpha", 1.0) * (left @ right)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _softmax(attributes: Attributes, x: Array) -> Array:
    axis = attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda attributes, a, b: a + b,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "MaxPool": _max_pool,
    "Mul": lambda attributes, a, b: a * b,
    "ReduceMean": _mean,
    "Relu": lambda attributes, x: np.maximum(x, 0.0),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Squeeze": lambda attributes, x, axes: np.squeeze(x, tuple(axes.tolist())),
    "Sub": lambda attributes, a, b: a - b,
    "Transpose": lambda attributes, x: x.transpose(attributes["perm"]),
}
