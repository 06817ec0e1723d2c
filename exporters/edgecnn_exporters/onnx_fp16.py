"""The fp16 ONNX artifact, for the CUDA provider: half the bytes, and tensor cores where there are any."""

from __future__ import annotations

import msgspec

from edgecnn.errors import ExportError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn_exporters.onnx import INPUT, check_like

_INSTALL = "pip install 'edgecnn[cpu,train]'"


class OnnxFp16Exporter:
    """Converts the fp32 artifact; pixels go in and float32 logits come out as before."""

    name = "onnx-fp16"
    artifact = "fp16"
    needs = ("fp32",)
    requires = {"onnx": _INSTALL, "onnxruntime": _INSTALL}  # noqa: RUF012 -- a constant

    def export(self, request: ExportRequest) -> Exported:
        """Write `fp16.onnx`, judged on the CPU, which computes it in float32 between casts.

        It is for CUDA, and loads anywhere: asked for a CPU's artifacts, it is one for any machine.

        Raises:
            ExportError: there are no images to judge it by, or what was made has another signature.
            QuantizationError: a weight does not fit into float16.
        """
        import onnx

        from edgecnn.quantization.feeds import from_arrays
        from edgecnn.quantization.run import QuantizeOptions, quantize_model
        from edgecnn.quantization.source import read_source

        if not len(request.calibration):
            raise ExportError("fp16 is judged on training images, and the training split gave none")
        calibration = from_arrays({INPUT: request.calibration})
        judged = calibration
        if request.validation is not None and len(request.validation[1]):
            judged = from_arrays({INPUT: request.validation[0]}, request.validation[1])
        options = QuantizeOptions(target="cuda", precision="fp16", tolerance=request.tolerance)
        model, report = quantize_model(
            read_source(request.written["fp32"]), calibration, judged, options, say=request.say
        )
        path = request.folder / "fp16.onnx"
        data = model.SerializeToString()
        check_like(data, onnx.load(str(request.written["fp32"])))
        path.write_bytes(data)
        details = msgspec.to_builtins(report)
        del details["host"], details["decisions"]["flips"]
        target = request.target if request.target in ("cuda", "tensorrt") else "any"
        return Exported(path=path, format="onnx", precision="fp16", target=target, details=details)
