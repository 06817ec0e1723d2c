"""What the right answers are: the model in float64, and the float32 whose error is the unit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.backends.base import Array, SessionOptions, Tensors, open_session
from edgecnn.bundle import Bundle, Goldens
from edgecnn.errors import BackendError, EdgecnnError
from edgecnn.parity.recording import TORCH_FLOAT32
from edgecnn.parity.running import run_all
from edgecnn.parity.samples import Indices, Samples, spread
from edgecnn.parity.subject import Subject, load_model, prepared_model
from edgecnn.spec import Artifact, BackendRef

if TYPE_CHECKING:
    import onnx

TRUTH_SAMPLES = 256  # float64 is slow, and more images do not change a judgement in units of noise
EVALUATED_SAMPLES = 16  # onnx's evaluator is slower still
_BATCH = 32
_ROUNDERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Answers:
    """The truth for some samples: `float64` and `float32` (M, classes) for those at `places`, from where `origin` says.

    The samples are a bundle's goldens where `on_goldens` says so, else those that are compared.
    """

    origin: str
    places: Indices
    float64: npt.NDArray[np.float64]
    float32: Array
    unit: str = TORCH_FLOAT32
    on_goldens: bool = False


class Exact(Protocol):
    """A graph that can be evaluated in float64 and in float32."""

    origin: str
    unit: str
    most: int

    def answer(self, feeds: Tensors, dtype: str) -> Array:
        """Give the answer (n, values) in `float64` or `float32`."""


def of_goldens(goldens: Goldens) -> Answers:
    """Take what a bundle records; it is for its goldens."""
    places = np.arange(len(goldens.pixels))
    origin = "float64 in the goldens"
    return Answers(origin, places, goldens.logits_float64, goldens.logits_float32, on_goldens=True)


def of_checkpoint(bundle: Bundle, ref: BackendRef, samples: Samples, goldens: Goldens) -> tuple[Indices, Array]:
    """Let a bundle's checkpoint answer some of the samples in float64.

    Raises:
        BackendError: it does not give the goldens' float64 logits: one of the two was changed.
    """
    places = spread(samples.record.n, TRUTH_SAMPLES)
    artifact = Subject.of_bundle(bundle).artifact(ref)
    with open_session(ref, artifact, SessionOptions(dtype="float64")) as session:
        recomputed = run_all(session, goldens.pixels)["logits"]
        if not np.allclose(recomputed, goldens.logits_float64, rtol=1e-9, atol=1e-9):
            raise BackendError(
                f"{bundle.where}: the checkpoint in float64 does not give the goldens' logits; one of the two was changed"
            )
        parts = [session.run(feeds)["logits"] for feeds in samples.batches(64, places)]
    return places, np.concatenate(parts)


def of_graph(exact: Exact, samples: Samples) -> Answers:
    """Evaluate an ONNX graph for some of the samples, from end to end.

    Raises:
        EdgecnnError: it cannot be evaluated on them.
    """
    places = spread(samples.record.n, min(TRUTH_SAMPLES, exact.most), samples.batch)
    parts: dict[str, list[Array]] = {"float64": [], "float32": []}
    for feeds in samples.batches(_BATCH, places):
        for dtype, found in parts.items():
            found.append(exact.answer(feeds, dtype))
    double, single = (np.concatenate(found) for found in parts.values())
    if not np.isfinite(double).all() or not np.isfinite(single).all():
        raise BackendError("the model in float64 or float32 gives values that are not finite on these samples")
    return Answers(f"{exact.origin} on {len(places)} samples", places, double, single, exact.unit)


def exact_of(subject: Subject, reference: Artifact | None) -> tuple[Exact | None, str]:
    """Find a way to evaluate an ONNX file in float64, or say why there is none.

    A float file is evaluated as it stands. Of a quantized one the float model is not known unless the reference is that.
    Else its graph is evaluated without the rounding of activations, so that their rounding is its quantization error; its
    weights stay as rounded. A file whose operators round inside (QLinearConv) has no such graph, and then there is no truth.
    """
    own = subject.artifact(BackendRef(backend="onnxruntime"))
    known = reference if reference is not None and reference.format == "onnx" else own
    artifact = own if own.precision != "int8" or known.precision == "int8" else known
    if find_spec("onnx") is None:
        return None, "no float64 without torch or onnx: pip install 'edgecnn[train]'"
    reasons = []
    ways = (_smooth,) if artifact.precision == "int8" else (_by_torch, _by_onnx)
    for way in ways:
        try:
            return way(artifact, subject.answer), ""
        except (EdgecnnError, ValueError, RuntimeError, TypeError) as error:
            reasons.append(" ".join(str(error).split())[:200])
    return None, f"no float64 of {artifact.path.name}: {'; '.join(reasons)}"


class _TorchGraph:
    """A float graph run by torch's operators."""

    unit = TORCH_FLOAT32
    most = TRUTH_SAMPLES

    def __init__(self, model: onnx.ModelProto, answer: str) -> None:
        from edgecnn.quantization.graph_module import GraphModule

        self.origin = "the graph run by torch in float64"
        self._answer = answer
        self._modules: dict[str, Any] = {
            "float32": GraphModule(model).eval(),
            "float64": GraphModule(model).double().eval(),
        }

    def answer(self, feeds: Tensors, dtype: str) -> Array:
        """Run it."""
        import torch

        with torch.inference_mode():
            typed = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in feeds.items()}
            given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in typed.items()}
            try:
                found = self._modules[dtype](given, (self._answer,))[self._answer]
            except (RuntimeError, TypeError, IndexError) as error:  # torch's, of shapes it cannot use
                raise BackendError(f"the graph in {dtype}: {' '.join(str(error).split())[:200]}") from error
            return _rows(found.numpy())


class _Evaluated:
    """A graph run by onnx's evaluator: in float64 with its weights widened, in float32 as it is."""

    unit = "float32 of onnx's evaluator"
    most = EVALUATED_SAMPLES

    def __init__(self, model: onnx.ModelProto, answer: str) -> None:
        from onnx import TensorProto
        from onnx.reference import ReferenceEvaluator

        floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
        self.origin = "the graph run by onnx's evaluator in float64"
        self._answer = answer
        self._evaluators = {
            "float64": ReferenceEvaluator(_widened(model, TensorProto.DOUBLE, floats)),
            "float32": ReferenceEvaluator(model),
        }

    def answer(self, feeds: Tensors, dtype: str) -> Array:
        """Run it."""
        given = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in feeds.items()}
        found: Any
        try:
            (found,) = self._evaluators[dtype].run([self._answer], given)
        except Exception as error:  # it raises whatever numpy raises
            raise BackendError(f"onnx's evaluator: {' '.join(str(error).split())[:200]}") from error
        if str(found.dtype) != dtype:
            raise BackendError(f"onnx's evaluator computes {found.dtype} where {dtype} was asked for")
        return _rows(found)


class _Smooth:
    """A graph with quantizers, in float64, whose activations pass their quantizers unrounded."""

    unit = "float32"
    most = 64

    def __init__(self, model: onnx.ModelProto, answer: str) -> None:
        from edgecnn.parity.localize.exact import Exact as Graph

        self.origin = "the quantized graph in float64, its activations not rounded"
        self._answer = answer
        self._graph = Graph(model, smooth=True)

    def answer(self, feeds: Tensors, dtype: str) -> Array:
        """Run it; float32 is a rounding of that."""
        return _rows(self._graph.run(feeds, [self._answer])[self._answer]).astype(dtype)


def _by_torch(artifact: Artifact, answer: str) -> Exact:
    if find_spec("torch") is None:
        raise BackendError("torch is not installed")
    from onnx import TensorProto

    model = prepared_model(artifact.path, artifact.sha256 or "")
    return _TorchGraph(_widened(model, TensorProto.FLOAT, (TensorProto.FLOAT16, TensorProto.BFLOAT16)), answer)


def _by_onnx(artifact: Artifact, answer: str) -> Exact:
    return _Evaluated(load_model(artifact), answer)


def _smooth(artifact: Artifact, answer: str) -> Exact:
    model = load_model(artifact)
    inside = sorted(
        {node.op_type for node in model.graph.node if "QLinear" in node.op_type or "Integer" in node.op_type}
    )
    if inside or find_spec("torch") is None:
        what = f"it holds {inside[0]}, which rounds inside" if inside else "torch is not installed"
        raise BackendError(f"{what}; name its float model with -r onnxruntime:FLOAT.onnx")
    return _Smooth(model, answer)


def specified(artifact: Artifact, answer: str, feeds: Iterator[Tensors]) -> Array:
    """Answer as the operators' specification says, by onnx's own evaluator, whatever the precision.

    Raises:
        EdgecnnError: it is not installed or cannot run the model.
    """
    model = load_model(artifact)
    with tempfile.TemporaryDirectory(prefix="edgecnn-parity-") as folder:
        ordered = Path(folder) / "model.onnx"
        ordered.write_bytes(model.SerializeToString())
        with open_session(
            BackendRef(backend="reference"), replace(artifact, path=ordered, sha256=None, size=None)
        ) as session:
            return np.concatenate([_rows(session.run(batch)[answer]) for batch in feeds])


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)


def _widened(model: onnx.ModelProto, to: int, floats: Sequence[int]) -> onnx.ModelProto:
    """Copy a graph with its weights, constants and casts of the types `floats` as `to` (each a TensorProto.DataType)."""
    import onnx
    from onnx import numpy_helper
    from onnx.helper import tensor_dtype_to_np_dtype

    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    attributes = [one for node in copy.graph.node for one in node.attribute]
    tensors = [one.t for one in attributes if one.type == onnx.AttributeProto.TENSOR]
    for tensor in (*copy.graph.initializer, *tensors):
        if tensor.data_type in floats:
            value = numpy_helper.to_array(tensor).astype(tensor_dtype_to_np_dtype(to))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in copy.graph.node:
        for one in node.attribute:
            if node.op_type == "Cast" and one.name == "to" and one.i in floats:
                one.i = to
    return copy
