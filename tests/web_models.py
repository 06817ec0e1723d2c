"""Tiny models for the tests of the browser's runtime, and where they find what they need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecnn.backends.onnxruntime_web import OnnxRuntimeWebBackend
from edgecnn.errors import MissingPackageError
from edgecnn.spec import Artifact

SCALE, ZERO_POINT = 1 / 64, 128
HERE = Path(__file__).resolve().parents[1] / ".venv" / "web"


def need(device: str, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeWebBackend:
    """Give the backend, or skip where the device is not there; in continuous integration it has to be."""
    if "EDGECNN_WEB" not in os.environ and HERE.is_dir():
        monkeypatch.setenv("EDGECNN_WEB", str(HERE))
    backend = OnnxRuntimeWebBackend()
    try:
        problem = "" if device in backend.devices() else f"{device} is not on the PATH"
    except MissingPackageError as error:
        problem = str(error)
    if problem:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(problem)
    return backend


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """Draw the weights of the net: one convolution and one layer of ten classes."""
    generator = np.random.default_rng(3)
    shapes = {"conv.w": (12, 1, 3, 3), "conv.b": (12,), "head.w": (12, 10), "head.b": (10,)}
    return {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write_net(path: Path) -> Artifact:
    """Write a float32 net from uint8 NHWC pixels to logits."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "zero"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "conv.w", "conv.b"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["logits"]),
    ]
    constants = {"zero": np.float32(ZERO_POINT), "scale": np.float32(SCALE), **weights()}
    write_model(
        path,
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return Artifact(name="fp32", format="onnx", path=path)


def truth(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Compute the net's logits in float64 by numpy alone."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    x = np.pad((pixels[..., 0].astype(np.float64) - ZERO_POINT) * SCALE, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    maps = np.einsum("nhwij,fij->nfhw", windows, w["conv.w"][:, 0]) + w["conv.b"][:, None, None]
    return np.asarray(np.maximum(maps, 0).mean((2, 3)) @ w["head.w"] + w["head.b"])


def write_int8(fp32: Artifact, pixels: npt.NDArray[np.uint8], path: Path) -> Artifact:
    """Quantize the net to QDQ by ONNX Runtime's own tool: uint8 by int8, per channel, seven-bit weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": pixels}]

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        str(fp32.path), str(path), Reader(), per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return Artifact(name="int8", format="onnx", path=path, precision="int8")


def write_model(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] | None = None,
) -> None:
    """Write a model of opset 17."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
