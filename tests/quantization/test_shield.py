"""Layers in float between quantized ones: ONNX Runtime must compute what onnx's own evaluator makes of the same graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantization import graphs, small

from edgecnn.quantization import qdq
from edgecnn.quantization.fusion import INT8_KERNELS, optimised
from edgecnn.quantization.graph import makers, readers
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.shield import shield

MIDDLES = ("Conv", "grouped Conv", "depthwise Conv", "one channel", "ConvTranspose", "Gemm", "Gemm as MatMul has it")


def between(kind: str) -> onnx.ModelProto:
    """Make three layers of which the middle one, `m`, is of some kind and has loud and faint output channels."""
    rng = np.random.default_rng(4)
    loud, channels = np.geomspace(0.1, 10, 6), 1 if kind == "one channel" else 6
    first = [graphs.node("Conv", "x f.weight", "f", pads=[1] * 4), graphs.node("Relu", "f", "fr")]
    weights = {"f.weight": rng.normal(0, 0.3, (channels, 3, 3, 3)), "m.bias": rng.normal(0, 0.1, 6)}
    if "Gemm" in kind:
        first += [graphs.node("GlobalAveragePool", "fr", "p"), graphs.node("Flatten", "p", "given")]
        table = rng.normal(0, 0.4, (6, 5)) * loud[:5]  # six inputs, five outputs
        weights |= {"m.weight": table.T if kind == "Gemm" else table, "m.bias": rng.normal(0, 0.1, 5)}
        weights["l.weight"] = rng.normal(0, 0.4, (4, 5)) / loud[:5]
        middle = graphs.node("Gemm", "given m.weight m.bias", "m", transB=int(kind == "Gemm"))
        last = graphs.node("Gemm", "mr l.weight", "y", transB=1)
    else:
        groups = {"grouped Conv": 2, "depthwise Conv": 6}.get(kind, 1)
        kernel = rng.normal(0, 0.3, (6, channels // groups, 3, 3)) * loud.reshape(6, 1, 1, 1)
        weights["m.weight"] = kernel.swapaxes(0, 1) if kind == "ConvTranspose" else kernel
        weights["l.weight"] = rng.normal(0, 0.3, (4, 6, 3, 3)) / loud.reshape(1, 6, 1, 1)
        op = "ConvTranspose" if kind == "ConvTranspose" else "Conv"
        middle = graphs.node(op, "fr m.weight m.bias", "m", pads=[1] * 4, group=groups)
        last = graphs.node("Conv", "mr l.weight", "y")
    return small.inferred(graphs.graph([*first, middle, graphs.node("Relu", "m", "mr"), last], (3, 8, 8), **weights))


def built(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, shielded: bool) -> onnx.ModelProto:
    """Quantize all but the middle layer."""
    ranges = small.ranges_of(model, {"x": small.images()})
    with monkeypatch.context() as patch:
        if not shielded:
            patch.setattr(qdq, "shield", lambda model: ())
        return quantize(model, ranges, Recipe(), ["m"])


@pytest.mark.parametrize("kind", MIDDLES)
def test_a_layer_in_float_is_computed_in_float(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shield ONNX Runtime gives what the graph says; without it, the graph says the very same."""
    model, feeds = between(kind), {"x": small.images()}
    plain, shielded = (built(model, monkeypatch, flag) for flag in (False, True))
    onnx.checker.check_model(shielded, full_check=True)
    truth = small.reference(plain, feeds)[0]
    np.testing.assert_array_equal(small.reference(shielded, feeds)[0], truth)
    # Where a value lies between two levels either may be taken; rounded weights would be 0.1 and more.
    assert small.error(graphs.run(shielded, feeds)["y"], truth) < 0.01


@pytest.mark.parametrize("kind", [kind for kind in MIDDLES if kind != "ConvTranspose"])
def test_without_the_shield_float_weights_are_rounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare graph is off by far exactly where ONNX Runtime has taken the layer for a quantized one."""
    model, feeds = between(kind), {"x": small.images()}
    plain = built(model, monkeypatch, shielded=False)
    kernels = {node.name.partition("_token_")[0]: node.op_type for node in optimised(plain).graph.node}
    off = small.error(graphs.run(plain, feeds)["y"], small.reference(plain, feeds)[0])
    assert (off > 0.02) == (kernels.get("m") in INT8_KERNELS)


def test_the_same_scale_is_said_once_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer gets a DequantizeLinear of its own with equal scales; the other layers' stay, and nothing dead is left."""
    plain, shielded = (built(between("Conv"), monkeypatch, flag) for flag in (False, True))
    assert shield(onnx.ModelProto.FromString(plain.SerializeToString())) == ("m",)
    assert shield(onnx.ModelProto.FromString(shielded.SerializeToString())) == ()
    arrays, before, made = graphs.arrays(shielded), graphs.arrays(plain), makers(shielded)
    source = made[next(node for node in shielded.graph.node if node.name == "m").input[0]]
    assert source.op_type == "DequantizeLinear"
    np.testing.assert_array_equal(arrays[source.input[1]], np.full(6, before["fr_scale"]))
    np.testing.assert_array_equal(arrays[source.input[2]], np.full(6, before["fr_zero_point"]))
    assert [node.name for node in shielded.graph.node if node.op_type != "DequantizeLinear"] == [
        node.name for node in plain.graph.node if node.op_type != "DequantizeLinear"
    ]
    last = next(node for node in shielded.graph.node if node.name == "y")
    assert arrays[made[last.input[0]].input[1]].size == 1
    outputs = {value.name for value in shielded.graph.output}
    assert all(readers(shielded).get(name) or name in outputs for node in shielded.graph.node for name in node.output)


def test_two_layers_in_float_share_what_they_read() -> None:
    """Each of two float layers gets one, and a quantized third reader keeps the plain one."""
    rng = np.random.default_rng(0)
    nodes = [
        graphs.node("Conv", "x f.weight", "f"),
        graphs.node("Conv", "f one.weight", "one"),
        graphs.node("Conv", "f two.weight", "two"),
        graphs.node("Conv", "f three.weight", "three"),
        graphs.node("Add", "one two", "sum"),
        graphs.node("Add", "sum three", "y"),
    ]
    weights = {f"{name}.weight": rng.normal(0, 0.4, (3, 3, 1, 1)) for name in ("f", "one", "two", "three")}
    model = small.inferred(graphs.graph(nodes, (3, 8, 8), **weights))
    feeds = {"x": small.images()}
    found = quantize(model, small.ranges_of(model, feeds), Recipe(), ["one", "two"])
    sizes = {
        node.name: graphs.arrays(found)[makers(found)[node.input[0]].input[1]].size
        for node in found.graph.node
        if node.name in ("one", "two", "three")
    }
    assert sizes == {"one": 3, "two": 3, "three": 1}
    assert small.error(graphs.run(found, feeds)["y"], small.reference(found, feeds)[0]) < 0.01


def test_a_float_model_has_nothing_to_shield() -> None:
    """Without a DequantizeLinear in front nothing is done; where one has no channels to count, nothing either."""
    model = small.chain()
    before = model.SerializeToString()
    assert shield(model) == ()
    assert model.SerializeToString() == before
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], name="dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m"),
    ]
    arrays = {"s": np.float32(0.5), "z": np.uint8(3), "w": np.ones((4, 2), np.float32)}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, [2, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    product = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert shield(product) == ()
    levels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(graphs.run(product, {"q": levels})["y"], 0.5 * (levels - 3.0) @ np.ones((4, 2)))
