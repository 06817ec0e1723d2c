"""Backends that are at fault, while the files they run are right: ONNX Runtime with something wrong put around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
from fault.planting import Edit
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn import registry
from edgecnn.backends.base import Backend, Session, SessionOptions, Tensors
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.parity.computation import softmax
from edgecnn.quantization.int8_layers import int8_layers
from edgecnn.quantization.products import products
from edgecnn.quantization.saturation import pair_sums
from edgecnn.spec import Artifact, TensorSpec

Array = npt.NDArray[Any]
Wrong = Callable[["FaultySession", Array], Array]
NAME = "faulty"


@contextmanager
def registered(backend: Backend | None) -> Iterator[None]:
    """Let the registry know one more backend, under its own name."""
    get = registry.get

    def known(group: str, name: str) -> Any:
        return backend if backend is not None and name == backend.name else get(group, name)

    with mock.patch.object(registry, "get", known):
        yield


class FaultyBackend:
    """Runs ONNX files in ONNX Runtime; `wrong` changes the logits, `edit` the model that is loaded.

    With `falls_back` it takes a file for a device that it has, and quietly runs it on the CPU.
    """

    name = NAME
    formats = ("onnx",)

    def __init__(self, wrong: Wrong | None = None, edit: Edit | None = None, falls_back: bool = False) -> None:
        self.wrong, self.edit, self.falls_back = wrong, edit, falls_back

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "npu:0") if self.falls_back else ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> FaultySession:
        data = artifact.read_bytes()
        if self.edit is not None:
            model = onnx.load_model_from_string(data)
            self.edit(model)
            data = model.SerializeToString()
        inner = OnnxRuntimeBackend().load(_InMemory(**vars(artifact), data=data), "cpu", options)
        return FaultySession(inner, self.wrong, options)


@dataclass(frozen=True)
class _InMemory(Artifact):
    """An artifact whose bytes are at hand."""

    data: bytes = b""

    def read_bytes(self) -> bytes:
        return self.data


class FaultySession:
    """Counts its runs, keeps the answers of the one before, and hands both to what is wrong with it."""

    device = "cpu"

    def __init__(self, inner: Session, wrong: Wrong | None, options: SessionOptions) -> None:
        self.inner, self.wrong, self.options = inner, wrong, options
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.runs = 0
        self.before: Array | None = None

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        outputs = self.inner.run(feeds)
        if self.wrong is None:
            return outputs
        self.runs += 1
        right = outputs["logits"]
        found = np.asarray(self.wrong(self, right), dtype=right.dtype)
        self.before = right
        return {"logits": found, "probabilities": softmax(found).astype(right.dtype)}

    def __enter__(self) -> FaultySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inner.__exit__(kind, error, trace)


def rows_swapped(session: FaultySession, logits: Array) -> Array:
    """Give the answers of a batch in reverse order; a single image gets its own."""
    return logits[::-1]


def answers_of_the_run_before(session: FaultySession, logits: Array) -> Array:
    """Return before the device is done: what the buffer held from the run before, where it is of that size."""
    return session.before if session.before is not None and session.before.shape == logits.shape else logits


def another_answer_each_time(session: FaultySession, logits: Array) -> Array:
    """Be right the first time, and off by up to a thousandth in every run after that, each time elsewhere."""
    noise = np.random.default_rng(session.runs).uniform(-1e-3, 1e-3, logits.shape)
    return logits * (1 + noise * (session.runs > 1))


def wrong_with_other_threads(session: FaultySession, logits: Array) -> Array:
    """Be off by a thousandth where a number of threads is asked for."""
    return logits * (1.001 if session.options.threads else 1.0)


def rounded_to_bfloat16(session: FaultySession, logits: Array) -> Array:
    """Keep the upper 16 bits of each float32, rounded to nearest."""
    bits = np.ascontiguousarray(logits, np.float32).view(np.uint32)
    return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


class SaturatingBackend:
    """Multiplies int8 layers as x86 without VNNI does, two products at a time in 16 bits; everything else by onnx's evaluator.

    With `saturate` off the same code has room for every sum, which tells a fault of this class from one of saturation.
    """

    name = NAME
    formats = ("onnx",)

    def __init__(self, saturate: bool = True) -> None:
        self.saturate = saturate

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> SaturatingSession:
        return SaturatingSession(onnx.load_model_from_string(artifact.read_bytes()), self.saturate)


class SaturatingSession:
    """One QDQ model, node by node."""

    device = "cpu"

    def __init__(self, model: onnx.ModelProto, saturate: bool = True) -> None:
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._layers = {layer.node.name: layer for layer in int8_layers(model)} if saturate else {}
        self._nodes = [(node, ReferenceEvaluator(node, opsets={"": 21})) for node in model.graph.node]
        self._dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self.inputs, self.outputs = (tuple(map(_spec, values)) for values in (model.graph.input, model.graph.output))

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        values: dict[str, Array] = {**self._constants, **feeds}
        for node, evaluator in self._nodes:
            results = evaluator.run(None, {name: values[name] for name in node.input if name})
            if node.name in self._layers:
                results = [self._saturated(node, results[0], values)]
            values.update(zip(node.output, results, strict=True))
        return {spec.name: values[spec.name] for spec in self.outputs}

    def _saturated(self, node: onnx.NodeProto, exact: Array, values: Mapping[str, Array]) -> Array:
        """Take from a layer's output what its sums of two products lose in 16 bits."""
        layer, source = self._layers[node.name], self._dequantized[node.input[0]]
        step = float(values[source.input[1]].reshape(-1)[0])
        lost = np.moveaxis(np.zeros(exact.shape), 1, -1)
        for rows, weights, columns in products(node, layer.weights, values[source.input[0]], layer.zero):
            scale = layer.scale[columns] if layer.scale.size > 1 else layer.scale
            taken = pair_sums(rows, weights).lost * scale * step
            lost[..., columns] = taken.reshape(*lost.shape[:-1], -1)
        result: Array = (exact - np.moveaxis(lost, -1, 1)).astype(exact.dtype)
        return result

    def __enter__(self) -> SaturatingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nodes = []


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
