"""What ONNX Runtime really makes of a model: the operators of its optimised graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any


def fusion_report(path: Path) -> dict[str, Any]:
    """Count the operators left after optimisation for this machine's CPU.

    Returns:
        `fused_convolutions` and `float_convolutions`, and `operators`, the count of every operator. The optimised
        graph is only looked at and never kept: it holds this CPU's layouts and gives wrong answers on another.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    operators = Counter(node.op_type for node in graph.node)
    return {
        "fused_convolutions": operators["QLinearConv"],
        "float_convolutions": operators["Conv"] + operators["FusedConv"],
        "operators": dict(sorted(operators.items())),
    }
