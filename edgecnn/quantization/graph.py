"""Looking around in an ONNX graph: who makes a tensor, who reads it, and which nodes carry weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class WeightedLayer:
    """A node that multiplies by constant weights.

    `name` is what its author called it, as far as the weight's name tells; `node` is the ONNX node's. `weight` and
    `bias` name initializers, `input` and `output` tensors.
    """

    name: str
    node: str
    op: str
    input: str
    weight: str
    bias: str | None
    output: str


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Give the initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Give the node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Give the nodes that read each tensor, in graph order."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                found.setdefault(name, []).append(node)
    return found


def layers_of(model: onnx.ModelProto) -> list[WeightedLayer]:
    """List the nodes with constant weights in graph order, each with a name of its own."""
    weights, taken, found = weights_of(model), set[str](), []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[1] not in weights:
            continue
        name = _own_name(node)
        while name in taken:  # two layers that share a weight
            name += "'"
        taken.add(name)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        found.append(
            WeightedLayer(
                name=name, node=node.name, op=node.op_type, input=node.input[0], weight=node.input[1], bias=bias,
                output=node.output[0],
            )
        )  # fmt: skip
    return found


def _own_name(node: onnx.NodeProto) -> str:
    """Take `net.layers.0.0` from its weight `net.layers.0.0.weight`; the node's name where the weight's tells nothing."""
    weight: str = node.input[1]
    stem, dot, last = weight.rpartition(".")
    return stem if dot and last.startswith("weight") else node.name or node.output[0]


def remove_dead(model: onnx.ModelProto) -> None:
    """Remove, in place, the nodes and weights that no output depends on, and the shapes noted of them."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= (set(node.input) | _captured(node)) - {""}  # what is left out has no name
    for field, entries in (
        (graph.node, list(reversed(kept))),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.value_info, [value for value in graph.value_info if value.name in needed]),
    ):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        del field[:]
        field.extend(copies)


def _captured(node: onnx.NodeProto) -> set[str]:
    """Name what a node's subgraphs read from outside; a name of their own does no harm."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    graphs += [graph for attribute in node.attribute for graph in attribute.graphs]
    inner = [one for graph in graphs for one in graph.node]
    outputs = {value.name for graph in graphs for value in graph.output}
    return outputs.union(*(set(one.input) | _captured(one) for one in inner)) if inner or outputs else set()
