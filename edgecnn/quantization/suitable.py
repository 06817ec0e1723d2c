"""Which models cannot be quantized here, and the sentence that says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WEIGHTED, layers_of, makers, weights_of

CONVOLUTIONS = ("Conv", "ConvTranspose")
_QUANTIZED_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
OLDEST_OPSET = 7  # what ONNX Runtime still runs
_REDUCED = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}


def check_file(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model as it came from its file.

    Raises:
        QuantizationError: it holds no graph or no convolution, is older than opset 7, quantized, of another float type
            than float32, in training mode, or has weights that are no numbers.
    """
    if not model.graph.node or not model.graph.output:
        raise QuantizationError(f"{name}: holds no graph, so it is not a whole ONNX model; export or copy it again")
    opset = opset_of(model)
    if opset is not None and opset < OLDEST_OPSET:
        raise QuantizationError(f"{name}: is of opset {opset}; export it with opset {OLDEST_OPSET} or newer")
    nodes = list(walk(model))
    if not any(node.op_type in (*CONVOLUTIONS, *_QUANTIZED_CONVOLUTIONS) for node in nodes):
        raise QuantizationError(f"{name}: no CNN: not one of its {len(nodes)} operators is a convolution")
    quantized = sorted({node.op_type for node in nodes if _is_quantized(node.op_type)})
    if quantized:
        raise QuantizationError(f"{name}: is quantized already ({', '.join(quantized)}); give the float model")
    _check_types(model, name)
    _check_training(model, nodes, opset or 1, name)
    _check_numbers(model, nodes, name)


def check_prepared(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model in which, after all folding, nothing is left to quantize.

    Raises:
        QuantizationError: a convolution lies inside a branch or loop, none has constant weights, or a layer's weights are
            no numbers.
    """
    top = Counter(node.op_type for node in model.graph.node)
    everywhere = Counter(node.op_type for node in walk(model))
    hidden = sum(everywhere[op] - top[op] for op in CONVOLUTIONS)
    if hidden:
        inside = sorted({node.op_type for node in model.graph.node if _graphs(node)})
        raise QuantizationError(
            f"{name}: {hidden} convolutions lie inside {', '.join(inside)}, whose branches cannot be calibrated; "
            "export the model without control flow"
        )
    weights = weights_of(model)
    layers = layers_of(model)
    if not any(layer.op in CONVOLUTIONS for layer in layers):
        raise QuantizationError(f"{name}: its convolutions compute their weights from the input; none can be quantized")
    for layer in layers:
        for tensor in filter(None, (layer.weight, layer.bias)):
            if tensor in weights and not np.isfinite(numpy_helper.to_array(weights[tensor])).all():
                raise QuantizationError(
                    f"{name}: {tensor} of {layer.node} holds NaN or infinity after folding its batch norm; train it again"
                )


def opset_of(model: onnx.ModelProto) -> int | None:
    """Give the version of ONNX's own operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def walk(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Go through all nodes, those in subgraphs and in the model's own functions too."""
    yield from _walk(model.graph.node)
    for function in model.functions:
        yield from _walk(function.node)


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _walk(graph.node)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for entry in node.attribute for graph in (*([entry.g] if entry.HasField("g") else []), *entry.graphs)]


def _is_quantized(op: str) -> bool:
    starts = ("QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QAttention", "QGemm", "MatMulNBits")
    return op.startswith(starts) or op.endswith(("Integer", "IntegerToFloat"))


def _check_types(model: onnx.ModelProto, name: str) -> None:
    """Look at what type the weighted operators compute in; a cast from float16 storage does not count."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # what it cannot infer ONNX Runtime will refuse, or can
        inferred = model
    types |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in walk(model):
        if node.op_type not in WEIGHTED:
            continue
        for tensor in node.input:
            if types.get(tensor) in _REDUCED:
                kind = _REDUCED[types[tensor]]
                raise QuantizationError(
                    f"{name}: computes in {kind} ({node.name or node.op_type} reads {tensor}); give the float32 model"
                )


def _check_training(model: onnx.ModelProto, nodes: list[onnx.NodeProto], opset: int, name: str) -> None:
    weights, made_by = weights_of(model), makers(model)
    for node in nodes:
        training = False
        if node.op_type == "BatchNormalization":
            flags = [entry.i for entry in node.attribute if entry.name == "training_mode"]
            training = bool(flags and flags[0]) or (opset < 14 and sum(map(bool, node.output)) > 1)
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            flag = _constant(node.input[2], weights, made_by)
            training = flag is None or bool(flag.any())
        if training:
            raise QuantizationError(
                f"{name}: {node.name or node.op_type} is in training mode; export the model in evaluation mode"
            )


def _constant(
    tensor: str, weights: dict[str, TensorProto], made_by: dict[str, onnx.NodeProto]
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    node = made_by.get(tensor)
    if node is not None and node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
        return numpy_helper.to_array(node.attribute[0].t)
    return numpy_helper.to_array(weights[tensor]) if tensor in weights else None


def _check_numbers(model: onnx.ModelProto, nodes: list[onnx.NodeProto], name: str) -> None:
    """Refuse NaN in any weight, and infinity in one of several elements; a single one may be the bound of a Clip."""
    constants = [(node.output[0], entry.t) for node in nodes if node.op_type == "Constant" for entry in node.attribute if entry.HasField("t")]  # fmt: skip
    for tensor, proto in (*((weight.name, weight) for weight in model.graph.initializer), *constants):
        if proto.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(proto)
        if np.isnan(array).any() or (array.size > 1 and np.isinf(array).any()):
            raise QuantizationError(
                f"{name}: {tensor} holds NaN or infinity; train the model again, or export it again"
            )
