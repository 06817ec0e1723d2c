"""Tensors as the Open Inference Protocol writes them: datatypes by name, data as JSON or as bytes behind the JSON.

Source: the protocol's "Inference Request JSON Object" and Triton's extension_binary_data and extension_classification.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Annotated, Any

import msgspec
import numpy as np

from edgecnn.backends.base import Array
from edgecnn.serving.limits import RefusedError

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip


def from_json(name: str, data: msgspec.Raw, dtype: str, shape: tuple[int, ...]) -> Array:
    """Make a tensor of numbers that are nested lists or one flat list, in row-major order.

    The text is decoded as lists of that one kind of number: numpy, left to find out by itself what a list holds, makes
    of a long word among many a tensor of words as long.

    Raises:
        RefusedError: they are no numbers, do not fit the dtype, or are not as many as the shape says.
    """
    start = bytes(memoryview(data)[:64]).translate(None, b" \t\r\n")
    depth = len(start) - len(start.lstrip(b"["))
    if depth not in (1, len(shape)):
        raise RefusedError(400, f"input {name!r}: `data` is neither one flat list nor {len(shape)} lists deep")
    try:
        values = np.array(msgspec.json.decode(data, type=_lists(dtype, depth)), dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise RefusedError(400, f"input {name!r}: `data` holds no {DATATYPES[dtype]} there ({error})") from None
    if values.size != math.prod(shape) or not np.isfinite(values).all():
        asked = f"its shape asks for {_product(shape)}, all of them finite"
        raise RefusedError(400, f"input {name!r}: `data` has {values.size} values, {asked}")
    return values.reshape(shape)


def from_bytes(name: str, data: memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """Make a tensor of raw little-endian bytes.

    Raises:
        RefusedError: they are not as many as the shape asks for.
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    if len(data) != math.prod(shape) * wanted.itemsize:
        asked = f"{_product(shape)} values of {wanted.itemsize} bytes"
        raise RefusedError(400, f"input {name!r}: {len(data)} bytes of binary data, its shape asks for {asked}")
    return np.frombuffer(data, wanted).astype(dtype, copy=False).reshape(shape)


def to_bytes(array: Array) -> bytes:
    """Write a tensor as raw little-endian bytes, strings each behind their length in 4 bytes."""
    if array.dtype.kind == "U":
        words = [str(word).encode() for word in array.ravel()]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def classify(array: Array, count: int, labels: tuple[str, ...]) -> Array:
    """Write each row's `count` highest values as strings `VALUE:INDEX:LABEL`; (N, classes) to (N, count).

    Raises:
        RefusedError: the output is no (N, classes).
    """
    if array.ndim != 2 or array.shape[1] != len(labels) or count < 1:
        raise RefusedError(400, "`classification` is for outputs of one value a class, and at least one of them")
    highest = np.argsort(-array, axis=1, kind="stable")[:, :count]
    rows = [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in best] for row, best in zip(array, highest, strict=True)
    ]
    return np.array(rows, dtype=np.str_)


def datatype(array: Array) -> str:
    """Name an array's datatype."""
    return "BYTES" if array.dtype.kind == "U" else DATATYPES[array.dtype.name]


@functools.cache
def _lists(dtype: str, depth: int) -> Any:
    """Return the type of lists in lists of the numbers that a dtype holds."""
    kind = np.dtype(dtype).kind
    number: Any = {"b": bool, "f": float}.get(kind, int)
    if number is int and dtype != "uint64":  # for that one numpy itself refuses what is too large
        limits = np.iinfo(dtype)
        number = Annotated[int, msgspec.Meta(ge=int(limits.min), le=int(limits.max))]
    for _ in range(depth):
        number = list[number]
    return number


def _product(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
