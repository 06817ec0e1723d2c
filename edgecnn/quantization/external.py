"""Weights that an ONNX file keeps outside itself: read only from beside the file, and put into the model."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath

import onnx
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from edgecnn.errors import QuantizationError


def embed(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Load, in place, all external data of the model that was read from `path`.

    Returns:
        The files that data came from, sorted.

    Raises:
        QuantizationError: a file is named that is not inside `path`'s own folder, or is missing or too short.
    """
    found: dict[str, Path] = {}
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location not in found:
            found[location] = _inside(path, location)
        _load(tensor, path, location)
    return tuple(found[location] for location in sorted(found))


def _inside(path: Path, location: str) -> Path:
    """Return the file that a location names; a location that leaves the folder in any way is refused, links too."""
    named = PurePosixPath(location)
    leaves = not location or named.is_absolute() or ".." in named.parts or "\\" in location or "\0" in location
    folder = path.parent.resolve()
    file = folder / named
    if leaves or file.resolve() != file:
        raise QuantizationError(
            f"{path}: keeps weights in {location!r}, which is not a file inside its own folder; such a file is not read"
        )
    if not file.is_file():
        raise QuantizationError(f"{path}: keeps weights in {location}, which is missing; copy it beside the model")
    return file


def _load(tensor: onnx.TensorProto, path: Path, location: str) -> None:
    try:
        load_external_data_for_tensor(tensor, str(path.parent))
        wanted = prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except Exception as error:  # onnx raises its checker's own types besides OSError, ValueError and KeyError
        raise QuantizationError(f"{path}: {tensor.name} cannot be read from {location} ({_line(error)})") from None
    if len(tensor.raw_data) != wanted:
        raise QuantizationError(
            f"{path}: {tensor.name} has {len(tensor.raw_data)} bytes in {location} instead of {wanted}; copy it again"
        )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Go through every tensor: weights, and those in attributes of nodes, of subgraphs and of functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
