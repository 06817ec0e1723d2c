"""uint8 pixels as the first quantized tensor: where a model normalises them itself, no float tensor exists on the way in."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecnn.quantization.graph import makers, readers, remove_dead, weights_of
from edgecnn.spec import Preprocess

KEY = "edgecnn.preprocess"
_HEAD = ("Cast", "Sub", "Mul", "Transpose")


def feed_pixels(model: onnx.ModelProto) -> bool:
    """Make, in place, the uint8 image itself the first quantized tensor of a model that edgecnn exported.

    Normalisation is `scale * (pixel - zero_point)`, which is what DequantizeLinear computes. So the chain
    Cast, Sub, Mul, Transpose, QuantizeLinear, DequantizeLinear becomes Transpose, DequantizeLinear: no rounding
    and no float tensor on the way in. It takes 0.85 of the time (tests/benchmarks/bench_pixels.py).

    Before a first convolution in float it is the same node with a scale for each row of the image, all of them
    equal: with a single one ONNX Runtime would take the convolution for a quantized one (`edgecnn.quantization.shield`).

    Returns:
        Whether it was done.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if KEY not in properties:
        return False
    preprocess = msgspec.json.decode(properties[KEY], type=Preprocess)
    image = model.graph.input[0].name
    normalised = _follow(model, image, (*_HEAD, "QuantizeLinear", "DequantizeLinear"))
    quantized = normalised is not None
    normalised = normalised or _follow(model, image, _HEAD)
    if normalised is None or (not quantized and preprocess.height < 2):
        return False
    graph = model.graph
    rows = () if quantized else (preprocess.height,)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.full(rows, preprocess.scale, dtype=np.float32), "image_scale"),
            numpy_helper.from_array(np.full(rows, preprocess.zero_point, dtype=np.uint8), "image_zero_point"),
        ]
    )
    inputs = ["image_planes", "image_scale", "image_zero_point"]
    head = [
        helper.make_node("Transpose", [image], ["image_planes"], name="image_transpose", perm=[0, 3, 1, 2]),
        helper.make_node(
            "DequantizeLinear", inputs, ["image_normalised"], name="image_dequantize", axis=2 if rows else 1
        ),
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == normalised:
                node.input[index] = "image_normalised"
    body = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(head + body)
    if quantized:
        _rescale_bias(model, preprocess.scale)
    remove_dead(model)
    return True


def _follow(model: onnx.ModelProto, image: str, kinds: tuple[str, ...]) -> str | None:
    """Follow the image along operators of these kinds; None where the graph does not begin like that, then convolve."""
    reading, tensor = readers(model), image
    for kind in kinds:
        following = reading.get(tensor, [])
        if len(following) != 1 or following[0].op_type != kind:
            return None
        tensor = following[0].output[0]
    after = reading.get(tensor, [])
    return tensor if after and all(node.op_type == "Conv" for node in after) else None


def _rescale_bias(model: onnx.ModelProto, image_scale: float) -> None:
    """Give the first convolution's bias the scale of the image times the weights'.

    It was quantized for the scale that calibration found, which is another where no calibration image reaches from
    black to white; ONNX Runtime fuses a convolution only if the two agree, and leaves it in float if not.
    """
    weights, made = weights_of(model), makers(model)
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[0] != "image_normalised" or len(node.input) < 3:
            continue
        bias, weight = made.get(node.input[2]), made.get(node.input[1])
        if bias is None or weight is None:  # one that stays in float beside a quantized one
            continue
        levels, old = (numpy_helper.to_array(weights[name]) for name in bias.input[:2])
        scale = (np.float32(image_scale) * numpy_helper.to_array(weights[weight.input[1]])).astype(np.float32)
        again = np.rint(levels.astype(np.float64) * old / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        for name, array in ((bias.input[0], again), (bias.input[1], scale)):
            weights[name].CopyFrom(numpy_helper.from_array(array, name))
