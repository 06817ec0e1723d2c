"""A small CNN that int8 takes well, and the same function written so that int8 ruins it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Floats32 = npt.NDArray[np.float32]

CLASSES = 10
IMAGE = (3, 16, 16)
LOUD = 100.0
# (name, inputs, outputs, stride); a Relu follows each, then the mean over the plane and a Gemm.
CONVOLUTIONS = (("conv1", 3, 8, 1), ("conv2", 8, 16, 2), ("conv3", 16, 16, 1), ("conv4", 16, 24, 2))


def easy_net(seed: int) -> onnx.ModelProto:
    """Make four convolutions and a Gemm, `image` (batch, 3, 16, 16) float32 to `logits` (batch, 10)."""
    return _assemble(_weights(seed))


def hard_net(seed: int, loud: float = LOUD) -> onnx.ModelProto:
    """Make `easy_net(seed)` again with one channel after each convolution `loud` times larger.

    The next layer takes it in `loud` times smaller weights, so that both nets compute the same function; but an
    8-bit step that covers the loud channel is coarser than most of what the other channels say.
    """
    weights = _weights(seed)
    rng = np.random.default_rng(seed + 1000)
    names = [name for name, *_ in CONVOLUTIONS] + ["gemm"]
    for name, following in pairwise(names):
        channel = int(rng.integers(len(weights[f"{name}.bias"])))
        weights[f"{name}.weight"][channel] *= loud
        weights[f"{name}.bias"][channel] *= loud
        weights[f"{following}.weight"][:, channel] /= loud
    return _assemble(weights)


def images(count: int, seed: int) -> Floats32:
    """Draw images of four smooth waves in each plane, about between -1 and 1, (count, 3, 16, 16)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:16, 0:16] / 16
    waves = np.zeros((count, *IMAGE))
    for _ in range(4):
        ky, kx, phase, size = (rng.uniform(low, 6, (count, 3, 1, 1)) for low in (-6, -6, 0, 0))
        waves += size * np.sin(ky * y + kx * x + phase)
    return (waves / 16).astype(np.float32)


def _weights(seed: int) -> dict[str, Floats32]:
    """Draw weights whose activations keep their size from layer to layer (He et al. 2015)."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, inputs, outputs, _ in CONVOLUTIONS:
        found[f"{name}.weight"] = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3))
        found[f"{name}.bias"] = rng.normal(0, 0.1, outputs)
    last = CONVOLUTIONS[-1][2]
    found["gemm.weight"] = rng.normal(0, last**-0.5, (CLASSES, last))
    found["gemm.bias"] = rng.normal(0, 0.1, CLASSES)
    return {name: array.astype(np.float32) for name, array in found.items()}


def _assemble(weights: dict[str, Floats32]) -> onnx.ModelProto:
    """Put the nodes around the weights."""
    nodes, tensor = [], "image"
    for name, _, _, stride in CONVOLUTIONS:
        inputs = [tensor, f"{name}.weight", f"{name}.bias"]
        nodes += [
            helper.make_node("Conv", inputs, [name], name=name, pads=[1, 1, 1, 1], strides=[stride, stride]),
            helper.make_node("Relu", [name], [f"{name}.relu"], name=f"{name}.relu"),
        ]
        tensor = f"{name}.relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "gemm.weight", "gemm.bias"], ["logits"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *IMAGE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
