"""The int8 ONNX artifact: quantized by the recipe for the target, placed by measurement, with the proof that it fuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edgecnn.errors import ExportError, UsageError, VerdictError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.parity import Verdict
from edgecnn_exporters.onnx import INPUT, check_like

if TYPE_CHECKING:
    from edgecnn.quantization.fusion import Fusion
    from edgecnn.quantization.gate import Gate
    from edgecnn.quantization.run import Report

_INSTALL = "pip install 'edgecnn[cpu,train]'"


class OnnxInt8Exporter:
    """Quantizes the fp32 artifact as `edgecnn quantize` does; layers stay in float where that pays."""

    name = "onnx-int8"
    artifact = "int8"
    needs = ("fp32",)
    requires = {"onnx": _INSTALL, "onnxruntime": _INSTALL}  # noqa: RUF012 -- a constant

    def export(self, request: ExportRequest) -> Exported:
        """Write `int8.onnx`.

        The ladder climbs by the request's validation images, or by the calibration images without them; test images
        judge later, when the bundle is checked.

        Raises:
            UsageError: the target is CUDA.
            ExportError: there are no calibration images, or not every layer meant to be int8 is.
            VerdictError: it is not faster where its target is this machine, or not smaller, and not forced.
        """
        import onnx

        from edgecnn.quantization.feeds import from_arrays
        from edgecnn.quantization.run import QuantizeOptions, quantize_model
        from edgecnn.quantization.source import read_source

        if request.target == "cuda":
            raise UsageError(
                "--target cuda: ONNX Runtime's CUDA provider has no int8 convolutions; use --exporter onnx --exporter "
                "onnx-fp16, or --target tensorrt"
            )
        if not len(request.calibration):
            raise ExportError("int8 needs calibration images, and the training split gave none")
        source = read_source(request.written["fp32"])
        calibration = from_arrays({INPUT: request.calibration})
        judged = calibration
        if request.validation is not None and len(request.validation[1]):
            judged = from_arrays({INPUT: request.validation[0]}, request.validation[1])
        options = QuantizeOptions(target=request.target, precision="mixed", tolerance=request.tolerance)
        train = None
        if request.train is not None and len(request.train[1]):
            train = from_arrays({INPUT: request.train[0]}, request.train[1])
        model, report = quantize_model(source, calibration, judged, options, train=train, say=request.say)
        if report.fusion is not None:
            check_fusion(report.fusion, set(report.rungs[report.best].floats))
        refused = refusals(report.gate)
        if refused and not request.force:
            raise VerdictError(
                f"int8 for {request.target} does not pay: {'; '.join(refused)}; leave it out by --exporter onnx, or "
                "--force it"
            )
        path = request.folder / "int8.onnx"
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString()
        check_like(data, onnx.load(str(request.written["fp32"])))
        path.write_bytes(data)
        details = {**_details(report), "forced": refused}
        return Exported(path=path, format="onnx", precision="int8", target=request.target, details=details)


def refusals(gate: Gate) -> list[str]:
    """Say, one sentence each, what forbids to write the file: that it is not faster, or not smaller.

    Accuracy is judged on test images, when the bundle is checked.
    """
    bad = (Verdict.FAIL, Verdict.INCONCLUSIVE)
    return [f"{one.what}: {one.reason}" for one in gate.checks if one.what != "accuracy" and one.verdict in bad]


def check_fusion(fusion: Fusion, floats: set[str]) -> None:
    """See that every layer meant to be int8 runs in int8.

    Raises:
        ExportError: one does not, or none is meant to; the message says which and why.
    """
    stayed = [layer for layer in fusion.layers if not layer.int8 and layer.node not in floats]
    if stayed or not any(layer.int8 for layer in fusion.layers):
        fused = sum(layer.int8 for layer in fusion.layers)
        reasons = "; ".join(f"{layer.name}: {layer.why}" for layer in stayed) or "none is meant to"
        raise ExportError(
            f"int8: only {fused} of {fused + len(stayed)} layers run in int8 in ONNX Runtime's optimised graph "
            f"({reasons}); this file would be slower than fp32"
        )


def _details(report: Report) -> dict[str, Any]:
    """Give the account for the manifest: all that was measured, of the placements those on the front."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    search = found["search"]
    if search is not None:
        search["measured"] = len(search["tried"])
        search["tried"] = [one for one in search["tried"] if one["front"]]
    for rung in found["rungs"]:
        if rung["decisions"] is not None:
            del rung["decisions"]["flips"]
    del found["decisions"]  # the best rung's
    del found["host"]  # the bundle's own
    return found
