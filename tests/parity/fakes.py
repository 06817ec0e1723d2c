"""Small nets as ONNX files, and a backend `plugged` that gives ONNX Runtime's answers, changed as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from quantization import graphs, small

from edgecnn import registry
from edgecnn.backends.base import Session, SessionOptions, Tensors
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.parity.recording import Recording, SampleKind, SamplesRecord
from edgecnn.parity.samples import MadeSamples
from edgecnn.spec import Artifact, BackendRef, TensorSpec

Array = npt.NDArray[Any]
ORT = BackendRef(backend="onnxruntime")
PLUGGED = BackendRef(backend="plugged")


@dataclass(frozen=True)
class Call:
    """One run of the plugged backend: its feeds, what it was opened with, and how many runs came before in this session."""

    feeds: Mapping[str, Array]
    options: SessionOptions
    number: int

    @property
    def rows(self) -> int:
        return len(next(iter(self.feeds.values())))


Change = Callable[[Call, Tensors], Tensors]


class _Session:
    device = "cpu"

    def __init__(self, inner: Session, options: SessionOptions, plugged: Plugged) -> None:
        self._inner, self._options, self._plugged, self._runs = inner, options, plugged, 0
        self.inputs, self.outputs = inner.inputs, plugged.outputs or inner.outputs

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        call = Call(feeds, self._options, self._runs)
        self._runs += 1
        self._plugged.calls.append(call)
        return self._plugged.change(call, self._inner.run(feeds))

    def __enter__(self) -> _Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Plugged:
    """A third party's backend; `opened` lists the options of each session, `calls` every run. It may refuse to load."""

    name = "plugged"
    formats = ("onnx", "safetensors")

    def __init__(
        self, change: Change, outputs: tuple[TensorSpec, ...] | None = None, refusal: Exception | None = None
    ) -> None:
        self.change, self.outputs, self.refusal = change, outputs, refusal
        self.calls: list[Call] = []
        self.opened: list[SessionOptions] = []

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> _Session:
        if self.refusal:
            raise self.refusal
        self.opened.append(options)
        return _Session(OnnxRuntimeBackend().load(artifact, device, options), options, self)


def same(call: Call, outputs: Tensors) -> Tensors:
    """Change nothing."""
    return outputs


def plug(
    patch: pytest.MonkeyPatch,
    change: Change = same,
    outputs: tuple[TensorSpec, ...] | None = None,
    refusal: Exception | None = None,
) -> Plugged:
    """Register the backend `plugged`."""
    real, plugged = registry.get, Plugged(change, outputs, refusal)
    patch.setattr(registry, "get", lambda group, name: plugged if name == "plugged" else real(group, name))
    return plugged


def chain_file(folder: Path, seed: int = 0, name: str = "chain.onnx") -> Path:
    """Write a float net `x` (batch, 3, 8, 8) to `y` (batch, 4)."""
    path = folder / name
    path.write_bytes(small.chain(seed).SerializeToString())
    return path


def int8_file(folder: Path, seed: int = 0, name: str = "int8.onnx") -> Path:
    """Write what ONNX Runtime's own tool makes of that net in int8."""
    path = folder / name
    path.write_bytes(graphs.quantized(small.chain(seed), graphs.Feeds("x", small.images(64))).SerializeToString())
    return path


def change_weight(model: onnx.ModelProto, name: str, share: float) -> None:
    """Move the largest weight of a tensor by a share of itself, in place."""
    tensor = next(one for one in model.graph.initializer if one.name == name)
    value = np.array(numpy_helper.to_array(tensor))
    place = np.unravel_index(np.abs(value).argmax(), value.shape)
    value[place] *= 1 + share
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def fed(array: Array, labels: tuple[int, ...] | None = None, kind: SampleKind = "feeds") -> MadeSamples:
    """Feed rows of an array to an input `x`."""
    names = tuple(f"row-{index}" for index in range(len(array)))
    record = SamplesRecord(kind=kind, said="rows", n=len(array), names=names, labels=labels, sha256="0" * 64)
    return MadeSamples(lambda index: {"x": array[index]}, record)


def answers(recording: Recording, ref: str) -> Array:
    """Give one side's answer."""
    return recording.sides[ref].answers[recording.head.answer]


def specs(*entries: tuple[str, tuple[int | None, ...], str]) -> tuple[TensorSpec, ...]:
    """Make specifications of tensors."""
    return tuple(TensorSpec(name=name, shape=shape, dtype=dtype) for name, shape, dtype in entries)


def half_file(folder: Path, seed: int = 0, name: str = "half.onnx", keep_io: bool = True) -> Path:
    """Write what ONNX Runtime's own tool makes of the chain in float16; its casts come last in the list of nodes."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / name
    path.write_bytes(convert_float_to_float16(small.chain(seed), keep_io_types=keep_io).SerializeToString())
    return path


def unsorted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its nodes in the opposite order."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(reversed(model.graph.node))
    return copy
