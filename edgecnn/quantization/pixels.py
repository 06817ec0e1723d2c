"""uint8 pixels as the first quantized tensor: where a model normalises them itself, no float tensor exists on the way in."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecnn.quantization.graph import makers, remove_dead, weights_of
from edgecnn.spec import Preprocess

KEY = "edgecnn.preprocess"
_HEAD = ("Cast", "Sub", "Mul", "Transpose")


def feed_pixels(model: onnx.ModelProto) -> bool:
    """Make, in place, the uint8 image itself the first quantized tensor of a model that edgecnn exported.

    Normalisation is `scale * (pixel - zero_point)`, which is what DequantizeLinear computes. So the chain
    Cast, Sub, Mul, Transpose, QuantizeLinear, DequantizeLinear becomes Transpose, DequantizeLinear: no rounding
    and no float tensor on the way in. It takes 0.85 of the time (tests/benchmarks/bench_pixels.py).

    Only for a first convolution that is quantized itself. Before one in float it would make ONNX Runtime take
    DequantizeLinear, Conv, QuantizeLinear for a quantized convolution and round the weights itself, per tensor.

    Returns:
        Whether it was done.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    chain = _head(model) if KEY in properties else None
    if chain is None:
        return False
    preprocess = msgspec.json.decode(properties[KEY], type=Preprocess)
    image, normalised = chain
    graph = model.graph
    scale = np.array(preprocess.scale, dtype=np.float32)
    zero_point = np.array(preprocess.zero_point, dtype=np.uint8)
    graph.initializer.extend(
        [numpy_helper.from_array(scale, "image_scale"), numpy_helper.from_array(zero_point, "image_zero_point")]
    )
    head = [
        helper.make_node("Transpose", [image], ["image_planes"], name="image_transpose", perm=[0, 3, 1, 2]),
        helper.make_node(
            "DequantizeLinear",
            ["image_planes", "image_scale", "image_zero_point"],
            ["image_normalised"],
            name="image_dequantize",
        ),
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == normalised:
                node.input[index] = "image_normalised"
    body = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(head + body)
    _rescale_bias(model, preprocess.scale)
    remove_dead(model)
    return True


def _head(model: onnx.ModelProto) -> tuple[str, str] | None:
    """Find the image and its normalised, dequantized planes; None where the graph does not begin as edgecnn's do."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    image = tensor = model.graph.input[0].name
    for kind in (*_HEAD, "QuantizeLinear", "DequantizeLinear"):
        following = readers.get(tensor, [])
        if len(following) != 1 or following[0].op_type != kind:
            return None
        tensor = following[0].output[0]
    return (image, tensor) if all(node.op_type == "Conv" for node in readers.get(tensor, [])) else None


def _rescale_bias(model: onnx.ModelProto, image_scale: float) -> None:
    """Give the first convolution's bias the scale of the image times the weights'.

    It was quantized for the scale that calibration found, which is another where no calibration image reaches from
    black to white; ONNX Runtime fuses a convolution only if the two agree, and leaves it in float if not.
    """
    weights, made = weights_of(model), makers(model)
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[0] != "image_normalised" or len(node.input) < 3:
            continue
        bias, weight = made[node.input[2]], made[node.input[1]]
        levels, old = (numpy_helper.to_array(weights[name]) for name in bias.input[:2])
        scale = (np.float32(image_scale) * numpy_helper.to_array(weights[weight.input[1]])).astype(np.float32)
        again = np.rint(levels.astype(np.float64) * old / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        for name, array in ((bias.input[0], again), (bias.input[1], scale)):
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
