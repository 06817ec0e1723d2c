"""Faults planted into small ONNX models, float and int8, each in one known place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from quantization import graphs, small

from edgecnn.parity.localize.cut import Runs, open_on_cpu

Array = npt.NDArray[Any]
Edit = Callable[[onnx.ModelProto], None]


def quantized(seed: int = 0, images: int = 64) -> onnx.ModelProto:
    """Quantize the chain by ONNX Runtime's own tools, on other images than it is judged by."""
    return graphs.quantized(small.chain(seed), graphs.Feeds("x", small.images(images, seed=7)))


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model."""
    return onnx.ModelProto.FromString(model.SerializeToString())


def edited(model: onnx.ModelProto, edit: Edit) -> onnx.ModelProto:
    """Copy a model and plant a fault into the copy."""
    changed = copy(model)
    edit(changed)
    assert changed.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True)
    return changed


def array(model: onnx.ModelProto, name: str) -> Array:
    """Read an initializer, for writing."""
    return graphs.arrays(model)[name].copy()


def weight(name: str, change: Callable[[Array], Array]) -> Edit:
    """Change one initializer, its type kept."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == name)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(value.copy()), dtype=value.dtype), name))

    return edit


def attribute(node: str, name: str, value: Any) -> Edit:
    """Change one attribute of a node."""

    def edit(model: onnx.ModelProto) -> None:
        found = next(one for one in model.graph.node if one.name == node)
        kept = [one for one in found.attribute if one.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return edit


def bumped(value: Array, share: float) -> Array:
    """Change the middle weight by a share of the layer's largest."""
    value.reshape(-1)[value.size // 2] += share * np.abs(value).max()
    return value


def one_ulp(value: Array) -> Array:
    """Change one weight by a unit in its last place."""
    value.reshape(-1)[value.size // 2] = np.nextafter(value.reshape(-1)[value.size // 2], np.float32(np.inf))
    return value


def with_nan(value: Array) -> Array:
    """Spoil one output channel."""
    value[2] = np.nan
    return value


def channel_scaled(value: Array) -> Array:
    """Make one output channel half as large again."""
    value[-1] *= 1.5
    return value


def broken(change: Edit, when: tuple[str, ...]) -> Callable[[onnx.ModelProto], AbstractContextManager[Runs]]:
    """Make a backend that computes wrongly whenever it is given all the nodes named in `when` together."""

    def open_model(model: onnx.ModelProto) -> AbstractContextManager[Runs]:
        names = {node.name for node in model.graph.node}
        return open_on_cpu(edited(model, change) if set(when) <= names else model)

    return open_model
