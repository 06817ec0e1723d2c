"""Looking around in graphs: held to loops written out by hand and to onnx's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantization import graphs, small, zoo

from edgecnn.quantization.graph import layers_of, makers, readers, remove_dead, weights_of


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "two_inputs", "old_attributes", "dynamic"])
def test_makers_and_readers_are_what_a_walk_finds(name: str) -> None:
    """For every tensor the one node that lists it as output, and the nodes that list it as input, each once and in order."""
    model = zoo.ZOO[name]()
    made, reading = makers(model), readers(model)
    tensors = {tensor for node in model.graph.node for tensor in (*node.input, *node.output)} - {""}
    for tensor in tensors:
        assert [node for node in model.graph.node if tensor in node.output] == (
            [made[tensor]] if tensor in made else []
        )
        assert [node for node in model.graph.node if tensor in node.input] == reading.get(tensor, [])
    assert "" not in reading
    assert "" not in made


def test_layers_have_their_authors_names() -> None:
    """A layer is called what its weight was called without `.weight`, and its tensors are named."""
    layers = layers_of(small.chain())
    assert [(layer.name, layer.node, layer.op) for layer in layers] == [
        ("a", "a", "Conv"), ("b", "b", "Conv"), ("c", "c", "Conv"), ("g", "g", "Gemm"),
    ]  # fmt: skip
    assert (layers[1].input, layers[1].weight, layers[1].bias, layers[1].output) == ("ar", "b.weight", "b.bias", "b")


def test_layers_that_share_a_weight_have_two_names() -> None:
    """The second layer of one weight gets a stroke, and one without a telling weight its node's name."""
    weight = np.zeros((3, 3, 1, 1))
    nodes = [
        graphs.node("Conv", "x net.0.weight", "one"),
        graphs.node("Conv", "one net.0.weight", "two"),
        graphs.node("Conv", "two net.0.weight", "three"),
        graphs.node("Conv", "three W", "y"),
    ]
    model = graphs.graph(nodes, (3, 2, 2), **{"net.0.weight": weight, "W": weight})
    assert [layer.name for layer in layers_of(model)] == ["net.0", "net.0'", "net.0''", "y"]
    assert [layer.bias for layer in layers_of(model)] == [None] * 4


def test_only_constant_weights_make_a_layer() -> None:
    """A product of two activations, and a convolution whose weight is computed, are no layers; a left out bias is None."""
    nodes = [
        graphs.node("Conv", "x w ", "a"),
        graphs.node("Mul", "w w", "square"),
        graphs.node("Conv", "a square", "b"),
        graphs.node("MatMul", "b b", "y"),
    ]
    model = graphs.graph(nodes, (3, 4, 4), w=np.ones((3, 3, 1, 1)))
    assert [(layer.node, layer.bias) for layer in layers_of(model)] == [("a", None)]


def test_what_nothing_depends_on_goes() -> None:
    """Dead nodes, their weights and shapes go, also one whose output has no name; the answers stay."""
    model = small.chain()
    truth = graphs.run(model, {"x": small.images(2)})["y"]
    dead = small.chain(seed=5)
    for node in dead.graph.node:
        node.name += "_dead"
        for tensors in (node.input, node.output):
            tensors[:] = [tensor if tensor == "x" else f"{tensor}_dead" for tensor in tensors]
    for tensor in dead.graph.initializer:
        tensor.name += "_dead"
    model.graph.node.extend(dead.graph.node)
    model.graph.initializer.extend(dead.graph.initializer)
    model.graph.value_info.append(helper.make_tensor_value_info("a_dead", TensorProto.FLOAT, None))
    # A Conv without bias reads "", as others leave an output without a name.
    model.graph.node.insert(0, helper.make_node("Dropout", ["x"], ["unused", ""], name="unnamed_dead"))
    next(node for node in model.graph.node if node.name == "a").input[2] = ""
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    remove_dead(model)
    left = small.chain()
    assert [node.name for node in model.graph.node] == [node.name for node in left.graph.node]
    assert set(weights_of(model)) == set(weights_of(left)) - {"a.bias"}
    assert {value.name for value in model.graph.value_info} == {value.name for value in left.graph.value_info} - {"y"}
    found, kept = (graphs.run(one, {"x": small.images(2)})["y"] for one in (model, bare))
    np.testing.assert_array_equal(found, kept)
    assert small.error(found, truth) > 1e-3  # the bias that was taken away is missed


def test_what_a_branch_reads_from_outside_stays() -> None:
    """A tensor and a weight that only an If's inner graphs, and theirs in turn, read are kept."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["made", "w"], ["deep"])], "inner", [], [graph_output("deep")]
    )  # fmt: skip
    middle = helper.make_graph(
        [helper.make_node("If", ["yes"], ["middle"], then_branch=inner, else_branch=inner)], "m", [], [graph_output("middle")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["alone"], ["same"])], "other", [], [graph_output("same")])
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["made"], name="made"),
            helper.make_node("Neg", ["x"], ["alone"], name="alone"),
            helper.make_node("Abs", ["x"], ["dead"], name="dead"),
            helper.make_node("If", ["yes"], ["y"], name="if", then_branch=middle, else_branch=other),
        ],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [graph_output("y")],
        [
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2]),
            helper.make_tensor("unread", TensorProto.FLOAT, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    remove_dead(model)
    assert [node.name for node in model.graph.node] == ["made", "alone", "if"]
    assert set(weights_of(model)) == {"yes", "w"}
    found = graphs.run(model, {"x": np.array([-1, 3], np.float32)})
    np.testing.assert_array_equal(found["y"], [1, 5])


def graph_output(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
