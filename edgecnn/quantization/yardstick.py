"""What a quantized model is held against: the float model's answers, their error, and the file's size and speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from edgecnn.backends.onnxruntime import OnnxRuntimeSession, import_onnxruntime
from edgecnn.errors import QuantizationError
from edgecnn.metrics import distance
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.graph import makers

Array = npt.NDArray[Any]
_BATCH = 32
JUDGED = 128  # images on which errors are compared
MOST_DB = 300.0  # stands for infinity, which JSON does not know; float32 itself has about 150


class Watched(Protocol):
    """Anything that answers feeds."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on host arrays."""


def answer_tensor(model: onnx.ModelProto) -> str:
    """Name the tensor by which a model is judged: its first float output, before a softmax that makes it.

    Probabilities are near 0 or 1 whatever the error behind them; what goes into the softmax shows it.

    Raises:
        QuantizationError: no output is float.
    """
    made = makers(model)
    floats = [value.name for value in model.graph.output if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise QuantizationError("no output of the model is float, so there is nothing to judge it by")
    node = made.get(floats[0])
    if node is not None and node.op_type == "Cast":  # a float16 model's, whose outputs stay float
        node = made.get(node.input[0])
    return str(node.input[0] if node is not None and node.op_type == "Softmax" else floats[0])


def open_model(model: onnx.ModelProto, watch: tuple[str, ...] = (), threads: int = 1) -> OnnxRuntimeSession:
    """Load a model on the CPU, with further tensors as outputs.

    Raises:
        QuantizationError: ONNX Runtime refuses it.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = {value.name for value in model.graph.output}
    if set(watch) - known:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watch if name not in known)
        model = copy
    try:
        return OnnxRuntimeSession(
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), "cpu"
        )
    except Exception as error:
        raise QuantizationError(
            f"ONNX Runtime does not load the model: {' '.join(str(error).split())[:300]}"
        ) from error


def answers(model: onnx.ModelProto, feeds: FeedSet, tensor: str) -> Array:
    """Compute one tensor for all feeds, flattened to (N, values).

    Raises:
        QuantizationError: a value is not finite.
    """
    with open_model(model, (tensor,)) as session:
        parts = [session.run(batch)[tensor] for batch in feeds.batches(_BATCH)]
    rows = np.concatenate([part.reshape(len(part), -1) if part.ndim else part.reshape(1, 1) for part in parts])
    if not np.isfinite(rows).all():
        raise QuantizationError(f"{tensor} has values that are not finite")
    return rows


class Yardstick:
    """The float model and its answers to a few calibration images, by which placements and remedies are compared."""

    def __init__(self, model: onnx.ModelProto, feeds: FeedSet) -> None:
        self.feeds = feeds.sample(JUDGED, 0) if feeds.count > JUDGED else feeds
        self.truth = answers(model, self.feeds, answer_tensor(model))
        self.bytes = len(model.SerializeToString())

    def sqnr_db(self, quantized: onnx.ModelProto) -> float:
        """Give the signal to quantization noise ratio of the answers, in dB; -MOST_DB where one is not finite."""
        try:
            found = distance(self.truth, answers(quantized, self.feeds, answer_tensor(quantized))).sqnr_db
        except QuantizationError:
            return -MOST_DB
        return MOST_DB if found is None else max(-MOST_DB, min(MOST_DB, float(found)))

    def one(self) -> dict[str, Array]:
        """Give the feeds of a single image, for timing."""
        return next(iter(self.feeds.batches(1)))
