"""Sorting nodes: every one after those it needs, in subgraphs too, and nothing lost."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from parity.fakes import unsorted
from quantization import graphs, small

from edgecnn.parity.order import sort_nodes

FLOAT = TensorProto.FLOAT


def test_a_shuffled_graph_passes_onnxs_checker() -> None:
    """Shuffled in twenty ways the nodes are sorted as onnx's checker demands, all of them, to the same answers."""
    images = small.images(3)
    expected = graphs.run(small.chain(), {"x": images})["y"]
    for seed in range(20):
        model = small.chain()
        nodes = [model.graph.node[index] for index in np.random.default_rng(seed).permutation(len(model.graph.node))]
        names = sorted(node.output[0] for node in nodes)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        sort_nodes(model)
        onnx.checker.check_model(model)
        assert sorted(node.output[0] for node in model.graph.node) == names
        np.testing.assert_array_equal(graphs.run(model, {"x": images})["y"], expected)


def test_a_sorted_graph_stays_as_it_is() -> None:
    """Nodes that are in order are not moved."""
    model = small.chain()
    before = model.SerializeToString(deterministic=True)
    sort_nodes(model)
    assert model.SerializeToString(deterministic=True) == before


def test_what_a_branch_reads_comes_before_it() -> None:
    """A tensor that only the inside of an If reads is made before the If."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph([helper.make_node("Neg", ["double"], ["b"])], "branch", [], [value("b", FLOAT, None)])
    nodes = [
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["x", "x"], ["double"]),
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph(nodes, "graph", [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])], [yes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sort_nodes(model)
    assert [node.op_type for node in model.graph.node] == ["Add", "If"]
    onnx.checker.check_model(model)


def test_a_cycle_is_left_for_whoever_loads_it() -> None:
    """Two nodes that need each other stay where they are, and nothing hangs."""
    model = unsorted(small.chain())
    first, last = model.graph.node[0], model.graph.node[-1]
    last.input[0] = first.output[0]
    before = [node.output[0] for node in model.graph.node]
    sort_nodes(model)
    assert [node.output[0] for node in model.graph.node] == before
