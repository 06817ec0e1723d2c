"""The fp16 file: half the size, and near float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from exporters.made import RequestFor, logits_of, properties

from edgecnn.exporter import Exported
from edgecnn.spec import Target
from edgecnn_exporters.onnx_fp16 import OnnxFp16Exporter


@pytest.mark.parametrize(("target", "told"), [("cuda", "cuda"), ("any", "any"), ("arm64", "any")])
def test_fp16_is_for_cuda_and_near_float32(
    target: Target, told: str, request_for: RequestFor, exports: dict[int, Exported], pixels: npt.NDArray[np.uint8]
) -> None:
    """Weights are float16, half the size; pixels go in, float32 logits come out, and differ by float16's rounding."""
    one = OnnxFp16Exporter().export(request_for(target=target))
    assert (one.target, one.precision, one.path.name) == (told, "fp16", "fp16.onnx")
    model, source = (onnx.load(str(path)) for path in (one.path, exports[18].path))
    weights = [tensor for tensor in model.graph.initializer if tensor.dims and len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights if "weight" in tensor.name} == {onnx.TensorProto.FLOAT16}
    assert one.path.stat().st_size < 0.8 * exports[18].path.stat().st_size
    assert list(model.graph.input) == list(source.graph.input)
    assert properties(one.path) == properties(exports[18].path)
    exact = logits_of(exports[18].path, pixels)
    error = np.abs(logits_of(one.path, pixels) - exact).max() / np.abs(exact).max()
    assert 0 < error < 2**-8
    details = one.details
    assert (details["precision"], details["gate"]["checks"][1]["verdict"]) == ("fp16", "NOT MEASURED")
    assert "flips" not in details["decisions"]
