"""How long each layer takes, by ONNX Runtime's own profiler: where a search for a placement begins."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from edgecnn.backends.onnxruntime import import_onnxruntime
from edgecnn.quantization.graph import WEIGHTED, readers

_RUNS, _SKIPPED = 40, 5
_KERNEL = "_kernel_time"
# What the optimiser appends to a node's name, or to that of the tensor it makes.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc)+$")


def layer_times(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Give the median microseconds of each weighted node of the model, by name, at one thread.

    Where the optimiser has renamed a node beyond recognition it is missing. The profiler's clock has a resolution of a
    microsecond and a cost of its own: good enough to rank layers, not to choose by.
    """
    times = _profile(model, feeds)
    following, found = readers(model), dict[str, float]()
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        names, tensor = [node.name, node.output[0]], node.output[0]
        for _ in range(2):  # a fused activation gives the node its own output's name
            after = following.get(tensor, [])
            if len(after) != 1:
                break
            tensor = after[0].output[0]
            names.append(tensor)
        time = next((times[name] for name in names if name in times), None)
        if time is not None:
            found[node.name] = time
    return found


def _profile(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(_RUNS):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            taken.setdefault(_SUFFIX.sub("", event["name"].removesuffix(_KERNEL)), []).append(event["dur"])
    return {name: statistics.median(times[_SKIPPED:] or times) for name, times in taken.items()}
