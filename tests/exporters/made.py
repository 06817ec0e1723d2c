"""What the tests of exporters share: the fixture net's figures, reading files back, and changes to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from edgecnn.exporter import Exported, ExportRequest
from edgecnn.spec import Target, Tolerance

OPSETS = (18, 21)
TARGETS: tuple[Target, ...] = ("any", "x86-64", "x86-64-vnni", "arm64")
CONVOLUTIONS = 2  # of the fixture's network: two widths, depth 1
LAYERS = CONVOLUTIONS + 1
LOOSE = Tolerance(max_drop=0.9)  # the goldens are few, and what a small net loses is not what these tests are about


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def logits_of(path: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = session(path).run(["logits"], {"image": pixels})[0]
    return logits


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def change_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def change_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "scores"


def change_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def change_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


Int8 = Callable[[Target, bool], Exported]


class RequestFor(Protocol):
    """Makes a request to quantize the fp32 export, into a folder of its own unless told where."""

    def __call__(self, **changes: Any) -> ExportRequest: ...
