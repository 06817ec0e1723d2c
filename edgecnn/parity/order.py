"""Nodes in the order in which ONNX wants them, each after those it needs: some converters append theirs at the end.

ONNX Runtime sorts for itself, and the specification's own tools do not (ONNX IR specification, "Graphs").
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def sort_nodes(model: onnx.ModelProto) -> None:
    """Sort the nodes of a model's graph in place; one that is in order, or has a cycle, stays as it is."""
    nodes = list(model.graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = {index: {makers[name] for name in _inputs(node) if name in makers} for index, node in enumerate(nodes)}
    if all(maker < index for index, found in needs.items() for maker in found):
        return
    try:
        order = [nodes[index] for index in TopologicalSorter(needs).static_order()]
    except CycleError:  # whoever loads it will say so
        return
    del model.graph.node[:]
    model.graph.node.extend(order)


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Name all that a node reads, in the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs(inner)
