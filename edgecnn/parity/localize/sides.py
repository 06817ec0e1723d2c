"""The two sides of the comparison: who knows what a tensor of the candidate ought to be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.points import ACTIVATIONS, SILENT, Look, Point
from edgecnn.parity.localize.ready import ready

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Shape = tuple[int, ...]


class Side(Protocol):
    """A reference: what it answers, and what it knows of the candidate's tensors."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    def values(self, look: Look, points: Sequence[Point], feeds: Mapping[str, Array]) -> Arrays:
        """Give, by the candidate's names, the float64 values of those points that are surely the same tensor here."""

    def pool(self, feeds: Mapping[str, Array], shapes: Collection[Shape]) -> list[Array]:
        """Give further tensors computed on the way that have one of these shapes, in float64, whatever they are."""


class OnnxSide:
    """An ONNX model in float64, as its operators are defined.

    Its layers are the candidate's by name where all names are known, else in their order where kinds and sizes agree. A
    tensor is the candidate's where the same layer reads it, or made it; or where name, operator and the layers above it
    are the same.
    """

    def __init__(self, model: onnx.ModelProto, name: str = "ONNX in float64") -> None:
        self.name = name
        self.look = Look(ready(model))
        self._exact = Exact(self.look.model)

    def values(self, look: Look, points: Sequence[Point], feeds: Mapping[str, Array]) -> Arrays:
        """Give the points that this model has too."""
        layers = same_layers(look, self.look)
        found = {point.tensor: self._find(look, point, layers) for point in points}
        known = {name: tensor for name, tensor in found.items() if tensor is not None}
        computed = self._exact.run(self._renamed(look, feeds), list(dict.fromkeys(known.values())))
        values = {name: computed[tensor] for name, tensor in known.items()}
        for name, tensor in known.items():
            grid = self.look.grid(tensor)
            if grid is not None:
                values[name] = grid.dequantize(values[name])
        return values

    def pool(self, feeds: Mapping[str, Array], shapes: Collection[Shape]) -> list[Array]:
        """Give the float tensors of the graph."""
        renamed = (
            dict(zip(self.look.inputs, feeds.values(), strict=False)) if set(feeds) - set(self.look.inputs) else feeds
        )
        names = [name for node in self.look.model.graph.node for name in node.output if name in self.look.live]
        found = self._exact.run(renamed, names)
        return [value for value in found.values() if value.dtype == np.float64 and value.shape in set(shapes)]

    def _renamed(self, look: Look, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Feed inputs in their order where the two models call them by other names."""
        if set(feeds) == set(self.look.inputs):
            return feeds
        return dict(zip(self.look.inputs, (feeds[name] for name in look.inputs), strict=False))

    def _find(self, look: Look, point: Point, layers: Mapping[str, str]) -> str | None:
        if point.output:
            place = look.outputs.index(point.tensor)
            here = self.look.outputs
            return point.tensor if point.tensor in here else here[place] if len(here) == len(look.outputs) else None
        nodes = {name: node for node, name in self.look.layers.items()}
        for reader in point.readers:
            if reader in layers:
                return _float_of(self.look, self._node(nodes[layers[reader]]).input[0])
        if point.maker is not None and point.maker in layers:
            start = self._node(nodes[layers[point.maker]]).output[0]
            return _last(self.look, start, point.activated)
        made = self.look.makers.get(point.value)
        above = frozenset(layers.get(name, "") for name in look.above.get(point.value, ()))
        same = made is not None and made.op_type == point.op and self.look.above.get(point.value) == above
        return point.value if same else None

    def _node(self, name: str) -> onnx.NodeProto:
        found: onnx.NodeProto = next(node for node in self.look.model.graph.node if node.name == name)
        return found


def same_layers(ours: Look, theirs: Look) -> dict[str, str]:
    """Map the layers of one model to those of another."""
    mine, others = list(ours.layers.values()), list(theirs.layers.values())
    if set(mine) <= set(others):
        return {name: name for name in mine}
    if _kinds(ours) == _kinds(theirs):
        return dict(zip(mine, others, strict=True))
    return {name: name for name in mine if name in others}


def _kinds(look: Look) -> list[tuple[str, tuple[int, ...]]]:
    """List operator and size of weight of each layer."""
    nodes = {node.name: node for node in look.model.graph.node}
    found = []
    for name in look.layers:
        node = nodes[name]
        weight, source = node.input[1], look.makers.get(node.input[1])
        if source is not None and source.op_type == "DequantizeLinear":
            weight = source.input[0]
        found.append((node.op_type, tuple(look.constants[weight].dims) if weight in look.constants else ()))
    return found


def _float_of(look: Look, tensor: str) -> str:
    """Go from what DequantizeLinear gives to the float tensor that was quantized."""
    node = look.makers.get(tensor)
    if node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear") and tensor in look.live:
        return _float_of(look, node.input[0])
    return tensor


def _last(look: Look, tensor: str, activated: bool) -> str:
    """Follow a layer's output behind its norm, and behind its activation if asked to."""
    after = [node for node in look.readers.get(tensor, []) if node.op_type != "QuantizeLinear"]
    if len(after) == 1 and after[0].op_type in SILENT:
        return _last(look, after[0].output[0], activated)
    if activated and len(after) == 1 and after[0].op_type in ACTIVATIONS:
        return str(after[0].output[0])
    return tensor
