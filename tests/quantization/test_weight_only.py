"""Weights of float layers as int8 on disk: what they hold, that ONNX Runtime runs float kernels, and what is left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantization import graphs, small

from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.fusion import optimised, prove_fusion
from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.slim import file_size
from edgecnn.quantization.weight_only import shipped_size, storable, stored_small, weight_only
from edgecnn.quantization.yardstick import Yardstick

Array = graphs.Array
RNG = np.random.default_rng(3)


def one(op: str, weight: Array, shape: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    return small.inferred(graphs.graph([graphs.node(op, "x w", "y", **attributes)], shape, w=weight))


def by_hand(weight: Array, axis: int) -> Array:
    """Round each channel to 127 steps of its own, one channel at a time."""
    rounded = np.empty_like(weight)
    for channel in range(weight.shape[axis]):
        where = tuple(channel if number == axis else slice(None) for number in range(weight.ndim))
        step = np.float32(np.abs(weight[where]).max() / 127)
        rounded[where] = np.round(weight[where] / step) * step
    return rounded


CASES = {
    "Conv": (
        one("Conv", RNG.normal(0, 1, (16, 4, 3, 3)) * np.geomspace(0.01, 9, 16).reshape(16, 1, 1, 1), (4, 6, 6)),
        0,
    ),
    "ConvTranspose": (one("ConvTranspose", RNG.normal(0, 1, (4, 16, 3, 3)), (4, 6, 6)), 1),
    "Gemm": (one("Gemm", RNG.normal(0, 1, (20, 16)), (20,)), 1),
    "Gemm, transposed": (one("Gemm", RNG.normal(0, 1, (16, 20)), (20,), transB=1), 0),
    "MatMul": (one("MatMul", RNG.normal(0, 1, (20, 16)), (20,)), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_stored_weight_is_each_channel_rounded(case: str) -> None:
    """What the layer reads is each output channel rounded to 127 steps, and so are its answers."""
    model, axis = CASES[case]
    weight = numpy_helper.to_array(model.graph.initializer[0])
    stored = weight_only(model, ["y"])
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored.graph.initializer}
    assert kept["w.int8"].dtype == np.int8
    assert np.allclose(kept["w.int8"] * kept["w.scale"], by_hand(weight, axis), rtol=1e-6, atol=1e-12)
    assert np.abs(kept["w.int8"]).max(axis=tuple(n for n in range(weight.ndim) if n != axis)).min() == 127
    feeds = {
        "x": RNG.normal(0, 1, (2, *[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:])).astype(
            np.float32
        )
    }
    rounded = onnx.ModelProto.FromString(model.SerializeToString())
    rounded.graph.initializer[0].CopyFrom(numpy_helper.from_array(by_hand(weight, axis), "w"))
    assert small.error(graphs.run(stored, feeds)["y"], small.reference(rounded, feeds)[0]) < 1e-5
    assert small.error(graphs.run(stored, feeds)["y"], small.reference(model, feeds)[0]) > 1e-4  # it was rounded


@pytest.fixture(scope="module")
def mixed() -> onnx.ModelProto:
    """The chain with b and c left in float and the rest in int8."""
    model, feeds = small.chain(), {"x": small.images()}
    return quantize(model, small.ranges_of(model, feeds), Recipe(), ["b", "c"])


def test_the_runtime_multiplies_them_out_as_it_loads(mixed: onnx.ModelProto) -> None:
    """The optimised graph has the kernels it would have with float weights: no Cast, no Mul, the int8 ones untouched."""
    stored = weight_only(mixed, storable(mixed))
    assert Counter(node.op_type for node in stored.graph.node)["Cast"] == 2
    kinds = [Counter(node.op_type for node in optimised(model).graph.node) for model in (mixed, stored)]
    assert kinds[0] == kinds[1]
    assert not {"Cast", "Mul"} & set(kinds[1])
    assert kinds[1]["QLinearConv"] == 1


def test_by_dequantize_linear_it_would_be_computed_at_every_run(mixed: onnx.ModelProto) -> None:
    """Written the usual way the weights stay int8 in the optimised graph, which is why they are not."""
    stored = weight_only(mixed, ["b"])
    for node in stored.graph.node:
        if node.op_type == "Cast":
            stored.graph.node.remove(node)
            break
    multiply = next(node for node in stored.graph.node if node.op_type == "Mul")
    scale = next(tensor for tensor in stored.graph.initializer if tensor.name == "b.weight.scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(-1), scale.name))
    multiply.CopyFrom(
        onnx.helper.make_node("DequantizeLinear", ["b.weight.int8", "b.weight.scale"], ["b.weight"], axis=0)
    )
    kinds = [Counter(node.op_type for node in optimised(model).graph.node) for model in (mixed, stored)]
    assert kinds[1]["DequantizeLinear"] == kinds[0]["DequantizeLinear"] + 1


def test_the_proof_of_fusion_knows_these_layers(mixed: onnx.ModelProto) -> None:
    """They are listed under their own names, in float on purpose, as they were with float weights."""
    before, after = (prove_fusion(model, ["b", "c"]).layers for model in (mixed, weight_only(mixed, ["b", "c"])))
    assert before == after
    assert [(layer.name, layer.int8) for layer in after] == [("a", True), ("b", False), ("c", False), ("g", True)]


def test_small_shared_and_other_weights_are_left_alone(mixed: onnx.ModelProto) -> None:
    """What is too small, what two nodes read, and what is int8 already is not stored, asked for or not."""
    assert storable(mixed) == ["b", "c"]  # a and g are int8
    chain = small.chain()
    assert storable(chain) == ["b", "c"]  # 162 and 24 values
    shared = onnx.ModelProto.FromString(chain.SerializeToString())
    next(node for node in shared.graph.node if node.name == "c").input[1] = "b.weight"
    assert storable(shared) == []
    assert weight_only(shared, ["b", "c"]) == shared
    assert weight_only(chain, ["a", "nothing"]) == chain


def test_a_layer_whose_weights_do_not_bear_rounding_keeps_them() -> None:
    """Where one channel holds a weight of a silent input a thousand times the others, rounding would leave nothing of these."""
    model, feeds = small.chain(), from_arrays({"x": small.images()})
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    loudness = np.abs(arrays["b.weight"]).max(axis=(1, 2, 3))  # the same for all channels, for once
    arrays["b.weight"] /= loudness.reshape(-1, 1, 1, 1)
    arrays["c.weight"] *= loudness.reshape(1, -1, 1, 1)
    even = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in even.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    ranges = small.ranges_of(even, {"x": small.images()})
    assert stored_small(quantize(even, ranges, Recipe(), ["b", "c"]), Yardstick(even, feeds)) == ("b", "c")
    arrays["b.weight"][0], arrays["b.bias"][0], arrays["c.weight"][:, 0] = 0, 0, 3000
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    floating = quantize(model, small.ranges_of(model, {"x": small.images()}), Recipe(), ["b", "c"])
    assert storable(floating) == ["b", "c"]
    assert stored_small(floating, Yardstick(model, feeds)) == ("b",)


def test_the_size_is_that_of_the_file_as_it_would_be_shipped(mixed: onnx.ModelProto) -> None:
    """Stored small where that saves a twentieth of the file or more, else as it is."""
    stored = weight_only(mixed, ["b", "c"])
    assert shipped_size(mixed) == file_size(stored) < 0.95 * file_size(mixed)
    assert shipped_size(mixed, []) == file_size(mixed)
    heavy = onnx.ModelProto.FromString(mixed.SerializeToString())
    heavy.doc_string = "x" * 100_000
    assert shipped_size(heavy) == file_size(heavy)


def test_names_of_layers_survive(mixed: onnx.ModelProto) -> None:
    """Weights keep their names, so reports name layers as before; onnx's checker accepts the model."""
    stored = weight_only(mixed, ["b"])
    onnx.checker.check_model(stored, full_check=True)
    assert [layer.name for layer in layers_of(mixed)] == ["b", "c"]
    assert next(node for node in stored.graph.node if node.name == "b").input[1] == "b.weight"
