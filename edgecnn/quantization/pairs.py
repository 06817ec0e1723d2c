"""Pairs of layers whose channels can be rescaled between them without changing what the graph computes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import onnx
from onnx import numpy_helper

from edgecnn.quantization.graph import WeightedLayer, layers_of, makers, readers, weights_of
from edgecnn.quantization.kernels import attribute

# f(a / s) = f(a) / s for every s > 0, each channel by itself. Not Clip: its bound would have to differ from channel to channel.
HOMOGENEOUS = (
    "AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu",
)  # fmt: skip
REDUCTIONS = ("ReduceMean", "ReduceMax")
RESHAPES = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Added:
    """A constant added between the layers: input `slot` of `node`, to a tensor of `trailing` axes after the channels'.

    `repeat` is how many places of that axis, side by side, belong to one channel.
    """

    node: str
    slot: int
    repeat: int
    trailing: int


@dataclass(frozen=True)
class Link:
    """Two layers with nothing in between that would notice a channel's scale.

    `tensor` is the last one between them that has `channels` channels on axis 1. Of the second layer's inputs `repeat`,
    side by side, belong to one channel: 1 but for a Gemm or MatMul after a flattened image.
    """

    first: WeightedLayer
    second: WeightedLayer
    tensor: str
    channels: int
    repeat: int
    added: tuple[Added, ...]


@dataclass(frozen=True)
class _Place:
    """How far the walk from a layer has come: the tensor, and where its channels are."""

    tensor: str
    channels: int
    trailing: int
    repeat: int = 1
    shaped: str = ""
    added: tuple[Added, ...] = ()


def links_of(model: onnx.ModelProto) -> tuple[Link, ...]:
    """List the pairs of a float graph in the order of their first layers.

    A tensor between them is read once and is no output of the graph; each layer's weight is its own. A graph with control
    flow has none: its branches read tensors by name from anywhere.
    """
    if any(one.type in (one.GRAPH, one.GRAPHS) for node in model.graph.node for one in node.attribute):
        return ()
    walk = _Walk(model)
    links = (walk.link(layer) for layer in layers_of(model))
    return tuple(link for link in links if link is not None)


class _Walk:
    """Walks from a layer to the next."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.weights = weights_of(model)
        self.makers = makers(model)
        self.readers = readers(model)
        self.outputs = {value.name for value in model.graph.output}
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        self.layers = {layer.output: layer for layer in layers_of(model)}
        self.shapes = shapes_of(model)

    def link(self, first: WeightedLayer) -> Link | None:
        """Follow a layer's output to the layer that reads it; None where something else is on the way."""
        place = self._start(first)
        while place is not None and place.tensor not in self.outputs and self.uses[place.tensor] == 1:
            (node,) = self.readers[place.tensor]
            second = self.layers.get(node.output[0])
            if second is not None and second.input == place.tensor:
                return self._end(first, second, node, place)
            place = self._step(node, place)
        return None

    def _start(self, first: WeightedLayer) -> _Place | None:
        """Find the channels of a layer's own output."""
        node, shape = self.makers[first.output], tuple(self.weights[first.weight].dims)
        if not self._own(first.weight) or (first.bias is not None and first.bias not in self.weights):
            return None
        if first.op == "Conv":
            return _Place(first.output, shape[0], len(shape) - 2, shaped=first.output)
        if first.op == "ConvTranspose":
            channels = shape[1] * attribute(node, "group", 1)
            return _Place(first.output, channels, len(shape) - 2, shaped=first.output)
        if first.op == "MatMul" and (len(shape) != 2 or len(self.shapes.get(first.output, ())) != 2):
            return None
        channels = shape[0] if attribute(node, "transB", 0) else shape[1]
        return _Place(first.output, channels, 0, shaped=first.output)

    def _step(self, node: onnx.NodeProto, place: _Place) -> _Place | None:
        """Go through one node, if it treats each channel by itself and takes a factor out of it."""
        if node.op_type == "Add":
            return self._add(node, place)
        if node.input[0] != place.tensor:
            return None
        if node.op_type in HOMOGENEOUS:
            return _moved(place, node)
        if node.op_type in REDUCTIONS:
            return self._reduce(node, place)
        return self._reshape(node, place) if node.op_type in RESHAPES else None

    def _add(self, node: onnx.NodeProto, place: _Place) -> _Place | None:
        """Go through the addition of a constant, which can be rescaled with the channels."""
        slot = 1 if node.input[0] == place.tensor else 0
        constant = self.weights.get(node.input[slot])
        if constant is None or len(constant.dims) > place.trailing + 2:
            return None
        added = Added(node.output[0], slot, place.repeat, place.trailing)
        return _moved(replace(place, added=(*place.added, added)), node)

    def _reduce(self, node: onnx.NodeProto, place: _Place) -> _Place | None:
        """Go through a mean or maximum over the axes that follow the channels'."""
        axes = attribute(node, "axes", None)
        if len(node.input) > 1 and node.input[1] in self.weights:
            axes = numpy_helper.to_array(self.weights[node.input[1]]).tolist()
        rank = place.trailing + 2
        if not axes or any(axis % rank < 2 for axis in axes):
            return None
        trailing = place.trailing if attribute(node, "keepdims", 1) else place.trailing - len(axes)
        return _moved(replace(place, trailing=trailing), node)

    def _reshape(self, node: onnx.NodeProto, place: _Place) -> _Place | None:
        """Go through what makes one axis of all but the first.

        Elements keep their order. So where a row has as many as an image had, which the second layer's weight tells, it
        is an image, and places of one channel lie side by side. A dimension without a number ends the walk.
        """
        before, after = self.shapes.get(place.tensor, ()), self.shapes.get(node.output[0], ())
        if len(after) != 2 or len(before) != place.trailing + 2:
            return None
        places = [place.repeat, *(dimension or 0 for dimension in before[2:])]
        return _moved(replace(place, trailing=0, repeat=math.prod(places)), node)

    def _end(self, first: WeightedLayer, second: WeightedLayer, node: onnx.NodeProto, place: _Place) -> Link | None:
        """Check that the second layer sums over the channels, and that its weight is its own."""
        shape = tuple(self.weights[second.weight].dims)
        if second.op in ("Gemm", "MatMul") and (place.trailing or len(shape) != 2 or attribute(node, "transA", 0)):
            return None
        if second.op == "Conv":
            inputs = shape[1] * attribute(node, "group", 1)
        else:
            inputs = shape[1] if attribute(node, "transB", 0) else shape[0]
        if inputs != place.channels * place.repeat or not self._own(second.weight):
            return None
        return Link(first, second, place.shaped, place.channels, place.repeat, place.added)

    def _own(self, weight: str) -> bool:
        """Say whether one node alone reads a weight."""
        return self.uses[weight] == 1 and weight not in self.outputs


def _moved(place: _Place, node: onnx.NodeProto) -> _Place:
    """Move on to a node's output."""
    shaped = node.output[0] if place.repeat == 1 else place.shaped
    return replace(place, tensor=node.output[0], shaped=shaped)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Infer every tensor's dimensions, None for one without a number."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(
            one.dim_value if one.HasField("dim_value") else None for one in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
