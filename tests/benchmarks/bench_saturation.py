"""What full-range int8 weights do on an x86 CPU without VNNI: predicted layer by layer, then run on an emulated one.

BUNDLE names the bundle, by default the demo's; DATA its images, by default those it was measured on.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from common import demo_bundle, print_machine
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edgecnn.bundle import Bundle
from edgecnn.data.of_bundle import find_test_images
from edgecnn.device.emulate import run_emulated
from edgecnn.errors import EdgecnnError
from edgecnn.metrics import distance
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.saturation import saturation

Pixels = npt.NDArray[np.uint8]
CALIBRATION, JUDGED = 100, 200


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
    """Hands images to ONNX Runtime's calibrator one by one."""

    def __init__(self, name: str, pixels: Pixels) -> None:
        self._feeds = iter([{name: pixels[index : index + 1]} for index in range(len(pixels))])

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next feeds, or None at the end."""
        return next(self._feeds, None)


def quantized(source: Path, path: Path, pixels: Pixels, reduced: bool) -> Path:
    """Quantize to uint8 activations and int8 weights by channel; normalisation, softmax and logits stay in float."""
    model = onnx.load(str(source))
    outside = [node.name for node in model.graph.node if node.op_type in ("Cast", "Sub", "Mul", "Softmax")]
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        str(source), str(path), Reader(model.graph.input[0].name, pixels), quant_format=QuantFormat.QDQ,
        per_channel=True, reduce_range=reduced, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, nodes_to_exclude=outside,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )  # fmt: skip
    return path


def native(path: Path, feeds: dict[str, Pixels]) -> dict[str, Any]:
    """Run a model on this machine's own CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def print_prediction(path: Path, pixels: Pixels) -> None:
    """Print each layer's share of saturated sums, in the order of the graph."""
    model = onnx.load(str(path))
    found = saturation(model, from_arrays({model.graph.input[0].name: pixels}))
    print(f"\n{'layer':<32}{'op':<8}{'pairs':>12}{'saturated':>11}{'%':>8}{'worst':>8}{'SQNR dB':>9}")
    for layer in found:
        sqnr = "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"
        share = f"{100 * layer.fraction:.3f}"
        print(f"{layer.name:<32}{layer.op:<8}{layer.pairs:>12}{layer.saturated:>11}{share:>8}{layer.worst:>8}{sqnr:>9}")


def main() -> None:
    """Quantize the bundle's fp32 net in full and in reduced range, and compare logits with fp32's here."""
    print_machine()
    bundle = Bundle.open(Path(os.environ["BUNDLE"]) if "BUNDLE" in os.environ else demo_bundle())
    images, note = find_test_images(bundle.manifest, os.environ.get("DATA"))
    if images is None:
        raise SystemExit(str(note))
    some = images.take(np.random.default_rng(0).permutation(len(images))[: CALIBRATION + JUDGED])
    calibration, judged = some[:CALIBRATION], some[CALIBRATION:]
    source = bundle.artifact("fp32").path
    feeds = {onnx.load(str(source)).graph.input[0].name: judged}
    logits = next(value.name for value in onnx.load(str(source)).graph.output)
    truth = native(source, feeds)[logits]
    with tempfile.TemporaryDirectory() as folder:
        full = quantized(source, Path(folder) / "full.onnx", calibration, reduced=False)
        reduced = quantized(source, Path(folder) / "reduced.onnx", calibration, reduced=True)
        print_prediction(full, judged)
        print(
            f"\n{f'against fp32, {len(judged)} images':<40}{'SQNR dB':>9}{'top-1 agreement':>17}{'answers changed':>17}"
        )
        precise = {"session.x64quantprecision": "1"}
        sides = {
            "this CPU, full range": lambda: native(full, feeds),
            "this CPU, reduced range": lambda: native(reduced, feeds),
            "Haswell, full range": lambda: run_emulated("Haswell", full, feeds),
            "Haswell, reduced range": lambda: run_emulated("Haswell", reduced, feeds),
            "Haswell, full range, x64quantprecision": lambda: run_emulated("Haswell", full, feeds, precise),
        }
        for name, run in sides.items():
            try:
                found = distance(truth, run()[logits])
            except EdgecnnError as error:
                print(f"{name:<40}not measured: {error}")
                continue
            changed = round((1 - found.top1_agreement) * len(judged))
            sqnr = "exact" if found.sqnr_db is None else f"{found.sqnr_db:.1f}"
            print(f"{name:<40}{sqnr:>9}{100 * found.top1_agreement:>16.2f}%{changed:>17}")


if __name__ == "__main__":
    main()
