"""What float16 has to cost a model: its weights, what it reads and what it makes, each rounded to eleven bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.result import root_mean_square

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

STEP = 2.0**-10  # IEEE 754 binary16 keeps eleven bits: the largest step relative to a value


def holds_half(model: onnx.ModelProto) -> bool:
    """Say whether weights of a model are float16."""
    from onnx import TensorProto

    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def half_noise(model: onnx.ModelProto, feeds: Mapping[str, Array], output: str, truth: Array) -> tuple[float, float]:
    """Give the root mean square and the largest error that rounding to float16 has to cost one output.

    The weights are moved by up to half a step, evenly at random, for what they were before nobody knows.

    Args:
        model: a graph, float but for its weights.
        feeds: its inputs.
        output: whose error it is.
        truth: the reference's values of it, which are rounded as well.

    Raises:
        BackendError: the graph cannot be evaluated.
    """
    exact = Exact(model).run(feeds, [output])[output]
    errors = [
        Exact(_moved(model)).run(feeds, [output])[output] - exact,
        Exact(model).run({name: _rounded(array) for name, array in feeds.items()}, [output])[output] - exact,
        _rounded(truth) - truth,
    ]
    finite = [one for one in errors if np.isfinite(one).all()]
    largest = sum(float(np.abs(one).max()) for one in finite)
    return math.sqrt(sum(root_mean_square(one) ** 2 for one in finite)), largest


def _rounded(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float64) if array.dtype.kind == "f" else array


def _moved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with its float16 weights moved within their steps, as float32, which can hold that."""
    import onnx
    from onnx import TensorProto, numpy_helper

    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    random = np.random.default_rng(0)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(tensor).astype(np.float64)
            moved = value * (1 + STEP * random.uniform(-0.5, 0.5, value.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved, np.float32), tensor.name))
    return copy
