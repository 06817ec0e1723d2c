"""QuantizeLinear and DequantizeLinear into a float graph, by ONNX Runtime's quantizer, with our ranges and placement."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WEIGHTED, layers_of, makers, readers, weights_of
from edgecnn.quantization.islands import stranded
from edgecnn.quantization.pixels import feed_pixels
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.shield import shield

# Operators that ONNX Runtime's CPU kernels compute on eight bits, or that only move values about. What is not here,
# such as HardSwish and Softmax, stays in float.
QUANTIZABLE = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid",
    "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize",
    "Split", "Slice", "Pad",
)  # fmt: skip
_REMOVABLE = ("Relu", "Clip")  # activations that a quantizer's own clipping does
_MOVING = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Pad", "MaxPool", "Resize")


def activation_tensors(model: onnx.ModelProto) -> list[str]:
    """List the float tensors that calibration has to watch: what quantizable nodes read and write, in graph order."""
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    constant = weights_of(model)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZABLE:
            for name in (*node.input, *node.output):
                if name and name not in constant and kinds.get(name) == onnx.TensorProto.FLOAT:
                    found[name] = None
    return list(found)


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], recipe: Recipe, floats: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantize a float model; nodes named in `floats` stay in float, and their activations with them.

    `ranges` gives the least and largest value of every tensor of `activation_tensors`. What lies before the first
    weighted layer (normalisation) and after the last one (softmax) stays in float, and the outputs of fully
    connected layers are not clipped to their calibrated range: that would be most of the error.

    Raises:
        QuantizationError: ONNX Runtime's quantizer refused the graph, or nothing is left to quantize.
    """
    excluded = list(dict.fromkeys([*_around(model), *with_activations(model, floats), *stranded(model, floats)]))
    inside = [node.name for node in model.graph.node if node.op_type in WEIGHTED and node.name not in excluded]
    if not inside:
        raise QuantizationError("no layer is left to quantize: all of them stay in float")
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    symmetric = recipe.activations == "int8"
    options = {
        "ActivationSymmetric": symmetric,
        "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        "QuantizeBias": recipe.integer_bias,
        "MatMulConstBOnly": True,
        "ForceQuantizeNoInputCheck": False,
    }
    data = {name: _tensor_data(low, high) for name, (low, high) in ranges.items()}
    try:
        with _quiet():
            quantizer = QDQQuantizer(
                copy,
                True,
                recipe.reduced_range,
                QuantType.QInt8,
                QuantType.QInt8 if symmetric else QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                [],
                excluded,
                list(QUANTIZABLE),
                options,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except (
        Exception
    ) as error:  # the quantizer raises ValueError, KeyError, AssertionError and others for one reason: it cannot
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise QuantizationError(f"ONNX Runtime's quantizer refused the graph: {reason}") from error
    quantized: onnx.ModelProto = quantizer.model.model
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.producer_name = "edgecnn"
    if not symmetric:  # pixels are uint8 with a zero point
        feed_pixels(quantized)
    shield(quantized)
    return quantized


def with_activations(model: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """Add to the nodes in float the Relu or Clip that follows: alone it would get a quantizer of its own.

    That one's range would be the activation's input, half of which it then cuts off.
    """
    following = readers(model)
    named = {node.name: node for node in model.graph.node}
    found = dict.fromkeys(floats)
    for name in floats:
        for output in named[name].output if name in named else ():
            next_nodes = following.get(output, [])
            if len(next_nodes) == 1 and next_nodes[0].op_type in _REMOVABLE:
                found[next_nodes[0].name] = None
    return list(found)


def _around(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that no weighted layer comes before, or none comes after, but for poolings and additions at the end.

    Before the first convolution lies normalisation; after the last layer softmax and what picks an answer.
    """
    layers = layers_of(model)
    after = _reached(model, {layer.output for layer in layers}, forwards=True)
    before = _reached(model, {layer.input for layer in layers}, forwards=False)
    weighted = {layer.node for layer in layers}
    kept = []
    for node in model.graph.node:
        if node.name in weighted:
            continue
        leads_in = not after & set(node.input)
        leads_out = not before & set(node.output)
        if leads_in or (
            leads_out and node.op_type not in (*_REMOVABLE, *_MOVING, "Add", "AveragePool", "GlobalAveragePool")
        ):
            kept.append(node.name)
    return kept


def _reached(model: onnx.ModelProto, tensors: set[str], forwards: bool) -> set[str]:
    """Follow tensors along the graph, or against it, and name all that is reached, themselves included."""
    reached = set(tensors)
    for node in model.graph.node if forwards else reversed(model.graph.node):
        source, target = (node.input, node.output) if forwards else (node.output, node.input)
        if reached & set(source):
            reached |= set(target)
    return reached


def _tensor_data(low: float, high: float) -> TensorData:
    return TensorData(lowest=np.array(low, dtype=np.float32), highest=np.array(high, dtype=np.float32))


def quantized_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Give, for every weighted node of a QDQ model whose input and weight are dequantized, its weight's initializer."""
    made, weights, found = makers(model), weights_of(model), {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        sources = [made.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            weight = sources[1].input[0]  # type: ignore[union-attr]  # as was just seen
            if weight in weights:
                found[node.name] = weight
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice to preprocess a model that has been made ready already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
