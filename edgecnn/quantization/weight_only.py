"""Eight-bit weights on disk for layers that compute in float: a smaller file at the same speed.

ONNX Runtime multiplies them out while it loads (Cast and Mul of constants), so that the float kernel runs as before.
DequantizeLinear would say the same, but is kept for int8 kernels, and computed anew at every run.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgecnn.quantization.graph import WEIGHTED, WeightedLayer, layers_of, readers, weights_of
from edgecnn.quantization.slim import file_size
from edgecnn.quantization.yardstick import Yardstick

_LEAST = 256  # values below which two more nodes and their names take what is saved
_WORTH = 0.05  # of the file that must be saved
_PLENTY_DB = 35.0  # an error that changes hardly a decision
_MOST_DB = 1.5  # of error in the answers that all of it together may add


def weight_only(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Store the weights of the named float layers as int8 with a scale for each output channel, symmetric.

    The weight that a layer reads keeps its name; layers whose weight is also read otherwise are left as they are.
    """
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    tensors, first = weights_of(copy), list[onnx.NodeProto]()
    for layer in _storable(copy):
        if layer.node not in nodes or layer.weight not in tensors:
            continue
        tensor = tensors.pop(layer.weight)
        values, scales = _rounded(numpy_helper.to_array(tensor), _axis(copy, layer))
        names = {part: f"{layer.weight}.{part}" for part in ("int8", "float", "scale")}
        copy.graph.initializer.remove(tensor)
        copy.graph.initializer.append(numpy_helper.from_array(values, names["int8"]))
        copy.graph.initializer.append(numpy_helper.from_array(scales, names["scale"]))
        first.append(
            helper.make_node("Cast", [names["int8"]], [names["float"]], names["float"], to=onnx.TensorProto.FLOAT)
        )
        first.append(helper.make_node("Mul", [names["float"], names["scale"]], [layer.weight], layer.weight))
    nodes_then = [onnx.NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend([*first, *nodes_then])
    return copy


def storable(model: onnx.ModelProto) -> list[str]:
    """Name the layers in float whose weights are worth storing as int8, those with most values first."""
    return [layer.node for layer in _storable(model)]


def shipped_size(model: onnx.ModelProto, nodes: Collection[str] | None = None) -> int:
    """Count the bytes of a quantized model as a file, with float layers' weights as int8 (all: None) where that is worth it."""
    before = file_size(model)
    after = file_size(weight_only(model, storable(model) if nodes is None else nodes))
    return after if after <= before * (1 - _WORTH) else before


def stored_small(model: onnx.ModelProto, yardstick: Yardstick) -> tuple[str, ...]:
    """Name the float layers whose weights may be int8 on disk: as many as the answers allow.

    All of them if the answers' error grows little, else one after another, the largest first, leaving out those that
    would take it too far: a layer may be in float just because its weights do not bear rounding.
    """
    nodes = storable(model)
    least = min(yardstick.sqnr_db(model) - _MOST_DB, _PLENTY_DB)
    if not nodes or yardstick.sqnr_db(weight_only(model, nodes)) >= least:
        return tuple(nodes)
    kept: list[str] = []
    for node in nodes:
        if yardstick.sqnr_db(weight_only(model, [*kept, node])) >= least:
            kept.append(node)
    return tuple(kept)


def _storable(model: onnx.ModelProto) -> list[WeightedLayer]:
    tensors, reading = weights_of(model), readers(model)
    found = []
    for layer in layers_of(model):
        tensor = tensors[layer.weight]
        users = reading[layer.weight]
        alone = len(users) == 1 and users[0].op_type in WEIGHTED and list(users[0].input).count(layer.weight) == 1
        if alone and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and _count(tensor) >= _LEAST:
            found.append(layer)
    return sorted(found, key=lambda layer: -_count(tensors[layer.weight]))


def _count(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _axis(model: onnx.ModelProto, layer: WeightedLayer) -> int:
    """Give the axis of the weight along which the output channels lie."""
    if layer.op == "Conv":
        return 0
    if layer.op == "ConvTranspose":
        return 1
    node = next(node for node in model.graph.node if node.name == layer.node)
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if turned else len(weights_of(model)[layer.weight].dims) - 1


def _rounded(weight: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Round to -127 to 127 steps, with the largest of each channel at the end; scales keep the weight's rank."""
    others = tuple(number for number in range(weight.ndim) if number != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scales).clip(-127, 127).astype(np.int8), scales
