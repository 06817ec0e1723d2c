"""What ONNX Runtime fuses: every reason for a layer in float is planted, and must be the one that is told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantization import graphs, small, zoo

from edgecnn.errors import QuantizationError
from edgecnn.quantization.fusion import Fusion, layers_all, optimised, prove_fusion
from edgecnn.quantization.graph import makers, weights_of
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe

NO_KERNEL = "ONNX Runtime has no int8 kernel for it here, though all its tensors are quantized"


def built(model: onnx.ModelProto | None = None, floats: tuple[str, ...] = ()) -> onnx.ModelProto:
    model = small.chain() if model is None else model
    return quantize(model, small.ranges_of(model, {"x": small.images()}), Recipe(), floats)


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def unquantized(model: onnx.ModelProto, name: str, slot: int) -> None:
    """Let a node read a tensor as it was before its quantizer, and what is constant in float."""
    node, weights = node_of(model, name), weights_of(model)
    dequantize = makers(model)[node.input[slot]]
    quantizer = makers(model).get(dequantize.input[0])
    if quantizer is not None:
        node.input[slot] = quantizer.input[0]
        return
    levels, steps, _ = (numpy_helper.to_array(weights[part]) for part in dequantize.input)
    exact = levels * np.reshape(steps, (-1, *[1] * (levels.ndim - 1))) if steps.ndim else levels * steps
    model.graph.initializer.append(numpy_helper.from_array(exact.astype(np.float32), f"{name}.float"))
    node.input[slot] = f"{name}.float"


def told(fusion: Fusion) -> dict[str, str | None]:
    """Give the reasons by node, and see that there is one exactly where no int8 kernel computes."""
    for layer in (*fusion.layers, *fusion.others):
        assert layer.int8 is (layer.why is None)
        assert layer.int8 is layer.kernel.startswith("Q")
    return {layer.node: layer.why for layer in (*fusion.layers, *fusion.others)}


def test_all_of_a_well_quantized_net_computes_in_int8() -> None:
    """Each layer is listed under its author's name with the kernel that the optimised graph holds, and so is the pooling."""
    fusion = prove_fusion(built())
    assert [(layer.name, layer.op, layer.kernel) for layer in fusion.layers] == [
        ("a", "Conv", "QLinearConv"), ("b", "Conv", "QLinearConv"), ("c", "Conv", "QLinearConv"), ("g", "Gemm", "QGemm"),
    ]  # fmt: skip
    assert [(layer.node, layer.kernel) for layer in fusion.others] == [("mean", "QLinearGlobalAveragePool")]
    assert set(told(fusion).values()) == {None}
    assert (fusion.count("Conv", True), fusion.count("Conv", False), fusion.count("Gemm", True)) == (3, 0, 1)


def test_operators_are_those_of_the_optimised_graph() -> None:
    """They are counted in the graph that ONNX Runtime writes for this CPU."""
    model = built(floats=("b",))
    graph = optimised(model).graph
    found = prove_fusion(model, ("b",)).operators
    assert found == dict(Counter(node.op_type for node in graph.node))
    assert found["QLinearConv"] == 2
    assert list(found) == sorted(found)


@pytest.mark.parametrize("floats", [("a",), ("b",), ("c", "g"), ("a", "b", "c")], ids="+".join)
def test_what_was_left_in_float_is_no_fault(floats: tuple[str, ...]) -> None:
    """Layers in float are listed with that as the reason, and all others are fused."""
    model = built(floats=floats)
    fusion = prove_fusion(model, floats)
    told(fusion)
    assert {layer.node: layer.why for layer in fusion.layers if not layer.int8} == dict.fromkeys(
        floats, "left in float on purpose"
    )
    unsaid = told(prove_fusion(model))
    assert all(unsaid[name] not in (None, "left in float on purpose") for name in floats)


def test_an_input_that_is_not_quantized_is_named_with_its_maker() -> None:
    """A layer that reads float is told apart by the tensor and by the node that makes it."""
    model = built()
    unquantized(model, "b", 0)
    assert told(prove_fusion(model))["b"] == "its input ar is not quantized, made by Conv a"


def test_an_input_of_the_model_is_named_too() -> None:
    """A layer that reads the model's own float input says so."""
    model = built()
    unquantized(model, "a", 0)
    assert told(prove_fusion(model))["a"] == "its input x is not quantized"


def test_a_weight_that_is_not_quantized_is_the_reason() -> None:
    """A layer with float weights behind a shielded input is not fused because of them."""
    assert told(prove_fusion(built(floats=("b",))))["b"] == "its weight is not quantized"


@pytest.mark.parametrize("factor", [1.5, 0.7])
def test_a_bias_of_another_scale_is_the_reason(factor: float) -> None:
    """The bias's scale is not the product of the others: that layer alone stays in float, and that is told."""
    model = built()
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "b.bias_quantized_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))
    why = told(prove_fusion(model))
    assert why.pop("b") == "its bias has another scale than its input's times its weight's"
    assert set(why.values()) == {None}


def test_a_float_bias_keeps_a_gemm_in_float() -> None:
    """A convolution takes a float bias, a Gemm does not."""
    model = built()
    unquantized(model, "c", 2)
    unquantized(model, "g", 2)
    why = told(prove_fusion(model))
    assert why.pop("g") == "its bias is not quantized"
    assert set(why.values()) == {None}


@pytest.mark.parametrize("activated", [False, True])
def test_an_output_of_the_model_is_float(activated: bool) -> None:
    """A convolution, with its Relu or without, whose result is given out has no quantizer behind it."""
    model = built()
    position = next(index for index, node in enumerate(model.graph.node) if node.name == "c")
    if activated:
        model.graph.node[position].output[0] = "before"
        model.graph.node.insert(position + 1, helper.make_node("Relu", ["before"], ["cr"], name="late"))
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node[: position + 1 + activated]
    ]
    del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.output.append(helper.make_tensor_value_info("cr", TensorProto.FLOAT, None))
    assert told(prove_fusion(model))["c"] == "its output is the model's, which is float"


def test_a_reader_in_float_is_named() -> None:
    """What reads a layer's output before it is quantized is told, each kind once, in the order of the alphabet."""
    model = built()
    for op in ("Softplus", "Tanh", "Abs", "Neg", "Exp", "Softplus"):
        name = f"{op}{len(model.graph.node)}"
        model.graph.node.append(helper.make_node(op, ["br"], [name], name=name))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert told(prove_fusion(model))["b"] == "its output is read in float by Abs, Exp, Neg, Softplus, Tanh"


def test_an_operator_without_a_kernel_is_told() -> None:
    """A transposed convolution, all of whose tensors are quantized, has none on the CPU; a Sigmoid given out is float."""
    model = small.inferred(zoo.two_outputs())
    for node in model.graph.node:
        node.name = node.output[0]
    found = quantize(model, small.ranges_of(model, zoo.feeds(model, 8)), Recipe())
    fusion = prove_fusion(found)
    why = told(fusion)
    assert why == {
        "a": None,
        "up": NO_KERNEL,
        "scores": None,
        "pooled": None,
        "map": "its output is the model's, which is float",
    }
    assert (fusion.count("ConvTranspose", True), fusion.count("ConvTranspose", False)) == (0, 1)


def test_an_addition_with_one_float_side_is_told() -> None:
    """Of operators without weights every input counts."""
    rng = np.random.default_rng(0)
    nodes = [
        graphs.node("Conv", "x p.weight", "p"),
        graphs.node("Conv", "x q.weight", "q"),
        graphs.node("Add", "p q", "sum"),
        graphs.node("Conv", "sum r.weight", "y"),
    ]
    weights = {f"{name}.weight": rng.normal(0, 0.5, (3, 3, 1, 1)) for name in "pqr"}
    model = built(small.inferred(graphs.graph(nodes, (3, 8, 8), **weights)))
    assert told(prove_fusion(model))["sum"] is None
    unquantized(model, "sum", 1)
    assert told(prove_fusion(model))["sum"] == "its input q is not quantized, made by Conv q"


def test_a_product_of_two_activations_is_no_layer() -> None:
    """It has no weights to be fused with, and the list of layers leaves it out; a MatMul with weights is in it."""
    rng = np.random.default_rng(0)
    nodes = [
        graphs.node("Conv", "x p.weight", "p"),
        graphs.node("MatMul", "p p", "square"),
        graphs.node("MatMul", "square w", "y"),
    ]
    model = small.inferred(
        graphs.graph(
            nodes, (3, 8, 8), **{"p.weight": rng.normal(0, 0.5, (3, 3, 1, 1)), "w": rng.normal(0, 0.5, (8, 4))}
        )
    )
    assert [layer.node for layer in layers_all(built(model))] == ["p", "y"]


def test_names_are_the_authors_whether_weights_are_quantized_or_not() -> None:
    """In float and in int8 a layer is called the same; one whose weight tells nothing has its node's name."""
    names = [(layer.name, layer.node) for layer in layers_all(built(floats=("a",)))]
    assert names == [("a", "a"), ("b", "b"), ("c", "c"), ("g", "g")]
    model = small.chain()
    for node in model.graph.node:
        node.input[:] = [
            "W" if name == "b.weight" else "net.0.weight" if name == "a.weight" else name for name in node.input
        ]
    for tensor in model.graph.initializer:
        tensor.name = {"b.weight": "W", "a.weight": "net.0.weight"}.get(tensor.name, tensor.name)
    assert [layer.name for layer in layers_all(built(model))] == ["net.0", "b", "c", "g"]


def test_a_model_that_does_not_load_is_one_clear_line() -> None:
    """ONNX Runtime's own exception becomes one of ours."""
    model = built()
    node_of(model, "b").op_type = "Kanv"
    with pytest.raises(QuantizationError) as caught:
        prove_fusion(model)
    assert "Kanv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_optimised_graph_is_what_this_runtime_writes() -> None:
    """The graph looked at gives the quantized model's answers bit for bit, so it is that model's."""
    model, feeds = built(), {"x": small.images()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        optimised(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, feeds)[0], graphs.run(model, feeds)["y"])
