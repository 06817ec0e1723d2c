"""The int8 ONNX artifact: static QDQ by ONNX Runtime, by the recipe for the target, with the proof that it fuses."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.bench.latency import measure_latency
from edgecnn.errors import ExportError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.host import target_of_host
from edgecnn.images import Pixels
from edgecnn.metrics import distance
from edgecnn.spec import Artifact, BackendRef, Preprocess, Target
from edgecnn_exporters.fusion import fusion_report
from edgecnn_exporters.onnx import INPUT, check_signature

if TYPE_CHECKING:
    import onnx

_INSTALL = "pip install 'edgecnn[cpu,train]'"
# 16 bit sums of uint8 x int8 products saturate on x86 without VNNI; seven-bit weights cannot reach that.
REDUCED_RANGE_TARGETS = ("any", "x86-64")
CALIBRATION_BATCH = 32
JUDGED = 64  # calibration images on which the two placements of the first convolution are compared
# Where the first convolution in float lowers the error, it may cost this much latency.
FLOAT_FIRST_MAY_COST = 1.03


class OnnxInt8Exporter:
    """Quantizes the fp32 artifact; the last layer's output, and where it pays the first convolution, stay float."""

    name = "onnx-int8"
    artifact = "int8"
    needs = ("fp32",)
    requires = {"onnx": _INSTALL, "onnxruntime": _INSTALL}  # noqa: RUF012 -- a constant

    def export(self, request: ExportRequest) -> Exported:
        """Write `int8.onnx`.

        Raises:
            ExportError: there are no calibration images, or no convolution runs in int8 in the optimised graph.
        """
        import msgspec
        import onnx

        if not len(request.calibration):
            raise ExportError("int8 needs calibration images, and the training split gave none")
        source = request.written["fp32"]
        model = onnx.load(str(source))
        properties = {entry.key: entry.value for entry in model.metadata_props}
        preprocess = msgspec.json.decode(properties["edgecnn.preprocess"], type=Preprocess)
        reduced = request.target in REDUCED_RANGE_TARGETS
        variants = {}
        convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
        # A net of one convolution would have nothing left in int8.
        for first_in_float in (False, True) if convolutions > 1 else (False,):
            path = request.folder / f".int8-{'float' if first_in_float else 'int8'}-first.onnx"
            quantize(source, path, request.calibration, preprocess, reduced, first_in_float)
            variants[first_in_float] = path
        measured = _compare(source, variants, request.calibration[:JUDGED], request.target)
        timed = request.target in ("any", target_of_host())
        first_in_float = convolutions > 1 and _float_first_pays(measured, timed)
        path = request.folder / "int8.onnx"
        variants.pop(first_in_float).replace(path)
        for other in variants.values():
            other.unlink()
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        classes = len(json.loads(properties["edgecnn.labels"]))
        check_signature(onnx.load(str(path)), opset, preprocess.shape, classes)
        fusion = fusion_report(path)
        wanted = convolutions - first_in_float
        if not wanted or fusion["fused_convolutions"] < wanted:
            raise ExportError(
                f"int8: only {fusion['fused_convolutions']} of {wanted} convolutions run in int8 in ONNX Runtime's "
                f"optimised graph ({fusion['operators']}); this file would be slower than fp32"
            )
        details = {
            "recipe": {
                "format": "QDQ",
                "activations": "uint8",
                "weights": "int8 per channel",
                "reduced_range": reduced,
                "calibration": "min-max",
                "calibration_images": len(request.calibration),
            },
            "first_convolution_in_float": first_in_float,
            "placements": measured,
            "placed_by": "error and latency" if timed else "error alone: the target is not this machine",
            "opset": opset,
            "fusion": fusion,
        }
        return Exported(path=path, format="onnx", precision="int8", target=request.target, details=details)


def quantize(
    source: Path, path: Path, calibration: Pixels, preprocess: Preprocess, reduced: bool, first_in_float: bool
) -> None:
    """Quantize one ONNX file written by `OnnxExporter` into `path`."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(str(source))
    normalisation = {"Cast", "Sub", "Mul", "Softmax"}
    float_nodes = [node.name for node in model.graph.node if node.op_type in normalisation]
    if first_in_float:
        first = next(node for node in model.graph.node if node.op_type == "Conv")
        # Its activation too: left alone it would get a quantizer of its own, over a range half of which it cuts off.
        float_nodes += [first.name, *(node.name for node in model.graph.node if node.input[0] == first.output[0])]
    with _quiet():
        quantize_static(
            str(source),
            str(path),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float_nodes,
            # The logits would otherwise be clipped to the calibrated range, which is most of int8's error.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    quantized = onnx.load(str(path))
    if not first_in_float:
        _feed_pixels(quantized, preprocess)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.producer_name = "edgecnn"
    onnx.checker.check_model(quantized, full_check=True)
    path.write_bytes(quantized.SerializeToString())


def _feed_pixels(model: onnx.ModelProto, preprocess: Preprocess) -> None:
    """Make the uint8 image itself the first quantized tensor.

    Normalisation is `scale * (pixel - zero_point)`, which is what DequantizeLinear computes. So the chain
    Cast, Sub, Mul, Transpose, QuantizeLinear, DequantizeLinear becomes Transpose, DequantizeLinear: no rounding
    and no float tensor on the way in. It takes 0.85 of the time (tests/benchmarks/bench_pixels.py).

    Only for a first convolution that is quantized itself. Before one in float it would make ONNX Runtime take
    DequantizeLinear, Conv, QuantizeLinear for a quantized convolution and round the weights itself, per tensor.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    transpose = next(node for node in graph.node if node.op_type == "Transpose")
    readers = {name: node for node in graph.node for name in node.input}
    last = transpose
    while (following := readers.get(last.output[0])) is not None and following.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
    ):
        last = following
    normalised = last.output[0]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(preprocess.scale, dtype=np.float32), "image_scale"),
            numpy_helper.from_array(np.array(preprocess.zero_point, dtype=np.uint8), "image_zero_point"),
        ]
    )
    head = [
        helper.make_node("Transpose", [INPUT], ["image_planes"], name="image_transpose", perm=[0, 3, 1, 2]),
        helper.make_node(
            "DequantizeLinear",
            ["image_planes", "image_scale", "image_zero_point"],
            ["image_normalised"],
            name="image_dequantize",
        ),
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == normalised:
                node.input[index] = "image_normalised"
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend(head + body)
    _rescale_bias(model, preprocess.scale)
    _remove_dead(model)


def _rescale_bias(model: onnx.ModelProto, image_scale: float) -> None:
    """Give the first convolution's bias the scale of the image times the weights'.

    It was quantized for the scale that calibration found, which is another where no calibration image reaches from
    black to white; ONNX Runtime fuses a convolution only if the two agree, and leaves it in float if not.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[0] != "image_normalised" or len(node.input) < 3:
            continue
        bias, weight = makers[node.input[2]], makers[node.input[1]]
        levels, old = (numpy_helper.to_array(weights[name]) for name in bias.input[:2])
        scale = (np.float32(image_scale) * numpy_helper.to_array(weights[weight.input[1]])).astype(np.float32)
        again = np.rint(levels.astype(np.float64) * old / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        for name, array in ((bias.input[0], again), (bias.input[1], scale)):
            weights[name].CopyFrom(numpy_helper.from_array(array, name))


def _remove_dead(model: onnx.ModelProto) -> None:
    """Remove nodes and weights that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]


def _compare(source: Path, variants: dict[bool, Path], pixels: Pixels, target: Target) -> list[dict[str, Any]]:
    """Measure error against fp32 and latency of both placements, interleaved, on this machine."""
    from edgecnn.backends.base import open_session

    ref = BackendRef(backend="onnxruntime")
    with open_session(ref, Artifact(name="fp32", format="onnx", path=source)) as session:
        truth = session.run({INPUT: pixels})["logits"]
    artifacts = {
        first: Artifact(name="int8", format="onnx", path=path, target=target) for first, path in variants.items()
    }
    with contextlib.ExitStack() as stack:
        sessions = {str(first): stack.enter_context(open_session(ref, one)) for first, one in artifacts.items()}
        latencies = measure_latency(sessions, {INPUT: pixels[:1]}, seconds=0.5)
        return [
            {
                "first_convolution_in_float": first,
                "sqnr_db": distance(truth, sessions[str(first)].run({INPUT: pixels})["logits"]).sqnr_db,
                "p50_us": latencies[str(first)].p50_us,
            }
            for first in artifacts
        ]


def _float_first_pays(measured: list[dict[str, Any]], timed: bool = True) -> bool:
    """Decide by error, and by latency too where it was measured on the target."""
    quantized, floating = measured
    better = (floating["sqnr_db"] or math.inf) > (quantized["sqnr_db"] or math.inf)
    return better and (not timed or bool(floating["p50_us"] <= FLOAT_FIRST_MAY_COST * quantized["p50_us"]))


class _Reader:
    """Hands calibration batches to ONNX Runtime's calibrator."""

    def __init__(self, pixels: Pixels) -> None:
        starts = range(0, len(pixels), CALIBRATION_BATCH)
        self._batches: Iterator[Pixels] = (pixels[start : start + CALIBRATION_BATCH] for start in starts)

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next feeds, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's advice to preprocess a model that torch's exporter has folded already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
