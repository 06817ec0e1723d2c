"""Cut a model into blocks at given points, each a model of its own, and run them one by one or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, EdgecnnError
from edgecnn.parity.localize.points import MOVES, SILENT, Look, Point
from edgecnn.spec import BackendRef

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Shapes = Mapping[str, tuple[int | None, ...]]


class Runs(Protocol):
    """A loaded model."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on host arrays."""


Open = Callable[["onnx.ModelProto"], AbstractContextManager[Runs]]


@dataclass(frozen=True)
class Block:
    """The nodes that make one point out of the points, or graph inputs, named in `inputs`; `model` holds just them."""

    name: str
    point: Point
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    model: onnx.ModelProto

    @property
    def quantized(self) -> bool:
        """Say whether it rounds to steps, or reads what is rounded."""
        return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in self.model.graph.node)

    @property
    def moves(self) -> bool:
        """Say whether it only brings values into another shape or type; to quantize a float is more than that."""
        kinds = [node.op_type for node in self.model.graph.node]
        fresh = "QuantizeLinear" in kinds and "DequantizeLinear" not in kinds
        return not fresh and all(kind in MOVES for kind in kinds)


def cut(look: Look, points: Sequence[Point], shapes: Shapes) -> list[Block]:
    """Make one block a point, in their order; a node between two points and none of its own lies in both blocks.

    Args:
        look: the model.
        points: where to cut, in graph order, the model's outputs among them.
        shapes: of every point and graph input, which the blocks' inputs and outputs then state; None is any size.
    """
    kinds, edges = _types(look), {point.tensor for point in points} | set(look.inputs)
    # An answer that is dequantized is one to look at only: what goes on reads the integers, in one kernel perhaps.
    edges -= {name for name in edges if name in look.makers and look.makers[name].op_type == "DequantizeLinear"}
    return [_block(look, point, edges - {point.tensor}, kinds, shapes) for point in points]


def run_block(block: Block, open_model: Open, values: Mapping[str, Array]) -> Array:
    """Load a block and run it on what it reads of `values`.

    Raises:
        BackendError: the backend cannot load or run it.
    """
    fed = {name: values[name] for name in block.inputs}
    return run_model(block.model, open_model, fed, f"block {block.name}")[block.point.tensor]


def run_model(model: onnx.ModelProto, open_model: Open, feeds: Mapping[str, Array], what: str) -> Arrays:
    """Load a model and run it once; `what` is for the message.

    Raises:
        BackendError: the backend cannot load or run it.
    """
    try:
        with open_model(model) as session:
            return session.run(feeds)
    except EdgecnnError as error:
        raise BackendError(f"{what}: {error}") from error
    except Exception as error:  # a bare session raises whatever its runtime raises
        raise BackendError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def chain(blocks: Sequence[Block], open_model: Open, feeds: Mapping[str, Array]) -> Arrays:
    """Run the blocks one after the other, each on what those before it gave; all their outputs by name."""
    values: Arrays = dict(feeds)
    for block in blocks:
        values[block.point.tensor] = run_block(block, open_model, values)
    return {block.point.tensor: values[block.point.tensor] for block in blocks}


def open_on_cpu(model: onnx.ModelProto) -> AbstractContextManager[Runs]:
    """Load a model in ONNX Runtime on the CPU with all its optimisations."""
    from edgecnn.quantization.yardstick import open_model

    return open_model(model)


@contextmanager
def open_unfused(model: onnx.ModelProto) -> Iterator[Runs]:
    """Load a model in ONNX Runtime on the CPU with its optimisations off."""
    from edgecnn.backends.onnxruntime import OnnxRuntimeSession
    from edgecnn.errors import BackendError
    from edgecnn.quantization.probe import first_line, open_plain

    try:
        session = open_plain(model.SerializeToString())
    except Exception as error:
        raise BackendError(f"ONNX Runtime does not load a block of the model: {first_line(error)}") from error
    yield OnnxRuntimeSession(session, "cpu")


def open_with(ref: BackendRef) -> Open:
    """Make an opener for any backend: it gets the model as a file, which lives as long as the session."""

    @contextmanager
    def opened(model: onnx.ModelProto) -> Iterator[Runs]:
        import tempfile
        from pathlib import Path

        from edgecnn.backends.base import open_session
        from edgecnn.spec import Artifact

        with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
            path = Path(folder) / "block.onnx"
            path.write_bytes(model.SerializeToString())
            with open_session(ref, Artifact(name="block", format="onnx", path=path)) as session:
                yield session

    return opened


def _block(look: Look, point: Point, edges: set[str], kinds: Mapping[str, int], shapes: Shapes) -> Block:
    import onnx

    nodes, inputs = _between(look, point.tensor, edges)
    used = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "block",
        [_value(name, kinds, shapes) for name in inputs],
        [_value(point.tensor, kinds, shapes)],
        [tensor for tensor in look.model.graph.initializer if tensor.name in used],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=list(look.model.opset_import),
        ir_version=look.model.ir_version,
        functions=list(look.model.functions),
    )
    layers = tuple(look.layers[node.name] for node in nodes if node.name in look.layers)
    return Block(_name(look, nodes), point, inputs, tuple(node.name for node in nodes), layers, model)


def _between(look: Look, tensor: str, edges: set[str]) -> tuple[list[onnx.NodeProto], tuple[str, ...]]:
    """Walk up from a tensor to the nearest edges; nodes in graph order, and the edges met."""
    wanted, needed, met = [tensor], set[int](), dict[str, None]()
    while wanted:
        name = wanted.pop()
        if name in edges:
            met[name] = None
        elif name in look.makers and id(look.makers[name]) not in needed:
            node = look.makers[name]
            needed.add(id(node))
            wanted += [one for one in node.input if one]
    return [node for node in look.model.graph.node if id(node) in needed], tuple(sorted(met))


def _name(look: Look, nodes: Sequence[onnx.NodeProto]) -> str:
    """Call a block by its layers' own names and the other operators in it, as `layers.2.0 + relu`."""
    quantizers = ("QuantizeLinear", "DequantizeLinear", "Constant", *SILENT)
    words = [look.layers.get(node.name) or node.op_type.lower() for node in nodes if node.op_type not in quantizers]
    words = words or list(dict.fromkeys(node.op_type.lower() for node in nodes if node.input[0] not in look.constants))
    return " + ".join(words) if len(words) < 7 else " + ".join([*words[:3], "...", *words[-2:]])


def _value(name: str, kinds: Mapping[str, int], shapes: Shapes) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), list(shapes[name]))


def _types(look: Look) -> dict[str, int]:
    """Give the element types of the graph's tensors, as far as they can be inferred.

    Raises:
        BackendError: operators and stated shapes contradict each other.
    """
    import onnx

    model: onnx.ModelProto = onnx.ModelProto.FromString(look.model.SerializeToString())
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:  # shapes noted on the way are not binding, and may be left from before
        del model.graph.value_info[:]
        try:
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except onnx.shape_inference.InferenceError as error:
            raise BackendError(f"the model's shapes contradict each other: {' '.join(str(error).split())}") from error
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}
    for name, node in look.makers.items():
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in look.constants:
            kinds[name] = look.constants[node.input[2]].data_type
    return kinds


def as_fed(block: Block, values: Mapping[str, Array]) -> Arrays:
    """Cast arrays to the types that a block's inputs state."""
    import onnx

    kinds = {value.name: value.type.tensor_type.elem_type for value in block.model.graph.input}
    return {
        name: np.ascontiguousarray(values[name].astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name])))
        for name in block.inputs
    }
