"""Keeping a layer in float between quantized ones: without this ONNX Runtime rounds its weights behind our back."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecnn.quantization.graph import layers_of, makers, remove_dead, weights_of


def shield(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give, in place, every layer with float weights that reads a dequantized tensor a DequantizeLinear of its own.

    ONNX Runtime takes DequantizeLinear with a single scale before a convolution or Gemm with float weights for a
    quantized layer that somebody left half done, and rounds the weights to int8 itself, with one scale for all
    channels (its WeightBiasQuantization pass, seen in 1.32). A scale for each channel, all of them equal, says the
    same and is left alone.

    Returns:
        The names of the layers' nodes.
    """
    weights, made, shapes = weights_of(model), makers(model), _shapes(model)
    nodes = {node.name: node for node in model.graph.node}
    done = []
    for layer in layers_of(model):
        source, node = made.get(layer.input), nodes[layer.node]
        if source is None or source.op_type != "DequantizeLinear":
            continue
        scale, zero = (numpy_helper.to_array(weights[name]) for name in source.input[1:3])
        axis, size = 1, _channels(node, weights[layer.weight])
        if size == 1:  # one channel has one scale; but rows serve as well
            quantizer = made.get(source.input[0])
            shape = shapes.get(quantizer.input[0] if quantizer is not None else source.input[0], [])
            axis, size = 2, shape[2] if len(shape) > 2 else 0
        if scale.size != 1 or size < 2:
            continue
        prefix = f"{layer.node}_float_input"
        for suffix, value in (("scale", scale), ("zero_point", zero)):
            full = np.full(size, value.ravel()[0], dtype=value.dtype)
            model.graph.initializer.append(numpy_helper.from_array(full, f"{prefix}_{suffix}"))
        inputs = [source.input[0], f"{prefix}_scale", f"{prefix}_zero_point"]
        dequantize = helper.make_node("DequantizeLinear", inputs, [prefix], name=prefix, axis=axis)
        model.graph.node.insert(_place(model, node), dequantize)
        node.input[0] = prefix
        done.append(layer.node)
    if done:
        remove_dead(model)  # the DequantizeLinear that nobody reads any more
    return tuple(done)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Give the sizes of tensors as far as the model notes them, 0 where one is free."""
    noted = (*model.graph.input, *model.graph.value_info)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in noted}


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """Count the channels of a layer's input, along axis 1; 0 where the input's axis 1 is not the channels'."""
    attributes: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(weight.dims[1]) * attributes.get("group", 1)
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    if node.op_type == "Gemm" and not attributes.get("transA", 0):
        return int(weight.dims[1 if attributes.get("transB", 0) else 0])
    return 0  # MatMul is not touched by that pass


def _place(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    return next(index for index, other in enumerate(model.graph.node) if other.name == node.name)
