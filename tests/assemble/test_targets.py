"""Exports for CUDA, TensorRT, this machine and others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from assemble.quick import Exporters, beside, invoke
from steady import steady_races

from edgecnn.bundle import Bundle
from edgecnn.errors import ExportError
from edgecnn.host import target_of_host


@pytest.mark.usefixtures("exporters")
def test_a_bundle_for_cuda_holds_fp16(run_folder: Path, bundle_folder: Path, out: Path) -> None:
    """For CUDA the fp16 exporter's artifact goes into the bundle, checked like any other, and nothing was forced."""
    words = ("--target", "cuda", "--exporter", "onnx", "--exporter", "onnx-fp16", "--max-drop", "20")
    result = invoke("export", run_folder, "-o", out, *words, "--json")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert set(manifest["artifacts"]) == {"fp32", "fp16", "checkpoint"}
    record = manifest["artifacts"]["fp16"]
    assert (record["precision"], record["target"], record["path"]) == ("fp16", "cuda", "fp16.onnx")
    cells = {cell["artifact"]: cell for cell in manifest["evidence"]["parity"]["cells"]}
    assert cells["fp16"]["decisions"]["verdict"] == "PASS"
    assert manifest["evidence"]["forced"] == []
    Bundle.open(out).verify()
    assert (out / "fp16.onnx").stat().st_size < 0.8 * (bundle_folder / "fp32.onnx").stat().st_size
    assert invoke("inspect", out).exit_code == 0


def test_int8_for_cuda_is_one_line(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """int8 for CUDA is the user's mistake, forced or not, and the line says what to export instead."""
    del exporters["onnx-int8"]  # the shipped one takes its place
    for more in ((), ("--force",)):
        result = invoke("export", run_folder, "-o", out, "--target", "cuda", *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1] == (
            "edgecnn: --target cuda: ONNX Runtime's CUDA provider has no int8 convolutions; use --exporter onnx "
            "--exporter onnx-fp16, or --target tensorrt"
        )
        assert beside(out) == set()


def test_int8_for_tensorrt_is_written(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """For TensorRT the bundle's int8 artifact is for TensorRT, by a recipe without zero points."""
    del exporters["onnx-int8"]
    with steady_races():
        result = invoke("export", run_folder, "-o", out, "--target", "tensorrt", "--max-drop", "20", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)["artifacts"]["int8"]
    assert record["target"] == "tensorrt"
    assert record["details"]["recipe"] == {"activations": "int8", "reduced_range": False, "integer_bias": False}
    assert record["details"]["fusion"] is None
    assert "  int8 fused" not in invoke("inspect", out).stdout


def test_int8_that_does_not_pay_ends_with_three(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """int8 for this machine that is slower on it ends with 3 and nothing written; forced, the manifest has the reason."""
    del exporters["onnx-int8"]
    words = ("export", run_folder, "-o", out, "--target", "host", "--max-drop", "20", "--json")
    with steady_races(ratio=1.2):
        refused = invoke(*words)
    assert (refused.exit_code, refused.stdout) == (3, "")
    line = refused.stderr.splitlines()[-1]
    assert line.startswith(
        f"edgecnn: int8 for {target_of_host()} does not pay: speed: it takes 1.200 of the float model's"
    )
    assert line.endswith("leave it out by --exporter onnx, or --force it")
    assert beside(out) == set()
    with steady_races(ratio=1.2):
        forced = invoke(*words, "--force")
    assert forced.exit_code == 0, forced.stderr
    manifest = json.loads(forced.stdout)
    (reason,) = manifest["evidence"]["forced"]
    assert reason.startswith("int8 speed: it takes 1.200 of the float model's time on this machine")
    assert manifest["artifacts"]["int8"]["details"]["gate"]["checks"][1]["verdict"] == "FAIL"
    assert "int8 speed" in next(row for row in invoke("inspect", out).stdout.splitlines() if row.startswith("forced"))


@pytest.mark.parametrize("target", ["host", "arm64", "x86-64", "x86-64-vnni", "any"])
def test_the_target_reaches_the_exporters(target: str, run_folder: Path, tmp_path: Path, exporters: Exporters) -> None:
    """The exporters are asked for the target named, `host` standing for the machine this is."""
    exporters["onnx"].fault = ExportError("enough seen")
    assert invoke("export", run_folder, "-o", tmp_path / "out", "--target", target).exit_code == 2
    (request,) = exporters["onnx"].requests
    assert request.target == (target_of_host() if target == "host" else target)
