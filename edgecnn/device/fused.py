"""Whether int8 layers are computed in int8 here: by the kernels in the graph that ONNX Runtime makes of a file on this CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgecnn.backends.onnxruntime import import_onnxruntime
from edgecnn.errors import BackendError
from edgecnn.parity.verdict import Verdict
from edgecnn.protobuf import operators
from edgecnn.spec import Artifact, Frozen

INT8_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "QLinearConvTranspose", "MatMulIntegerToFloat")


class Fused(Frozen, frozen=True):
    """The int8 kernels in the optimised graph, here and as export counted them; None where that is not known."""

    verdict: Verdict
    reason: str
    here: dict[str, int] | None = None
    there: dict[str, int] | None = None


def kernels_here(artifact: Artifact) -> dict[str, int]:
    """Count, by operator, the nodes of the graph that ONNX Runtime's CPU provider makes of an artifact.

    The graph is written to a temporary file and read without the package onnx; it is never kept, for it holds this CPU's
    layouts and gives wrong answers on another.

    Raises:
        BackendError: ONNX Runtime does not load the artifact, or writes what cannot be read.
    """
    ort, data = import_onnxruntime(), artifact.read_bytes()
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        file = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(file)
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            return operators(file.read_bytes())
        except Exception as error:  # onnxruntime raises a dozen types of its own
            reason = " ".join(str(error).split())[:300]
            raise BackendError(f"{artifact.path}: its optimised graph cannot be had ({reason})") from error


def judge_fused(here: dict[str, int] | None, details: dict[str, Any]) -> Fused:
    """Compare the int8 kernels here with those that export recorded in the artifact's details.

    Fewer is a FAIL: layers that were meant to be int8 are computed in float between conversions, slower than fp32.
    """
    there = _recorded(details)
    if there is None:
        return Fused(verdict=Verdict.NOT_MEASURED, reason="export recorded no int8 kernels", here=_int8(here))
    if here is None:
        return Fused(verdict=Verdict.NOT_MEASURED, reason="the optimised graph is not to be had here", there=there)
    ours = _int8(here) or {}
    told = f"{_written(ours)} here, {_written(there)} where it was exported"
    if sum(ours.values()) >= sum(there.values()):
        return Fused(verdict=Verdict.PASS, reason=f"int8 kernels as expected: {_written(ours)}", here=ours, there=there)
    return Fused(verdict=Verdict.FAIL, reason=f"fewer int8 kernels than expected: {told}", here=ours, there=there)


def _recorded(details: dict[str, Any]) -> dict[str, int] | None:
    fusion = details.get("fusion")
    counts = fusion.get("operators") if isinstance(fusion, dict) else None
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        return None
    return _int8(counts)


def _int8(counts: dict[str, int] | None) -> dict[str, int] | None:
    return None if counts is None else {name: counts[name] for name in INT8_KERNELS if counts.get(name)}


def _written(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
