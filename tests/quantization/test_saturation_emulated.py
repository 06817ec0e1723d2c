"""What is predicted of saturation, held against ONNX Runtime itself on an emulated CPU without VNNI."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn.device.emulate import INSTALL, QEMU, run_emulated
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.products import products
from edgecnn.quantization.saturation import pair_sums, saturation

Array = npt.NDArray[Any]

ZERO = 3  # the inputs' zero point, and what padding is made of

CONVOLUTIONS: dict[str, tuple[int, int, tuple[int, ...], dict[str, Any]]] = {
    # name: input channels, output channels, kernel, attributes; MLAS has one kernel for multiples of 4 and 8 channels
    # and another for all others
    "odd channels": (3, 5, (3, 3), {"pads": [1, 1, 1, 1]}),
    "even channels": (8, 16, (3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": (12, 24, (3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "dilated": (5, 20, (3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "pointwise": (7, 9, (1, 1), {}),
    "pointwise, even": (16, 32, (1, 1), {}),
    "pointwise, strided": (6, 9, (1, 1), {"strides": [2, 2]}),
    "one channel": (1, 16, (5, 5), {"pads": [2, 2, 2, 2]}),
    "grouped": (12, 8, (3, 3), {"group": 4}),
    "two of each": (4, 8, (3, 3), {"group": 4}),
    "depthwise": (16, 16, (3, 3), {"group": 16, "pads": [1, 1, 1, 1]}),
    "depthwise, odd": (6, 6, (3, 3), {"group": 6}),
    "one to one": (1, 1, (3, 3), {}),
    "long": (64, 16, (3, 3), {}),
    "one axis": (6, 8, (5,), {"pads": [2, 2]}),
    "three axes": (3, 4, (2, 2, 2), {}),
}
# Activations between a convolution and the quantizer, and the output's zero point; ONNX Runtime computes the
# convolution in integers only if the quantizer cuts off as much as the activation.
ACTIVATIONS: dict[str, tuple[str, list[float], int]] = {
    "relu": ("Relu", [], 0),
    "relu that cuts": ("Relu", [], 128),
    "clip": ("Clip", [0.0, 1e9], 0),
    "clip that cuts": ("Clip", [0.0, 100.0], 0),
}
NO_PAIRS = {"depthwise", "depthwise, odd", "one to one", "signed, fed"}
IN_FLOAT = {"relu that cuts", "clip that cuts", "row, float bias"}
HARMLESS = NO_PAIRS | IN_FLOAT


@dataclass(frozen=True)
class Alone:
    """A layer by itself: its node, its input in uint8, its weights in int8, and the scale of its quantized output.

    Scales are powers of two, those of input and weights 1; where `scale` is 0 the output stays in float. `signed` means
    that the model holds input and output in int8, moved by 128; `fed` that the input is the model's, and not quantized
    by it. `activation`, with its limits, comes before the quantizer of the output, whose zero point is `middle`.
    `biased` layers have a bias of 0, in float.
    """

    node: onnx.NodeProto
    levels: Array
    weights: Array
    scale: float = 0.0
    signed: bool = False
    fed: bool = True
    activation: str = ""
    limits: tuple[float, ...] = ()
    middle: int = 128
    biased: bool = False


def layers_alone(limit: int) -> dict[str, Alone]:
    """Draw layers of every kind with bright inputs, and weights from -limit to limit - 1 of which half are large."""
    rng = np.random.default_rng(11)

    def weights(*shape: int) -> Array:
        drawn = rng.integers(-limit, limit, shape)
        drawn[::2] = rng.integers(limit * 3 // 4, limit, drawn[::2].shape)
        return drawn.astype(np.int8)

    def levels(*shape: int) -> Array:
        return rng.integers(180, 256, (1, *shape)).astype(np.uint8)

    def convolution(name: str, kind: str, signed: bool = False, fed: bool = True) -> Alone:
        channels, outputs, kernel, attributes = CONVOLUTIONS[kind]
        drawn = weights(outputs, channels // attributes.get("group", 1), *kernel)
        scale = float(2 ** np.ceil(np.log2(255 * limit * drawn[0].size / 100)))
        node = helper.make_node("Conv", [f"{name}.in", f"{name}.weight"], [f"{name}.sum"], name=name, **attributes)
        return Alone(node, levels(channels, *[7] * len(kernel)), drawn, scale, signed, fed)

    found = {name: convolution(name, name) for name in CONVOLUTIONS}
    for name, (activation, limits, middle) in ACTIVATIONS.items():
        plain = convolution(name, "even channels")
        found[name] = replace(plain, activation=activation, limits=tuple(limits), middle=middle)
    found["written"] = convolution("written", "odd channels", fed=False)
    found["signed"] = convolution("signed", "even channels", signed=True, fed=False)
    found["signed, fed"] = convolution("signed, fed", "even channels", signed=True)
    found["float bias"] = replace(convolution("float bias", "even channels"), biased=True)
    for name in ("row", "row, float bias"):
        node = helper.make_node("Gemm", [f"{name}.in", f"{name}.weight"], [f"{name}.sum"], name=name, transB=1)
        found[name] = Alone(node, levels(21), weights(10, 21), biased=name != "row")
    node = helper.make_node("MatMul", ["matrix.in", "matrix.weight"], ["matrix.sum"], name="matrix")
    found["matrix"] = Alone(node, levels(5, 22), weights(22, 17))
    return found


def side_by_side(layers: dict[str, Alone]) -> onnx.ModelProto:
    """Put the layers into one QDQ model, each with an input and an output of its own."""
    nodes, inputs, outputs, constants = [], [], [], []
    for name, layer in layers.items():
        dtype = np.dtype(np.int8 if layer.signed else np.uint8)
        moved = 128 if layer.signed else 0
        for suffix, value in (
            ("one", np.float32(1)), ("zero", dtype.type(ZERO - moved)), ("weight_quantized", layer.weights),
            ("weight_zero", np.int8(0)), ("scale", np.float32(layer.scale)), ("middle", dtype.type(layer.middle - moved)),
        ):  # fmt: skip
            constants.append(numpy_helper.from_array(np.asarray(value), f"{name}.{suffix}"))
        steps = [
            ("Dequantize", "levels", "one", "zero", "in"),
            ("Dequantize", "weight_quantized", "one", "weight_zero", "weight"),
        ]
        if not layer.fed:
            steps.insert(0, ("Quantize", "float", "one", "zero", "levels"))
        if layer.biased:
            layer.node.input.append(f"{name}.bias")
            zeros = np.zeros(len(layer.weights), np.float32)
            constants.append(numpy_helper.from_array(zeros, f"{name}.bias"))
        source = "active" if layer.activation else "sum"
        after = [("Quantize", source, "scale", "middle", "eight"), ("Dequantize", "eight", "scale", "middle", "out")]
        nodes += [linear(name, step) for step in steps] + [layer.node]
        if layer.activation:
            limits = [f"{name}.limit {index}" for index in range(len(layer.limits))]
            constants += [numpy_helper.from_array(np.float32(v), n) for n, v in zip(limits, layer.limits, strict=True)]
            nodes.append(helper.make_node(layer.activation, [f"{name}.sum", *limits], [f"{name}.active"]))
        nodes += [linear(name, step) for step in after if layer.scale]
        fed, kind = ("levels", helper.np_dtype_to_tensor_dtype(dtype)) if layer.fed else ("float", TensorProto.FLOAT)
        inputs.append(helper.make_tensor_value_info(f"{name}.{fed}", kind, layer.levels.shape))
        given, shape = "out" if layer.scale else "sum", [None] * layer.levels.ndim
        outputs.append(helper.make_tensor_value_info(f"{name}.{given}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def linear(name: str, step: tuple[str, ...]) -> onnx.NodeProto:
    kind, *sources, target = step
    return helper.make_node(
        f"{kind}Linear", [f"{name}.{one}" for one in sources], [f"{name}.{target}"], name=f"{name}.{target}"
    )


def feeds_of(layers: dict[str, Alone]) -> dict[str, Array]:
    found = {}
    for name, layer in layers.items():
        fed = (layer.levels ^ 0x80).view(np.int8) if layer.signed else layer.levels
        found[f"{name}.levels" if layer.fed else f"{name}.float"] = (
            fed if layer.fed else layer.levels.astype(np.float32) - ZERO
        )
    return found


def exact_sums(model: onnx.ModelProto, layers: dict[str, Alone]) -> dict[str, Array]:
    """Evaluate each layer up to its sums by the onnx package's reference, in float, which holds these integers."""
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    names = [layer.node.output[0] for layer in layers.values()]
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    values = ReferenceEvaluator(exposed).run(None, feeds_of(layers))
    return {name: value.astype(np.float64) for name, value in zip(layers, values, strict=True)}


def answers(layers: dict[str, Alone], sums: dict[str, Array]) -> dict[str, Array]:
    """Quantize the sums to eight bits and back where the model does so; both are exact."""
    found = {}
    for name, layer in layers.items():
        if not layer.scale:
            found[f"{name}.sum"] = sums[name]
            continue
        least, most = {"": (-np.inf, np.inf), "Relu": (0, np.inf)}.get(layer.activation, layer.limits)
        levels = (np.rint(sums[name].clip(least, most) / layer.scale) + layer.middle).clip(0, 255)
        found[f"{name}.out"] = (levels - layer.middle) * layer.scale
    return found


def saturated(layers: dict[str, Alone], sums: dict[str, Array]) -> dict[str, Array]:
    """Take from the exact sums what is predicted to be lost; HARMLESS layers lose nothing."""
    found = {}
    for name, layer in layers.items():
        axis = 1 if layer.node.op_type == "Conv" else -1
        outside = np.moveaxis(sums[name], axis, -1)
        lost = [pair_sums(rows, part).lost for rows, part, _ in products(layer.node, layer.weights, layer.levels, ZERO)]
        taken = 0 if name in HARMLESS else np.concatenate(lost, axis=1).reshape(outside.shape)
        found[name] = np.moveaxis(outside - taken, -1, axis)
    return found


def differing(got: dict[str, Array], expected: dict[str, Array]) -> dict[str, float]:
    """Give the share of differing elements for every output that is not equal bit for bit."""
    assert set(got) == set(expected)
    shares = {name: float((got[name] != expected[name]).mean()) for name in got}
    return {name: share for name, share in shares.items() if share}


def test_int8_inputs_are_counted_as_the_uint8_that_they_become() -> None:
    """The same layer, its input held in int8, has the same sums, lost ones and SQNR as in uint8."""
    signed = layers_alone(128)["signed"]
    both = []
    for layers in ({"signed": signed}, {"signed": replace(signed, signed=False)}):
        both += saturation(side_by_side(layers), from_arrays(feeds_of(layers)))
    assert both[0] == both[1]
    assert both[0].saturated


@pytest.fixture
def needs_qemu() -> None:
    """Skip where qemu is missing, but not in continuous integration: there it has to be installed."""
    if shutil.which(QEMU) is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"{QEMU} is not on the PATH: {INSTALL}")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_qemu")
def test_an_emulated_cpu_without_vnni_computes_what_was_predicted(tmp_path: Path) -> None:
    """AVX2 gives the predicted integers bit for bit; with x64quantprecision it gives the right ones, as SSE does."""
    layers = layers_alone(128)
    path, model, feeds = tmp_path / "full.onnx", side_by_side(layers), feeds_of(layers)
    path.write_bytes(model.SerializeToString())
    sums = exact_sums(model, layers)
    truth, predicted = answers(layers, sums), answers(layers, saturated(layers, sums))
    found = {layer.name: layer for layer in saturation(model, from_arrays(feeds))}
    assert set(found) == set(layers) - IN_FLOAT
    assert {name for name, layer in found.items() if not layer.pairs} == NO_PAIRS
    at_risk = {name for name, layer in found.items() if layer.saturated}
    assert at_risk == set(layers) - HARMLESS
    assert {name.rpartition(".")[0] for name in differing(predicted, truth)} == at_risk
    assert not differing(run_emulated("Haswell", path, feeds), predicted)
    assert not differing(run_emulated("Haswell", path, feeds, {"session.x64quantprecision": "1"}), truth)
    assert not differing(run_emulated("Nehalem", path, feeds), truth)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_qemu")
def test_an_emulated_cpu_without_vnni_is_right_with_seven_bits(tmp_path: Path) -> None:
    """With weights of seven bits nothing is predicted to saturate, and AVX2 gives the reference's integers."""
    layers = layers_alone(64)
    path, model = tmp_path / "seven.onnx", side_by_side(layers)
    path.write_bytes(model.SerializeToString())
    found = saturation(model, from_arrays(feeds_of(layers)))
    assert len(found) == len(layers) - len(IN_FLOAT)
    assert not any(layer.saturated for layer in found)
    truth = answers(layers, exact_sums(model, layers))
    assert not differing(run_emulated("Haswell", path, feeds_of(layers)), truth)
