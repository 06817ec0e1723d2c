"""What the int8 exporter does not write: what does not pay, does not fuse, or is not what it was made from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from exporters.made import RequestFor, change_batch, change_dtype, change_name, change_opset, drop_output
from steady import steady_races

from edgecnn.errors import ExportError, UsageError, VerdictError
from edgecnn.exporter import Exported
from edgecnn.quantization import run
from edgecnn.quantization.gate import judge
from edgecnn.quantization.recipe import Recipe
from edgecnn.spec import Target
from edgecnn_exporters.onnx import check_like
from edgecnn_exporters.onnx_fp16 import OnnxFp16Exporter
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter


@pytest.mark.parametrize("exporter", [OnnxInt8Exporter(), OnnxFp16Exporter()], ids=["int8", "fp16"])
def test_no_calibration_images_is_an_error(
    exporter: OnnxInt8Exporter | OnnxFp16Exporter, request_for: RequestFor
) -> None:
    """Without a calibration image there is neither int8 nor fp16, and nothing is written."""
    request = request_for(calibration=np.zeros((0, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(ExportError, match="training split gave none"):
        exporter.export(request)
    assert not list(request.folder.iterdir())


@pytest.mark.usefixtures("steady")
def test_int8_that_does_not_fuse_is_refused(request_for: RequestFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in which ONNX Runtime leaves a layer in float is refused, forced or not, with the count and the reason."""
    monkeypatch.setattr(run, "recipe_for", lambda target: Recipe(integer_bias=False))  # which its Gemm does not take
    request = request_for(force=True)
    with pytest.raises(ExportError, match=r"only 2 of 3 layers .*\(net\.head: its bias is not quantized\)"):
        OnnxInt8Exporter().export(request)
    assert not list(request.folder.iterdir())


def test_int8_that_is_not_smaller_is_refused(request_for: RequestFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as large as the float one is refused with both sizes, for any target, unless forced."""
    monkeypatch.setattr(run, "judge", lambda decisions, speed, here, before, after: judge(decisions, speed, here, after, after))  # fmt: skip
    request = request_for()
    with steady_races(), pytest.raises(VerdictError, match=r"int8 for any does not pay: size: [\d,]+ bytes, 1\.000 of"):
        OnnxInt8Exporter().export(request)
    assert not list(request.folder.iterdir())
    with steady_races():
        details = OnnxInt8Exporter().export(dataclasses.replace(request, force=True)).details
    assert [reason.partition(":")[0] for reason in details["forced"]] == ["size"]


@pytest.mark.parametrize(("ratio", "told"), [(1.2, "1.200"), (1.0, "1.000")])
def test_int8_that_is_not_faster_is_refused(ratio: float, told: str, request_for: RequestFor) -> None:
    """Made for this very machine and slower on it, or not surely faster, it is refused with the figures unless forced."""
    request = request_for(target="arm64")
    with steady_races(ratio=ratio, host="arm64"), pytest.raises(VerdictError) as caught:
        OnnxInt8Exporter().export(request)
    assert re.search(
        rf"int8 for arm64 does not pay: speed: it takes {told} of .*not faster; .*--force", str(caught.value)
    )
    assert caught.value.exit_code == 3
    assert not list(request.folder.iterdir())
    with steady_races(ratio=ratio, host="arm64"):
        details = OnnxInt8Exporter().export(dataclasses.replace(request, force=True)).details
    assert len(details["forced"]) == 1
    assert details["forced"][0].startswith(f"speed: it takes {told} of the float model's time")
    assert details["speed"]["ratio"] == ratio


@pytest.mark.parametrize("target", ["any", "x86-64"])
def test_what_is_slow_here_and_made_for_elsewhere_is_written(target: Target, request_for: RequestFor) -> None:
    """A target that this machine is not, or may not be, is not refused for its latency here, and nothing was forced."""
    with steady_races(ratio=1.2, host="arm64"):
        details = OnnxInt8Exporter().export(request_for(target=target, force=True)).details
    assert details["gate"]["checks"][1]["verdict"] == "NOT MEASURED"
    assert details["forced"] == []


def test_int8_for_cuda_is_refused(request_for: RequestFor) -> None:
    """The CUDA provider has no int8 convolutions: the refusal says so, and what to export instead."""
    request = request_for(target="cuda", force=True)
    with pytest.raises(
        UsageError, match=r"no int8 convolutions; use --exporter onnx --exporter onnx-fp16, or --target"
    ):
        OnnxInt8Exporter().export(request)
    assert not list(request.folder.iterdir())


def drop_labels(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


@pytest.mark.parametrize("change", [change_name, change_dtype, change_opset, drop_output, drop_labels])
def test_a_file_unlike_its_source_is_refused(
    change: Callable[[onnx.ModelProto], None], exports: dict[int, Exported]
) -> None:
    """Bytes made from the fp32 file that differ in a name, a type, the opset or the classes are refused."""
    source = onnx.load(str(exports[21].path))
    check_like(source.SerializeToString(), source)
    changed = onnx.load(str(exports[21].path))
    change(changed)
    with pytest.raises(ExportError):
        check_like(changed.SerializeToString(), source)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("exporter", [OnnxInt8Exporter(), OnnxFp16Exporter()], ids=["int8", "fp16"])
def test_what_the_quantizer_breaks_is_not_written(
    exporter: OnnxInt8Exporter | OnnxFp16Exporter, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model made has a fixed batch, which no checker of ONNX minds, the export stops and leaves no file."""
    real = run.quantize_model

    def broken(*arguments: Any, **options: Any) -> Any:
        model, report = real(*arguments, **options)
        change_batch(model)
        return model, report

    monkeypatch.setattr(run, "quantize_model", broken)
    request = request_for()
    with pytest.raises(ExportError, match="another signature"):
        exporter.export(request)
    assert not list(request.folder.iterdir())
