"""Peak memory and time of calibration as the images grow in number: edgecnn's, and ONNX Runtime's for comparison."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import print_machine
from onnx import TensorProto, helper, numpy_helper

SIDE, BATCH = 32, 32
RUNS = (("edgecnn", 256), ("edgecnn", 8192), ("onnxruntime", 256), ("onnxruntime", 1024))
LIMIT = 1.1  # of edgecnn's peak with the most images over that with the fewest


class Noise:
    """As many random images as asked for, each batch made when it is taken and forgotten after."""

    def __init__(self, count: int) -> None:
        self.count = count

    def batches(self, size: int = BATCH) -> Iterator[dict[str, Any]]:
        """Give batches of uniform noise, the same ones each time."""
        rng = np.random.default_rng(0)
        for at in range(0, self.count, size):
            yield {"image": rng.random((min(size, self.count - at), 3, SIDE, SIDE), dtype=np.float32) - 0.5}


def write_resnet8(path: Path) -> None:
    """Write a ResNet-8 of random weights: three stages of 16, 32 and 64 channels, batch normalisation folded."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def conv(source: str, name: str, fan_in: int, fan_out: int, side: int, stride: int = 1) -> str:
        scale = np.sqrt(2 / (fan_in * side * side))
        weight = rng.normal(0, scale, (fan_out, fan_in, side, side)).astype(np.float32)
        bias = rng.normal(0, 0.1, fan_out).astype(np.float32)
        weights.extend(
            [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
        )
        pads = [side // 2] * 4
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], name=f"{name}.conv", pads=pads, strides=[stride] * 2))
        return name

    def simple(kind: str, sources: list[str], name: str) -> str:
        nodes.append(helper.make_node(kind, sources, [name], name=f"{name}.{kind}"))
        return name

    at, width = simple("Relu", [conv("image", "stem", 3, 16, 3)], "stem_relu"), 16
    for stage, channels in enumerate((16, 32, 64)):
        stride = 1 if stage == 0 else 2
        first = simple("Relu", [conv(at, f"s{stage}a", width, channels, 3, stride)], f"s{stage}a_relu")
        second = conv(first, f"s{stage}b", channels, channels, 3)
        skip = at if stage == 0 else conv(at, f"s{stage}skip", width, channels, 1, stride)
        at, width = simple("Relu", [simple("Add", [second, skip], f"s{stage}sum")], f"s{stage}"), channels
    flat = simple("Flatten", [simple("GlobalAveragePool", [at], "pooled")], "flat")
    weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (64, 10)).astype(np.float32), "head.weight"))
    nodes.append(helper.make_node("MatMul", [flat, "head.weight"], ["logits"], name="head"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "resnet8", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))


def peak_kb() -> int:
    """Read this process's peak memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) if found else 0


def activations(model: onnx.ModelProto) -> list[str]:
    """Name every activation, the image included: what ONNX Runtime's calibrator watches too."""
    return ["image", *(name for node in model.graph.node for name in node.output)]


def edgecnn(path: Path, count: int) -> int:
    """Calibrate with edgecnn; all methods choose from what it observed."""
    from edgecnn.quantization.observe import observe
    from edgecnn.quantization.ranges import METHODS, choose_range

    model = onnx.load(str(path))
    observations = observe(model, Noise(count), activations(model))
    for observed in observations.values():
        for method in METHODS:
            choose_range(observed, method)
    return len(observations)


def onnx_runtime(path: Path, count: int) -> int:
    """Calibrate with ONNX Runtime's entropy calibrator, which is handed the same batches."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
        def __init__(self) -> None:
            self._batches = Noise(count).batches()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        augmented = str(Path(folder) / "augmented.onnx")
        method = CalibrationMethod.Entropy
        calibrator = create_calibrator(path, augmented_model_path=augmented, calibrate_method=method)
        calibrator.collect_data(Reader())
        return len(calibrator.compute_data().data)


def child(who: str, path: str, count: int) -> None:
    """Calibrate in this process and print what it took."""
    calibrate = edgecnn if who == "edgecnn" else onnx_runtime
    start = time.perf_counter()
    tensors = calibrate(Path(path), count)
    print(json.dumps({"peak": peak_kb() / 1024, "seconds": time.perf_counter() - start, "tensors": tensors}))


def main() -> None:
    """Measure every run in a process of its own and print peaks and ratios."""
    print_machine()
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet8.onnx"
        write_resnet8(path)
        for who, count in RUNS:
            command = [sys.executable, __file__, who, str(path), str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            peaks.setdefault(who, []).append(found["peak"])
            print(
                f"{who}, {count} images of {SIDE}x{SIDE}x3, {found['tensors']} tensors: peak {found['peak']:.0f} MB, "
                f"{found['seconds']:.1f} s"
            )
    for who, (few, many) in peaks.items():
        goal = f", at most {LIMIT} wanted" if who == "edgecnn" else ""
        print(f"{who}: peak with the most images over that with the fewest {many / few:.3f}{goal}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
