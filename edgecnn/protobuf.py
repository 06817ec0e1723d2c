"""The little of protobuf's wire format that it takes to look into an ONNX file where the package onnx is not installed.

Numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the wire format is that of
https://protobuf.dev/programming-guides/encoding/. Nothing is copied, and nothing is followed that nests deeper than protobuf
itself allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

_DEPTH = 100  # protobuf's own limit on messages within messages
_EXTERNAL, _INT8 = 1, 3  # of TensorProto's DataLocation and DataType
_EMBEDDED = {  # which of a message's fields are messages that lead to nodes and tensors
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
Field = tuple[int, int, "int | memoryview"]


def fields(data: memoryview) -> Iterator[Field]:
    """Go through a message: field number, wire type, and the value, a number or the bytes of what has a length.

    Raises:
        ValueError: it is no message, or cut short.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, kind, value
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind, -1)
            if length < 0:
                length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field reaches beyond its message")
            yield number, kind, data[at : at + length]
            at += length
        else:  # groups, which ONNX never had
            raise ValueError(f"a field of wire type {kind}")


def messages(model: bytes) -> Iterator[tuple[str, memoryview]]:
    """Give every node and tensor of a serialised ModelProto, those of subgraphs and functions too, as (kind, bytes).

    Raises:
        ValueError: it is no ModelProto, or nests too deeply.
    """
    waiting = [("model", memoryview(model), 0)]
    while waiting:
        kind, data, depth = waiting.pop()
        if depth > _DEPTH:
            raise ValueError(f"messages within messages, over {_DEPTH} deep")
        if kind in ("node", "tensor"):
            yield kind, data
        inner = _EMBEDDED.get(kind)
        if inner is not None:
            found = [
                (inner[number], value, depth + 1)
                for number, wire, value in fields(data)
                if number in inner and wire == 2
            ]
            waiting += [(one, value, deeper) for one, value, deeper in reversed(found) if isinstance(value, memoryview)]


def operators(model: bytes) -> dict[str, int]:
    """Count the nodes of a model by operator.

    Raises:
        ValueError: it is no ModelProto.
    """
    names = (_text(data, 4) for kind, data in messages(model) if kind == "node")
    return dict(sorted(Counter(names).items()))


def outside(model: bytes) -> str | None:
    """Name a file outside the model that it would have a runtime read; None where it keeps to itself.

    It may be a tensor's external data, or the device's program that a node of ONNX Runtime's `EPContext` names.

    Raises:
        ValueError: it is no ModelProto.
    """
    # Both words stand in the file as they are, so that a model without them, as all of ours are, costs one look.
    if b"location" not in model and b"EPContext" not in model:
        return None
    for kind, data in messages(model):
        if kind == "node" and _text(data, 4) == "EPContext":
            return "a program of its own (EPContext)"
        if kind == "tensor":
            location = _location(data)
            if location is not None:
                return location
    return None


def largest_int8(model: bytes) -> int | None:
    """Give the largest magnitude in the model's int8 tensors; None where it has none but zero points.

    Raises:
        ValueError: it is no ModelProto.
    """
    tensors = (list(fields(data)) for kind, data in messages(model) if kind == "tensor")
    return max((_largest(found) for found in tensors if (2, 0, _INT8) in found), default=0) or None


def _largest(tensor: list[Field]) -> int:
    """Give the largest magnitude of an int8 TensorProto, whose values are bytes or a list of numbers."""
    largest = 0
    for number, wire, value in tensor:
        if number == 9 and isinstance(value, memoryview):
            largest = max(largest, _largest_of(memoryview(value).cast("b")))
        elif number == 5 and isinstance(value, memoryview):
            largest = max(largest, _largest_of(_packed(value)))
        elif (number, wire) == (5, 0) and isinstance(value, int):
            largest = max(largest, _largest_of([_signed(value)]))
    return largest


def _largest_of(values: Sequence[int] | memoryview) -> int:
    return max(max(values), -min(values)) if len(values) else 0


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    """Read a varint as the two's complement that a negative number is written in."""
    return value - (1 << 64) if value >> 63 else value


def _location(tensor: memoryview) -> str | None:
    """Say where a TensorProto keeps its values, None where in itself."""
    external, location = False, ""
    for number, wire, value in fields(tensor):
        if (number, wire) == (13, 2) and isinstance(value, memoryview):
            external = True
            if _text(value, 1) == "location":
                location = _text(value, 2)
        external |= (number, value) == (14, _EXTERNAL)
    return location if external else None


def _text(message: memoryview, wanted: int) -> str:
    """Read a message's string field; of several the last counts."""
    found = ""
    for number, wire, value in fields(message):
        if number == wanted and wire == 2 and isinstance(value, memoryview):
            found = bytes(value).decode("utf-8", "backslashreplace")
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise ValueError("cut short")
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise ValueError("a number of over ten bytes")
