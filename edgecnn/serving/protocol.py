"""The Open Inference Protocol, version 2: an inference request read from its bytes, and the answer written.

Source: https://github.com/kserve/open-inference-protocol (inference_rest) and Triton's extensions binary_data,
classification, model_configuration, model_repository and statistics, as `tritonclient` uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from edgecnn import __version__
from edgecnn.backends.base import Array, Tensors
from edgecnn.bundle import Bundle
from edgecnn.serving import tensors
from edgecnn.serving.limits import RefusedError
from edgecnn.spec import TensorSpec

VERSION = "1"  # a bundle has one version of its model, and Triton numbers them from 1
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


class _Tensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Output, ...] = ()
    id: str = ""
    parameters: dict[str, Any] = {}


@dataclass(frozen=True)
class Wanted:
    """One output as the client wants it: binary or JSON, and `classes` of the highest as strings, or all as numbers."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Inference:
    """A request that was read: its identity, tensors by name, and the outputs to give."""

    id: str
    feeds: Tensors
    wanted: tuple[Wanted, ...]


def read_request(
    body: bytes, header: str | None, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Inference:
    """Read one request's body; `header` is what `Inference-Header-Content-Length` says.

    Raises:
        RefusedError: it is no such request, or its tensors are not what the model takes; status 400.
    """
    length = _header_length(header, len(body))
    try:
        request = msgspec.json.decode(memoryview(body)[:length], type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"not an inference request: {error}") from None
    feeds = _feeds(request.inputs, memoryview(body)[length:], {spec.name: spec for spec in inputs})
    return Inference(request.id, feeds, _wanted(request, tuple(spec.name for spec in outputs)))


def write_answer(bundle: Bundle, inference: Inference, outputs: Tensors) -> tuple[bytes, int | None]:
    """Write the answer's body and, where binary data follow the JSON, the JSON's length.

    Raises:
        RefusedError: a classification of an output that has no classes.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for wanted in inference.wanted:
        array = outputs[wanted.name]
        if wanted.classes:
            array = tensors.classify(array, wanted.classes, bundle.manifest.labels)
        entry: dict[str, Any] = {"name": wanted.name, "datatype": tensors.datatype(array), "shape": array.shape}
        if wanted.binary:
            binary.append(tensors.to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": bundle.manifest.name, "model_version": VERSION, "outputs": described}
    if inference.id:
        answer["id"] = inference.id
    head = msgspec.json.encode(answer)
    return b"".join((head, *binary)), len(head) if binary else None


def server_metadata() -> dict[str, Any]:
    """Describe the server."""
    return {"name": "edgecnn", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(bundle: Bundle, platform: str) -> dict[str, Any]:
    """Describe the model; -1 in a shape is a dimension that may vary."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [_described(spec) for spec in manifest.inputs],
        "outputs": [_described(spec) for spec in manifest.outputs],
    }


def model_config(bundle: Bundle, platform: str, max_batch: int) -> dict[str, Any]:
    """Describe the model as Triton's `config.pbtxt` would, which leaves the batch out of the dimensions."""
    manifest = bundle.manifest
    batched = all(spec.shape[:1] == (None,) for spec in (*manifest.inputs, *manifest.outputs))
    return {
        "name": manifest.name,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "max_batch_size": max_batch if batched else 0,
        "input": [{**_configured(spec, batched), "format": "FORMAT_NONE"} for spec in manifest.inputs],
        "output": [_configured(spec, batched) for spec in manifest.outputs],
        "dynamic_batching": {},
    }


def _header_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= size):
        raise RefusedError(400, f"{HEADER_LENGTH} is {header[:40]!r}, and the body has {size} bytes")
    return int(header)


def _feeds(given: tuple[_Tensor, ...], binary: memoryview, known: dict[str, TensorSpec]) -> Tensors:
    names = [tensor.name for tensor in given]
    if sorted(names) != sorted(known):
        raise RefusedError(400, f"the inputs given are {names}; the model's are {list(known)}")
    feeds, offset = {}, 0
    for tensor in given:
        size = tensor.parameters.get("binary_data_size")
        if size is not None and (type(size) is not int or not 0 <= size <= len(binary) - offset):
            raise RefusedError(400, f"input {tensor.name!r}: binary_data_size {size!r} is not what the body holds")
        feeds[tensor.name] = _array(
            tensor, known[tensor.name], None if size is None else binary[offset : offset + size]
        )
        offset += size or 0
    if offset != len(binary):
        raise RefusedError(400, f"{len(binary) - offset} bytes of the body belong to no input")
    return feeds


def _array(tensor: _Tensor, spec: TensorSpec, binary: memoryview | None) -> Array:
    name, kind = tensor.name, tensors.DATATYPES[spec.dtype]
    if any(parameter.startswith("shared_memory") for parameter in tensor.parameters):
        raise RefusedError(400, f"input {name!r}: shared memory is not offered here; send the data")
    if tensor.datatype != kind or not spec.accepts(tensor.shape) or min(tensor.shape, default=1) < 1:
        raise RefusedError(
            400, f"input {name!r} is {tensor.datatype} {list(tensor.shape)}; the model takes {kind} {_written(spec)}"
        )
    if (binary is None) == (not bytes(tensor.data)):
        raise RefusedError(400, f"input {name!r} needs either `data` or binary data")
    if binary is not None:
        return tensors.from_bytes(name, binary, spec.dtype, tensor.shape)
    return tensors.from_json(name, tensor.data, spec.dtype, tensor.shape)


def _wanted(request: _Request, known: tuple[str, ...]) -> tuple[Wanted, ...]:
    default = _flag(request.parameters, "binary_data_output", False)
    if not request.outputs:
        return tuple(Wanted(name, default) for name in known)
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names) or not set(names) <= set(known):
        raise RefusedError(400, f"the outputs wanted are {names}; the model's are {list(known)}")
    return tuple(_output(output, default) for output in request.outputs)


def _output(output: _Output, default: bool) -> Wanted:
    if any(parameter.startswith("shared_memory") for parameter in output.parameters):
        raise RefusedError(400, f"output {output.name!r}: shared memory is not offered here; take the data")
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise RefusedError(400, f"output {output.name!r}: `classification` is a number of classes")
    return Wanted(output.name, _flag(output.parameters, "binary_data", default), classes)


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise RefusedError(400, f"`{name}` is true or false, not {value!r}")
    return value


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": tensors.DATATYPES[spec.dtype], "shape": _written(spec)}


def _configured(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    dims = _written(spec)[1:] if batched else _written(spec)
    return {"name": spec.name, "data_type": f"TYPE_{tensors.DATATYPES[spec.dtype]}", "dims": dims}


def _written(spec: TensorSpec) -> list[int]:
    return [-1 if size is None else size for size in spec.shape]
