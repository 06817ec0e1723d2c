"""Small ONNX graphs out of nodes and arrays, and ONNX Runtime to run them in float or quantized by its own tools."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

Array = npt.NDArray[Any]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Make a node named like its output from names parted by spaces."""
    return helper.make_node(
        op, inputs.split(" "), output.split(" "), name=output.split(" ", maxsplit=1)[0], **attributes
    )


def graph(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int], outputs: str = "y", **weights: Array
) -> onnx.ModelProto:
    """Make a float model of input `x` of `shape`, batch aside, and outputs of any shape; opset 17."""
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_empty_tensor_value_info(name) for name in outputs.split(" ")],
            [
                numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)
                for name, array in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    inferred = onnx.shape_inference.infer_shapes(model)
    del inferred.graph.value_info[:]
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


def run(model: onnx.ModelProto, feeds: dict[str, Array], also: Sequence[str] = ()) -> dict[str, Array]:
    """Run a model by ONNX Runtime and give its outputs, and the tensors named in `also`."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    """Read the initializers."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


class Feeds:
    """Feeds of one input, in batches."""

    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array, self.count, self.key = name, array, len(array), "test"

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        """Give the batches in order."""
        for start in range(0, self.count, size):
            yield {self.name: self.array[start : start + size]}


def quantized(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """Quantize by ONNX Runtime's own static quantizer: QDQ, U8S8, per channel, min-max, logits not clipped."""
    batches = feeds.batches(64)
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        reader = type("Reader", (), {"get_next": lambda self: next(batches, None)})()
        try:
            quantize_static(
                str(source),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
        finally:
            root.setLevel(level)
        return onnx.load(str(target))
