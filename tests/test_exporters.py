"""The ONNX artifacts, read back with onnx, its evaluator, ONNX Runtime and torch, none of them through edgecnn."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from steady import layers_in_float, steady_races

from edgecnn.bundle import Bundle
from edgecnn.errors import CheckpointError, ExportError, UsageError, VerdictError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.quantization import run
from edgecnn.quantization.fusion import prove_fusion
from edgecnn.quantization.gate import judge
from edgecnn.quantization.recipe import Recipe
from edgecnn.spec import Preprocess, Target, Tolerance
from edgecnn_exporters.onnx import OnnxExporter, check_like, check_signature
from edgecnn_exporters.onnx_fp16 import OnnxFp16Exporter
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter

OPSETS = (18, 21)
TARGETS: tuple[Target, ...] = ("any", "x86-64", "x86-64-vnni", "arm64")
CONVOLUTIONS = 2  # of the fixture's network: two widths, depth 1
LAYERS = CONVOLUTIONS + 1
LOOSE = Tolerance(max_drop=0.9)  # the goldens are few, and what a small net loses is not what these tests are about


@pytest.fixture(scope="module")
def checkpoint(run_folder: Path) -> Path:
    return run_folder / "model.safetensors"


@pytest.fixture(scope="module")
def pixels(bundle_folder: Path) -> npt.NDArray[np.uint8]:
    """Return digits and images of noise, some of them at the ends of the range."""
    noise = np.random.default_rng(3).integers(0, 256, (14, 8, 8, 1), dtype=np.uint8)
    ends = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])
    return np.concatenate([Bundle.open(bundle_folder).goldens().pixels, noise, ends])


@pytest.fixture(scope="module")
def calibration(bundle_folder: Path) -> npt.NDArray[np.uint8]:
    return Bundle.open(bundle_folder).goldens().pixels


@pytest.fixture(scope="module")
def preprocess(bundle_folder: Path) -> Preprocess:
    return Bundle.open(bundle_folder).manifest.preprocess


@pytest.fixture(scope="module")
def exports(
    checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Exported]:
    """Export the network once for each opset."""
    made = {}
    for opset in OPSETS:
        folder = tmp_path_factory.mktemp(f"opset{opset}")
        request = ExportRequest(checkpoint=checkpoint, folder=folder, calibration=calibration, opset=opset)
        made[opset] = OnnxExporter().export(request)
    return made


@pytest.fixture(params=OPSETS)
def exported(request: pytest.FixtureRequest, exports: dict[int, Exported]) -> Exported:
    return exports[request.param]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def logits_of(path: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = session(path).run(["logits"], {"image": pixels})[0]
    return logits


def torch_logits(
    run: Path, preprocess: Preprocess, pixels: npt.NDArray[np.uint8], dtype: torch.dtype
) -> npt.NDArray[np.floating]:
    """Evaluate the network in torch, with the normalisation written out."""
    from edgecnn.training.checkpoint import load_checkpoint

    net = load_checkpoint(run).build().to(dtype)
    x = (torch.from_numpy(pixels).to(dtype) - preprocess.zero_point) * preprocess.scale
    with torch.inference_mode():
        logits: npt.NDArray[np.floating] = net(x.permute(0, 3, 1, 2)).numpy()
    return logits


def test_the_opset_is_the_one_asked_for(exports: dict[int, Exported]) -> None:
    """The file itself declares the opset that was asked for, in the default domain and no other."""
    for opset, one in exports.items():
        model = onnx.load(str(one.path))
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}
        assert one.details["opset"] == opset
        assert one.details["nodes"] == len(model.graph.node)
        assert one.details["ir_version"] == model.ir_version


@pytest.mark.parametrize("opset", [17, 13, 1, -1])
def test_an_opset_below_eighteen_is_refused(
    opset: int, checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    """An opset that torch's exporter only reaches by a lossy conversion is refused, and nothing is written."""
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, opset=opset)
    with pytest.raises(ExportError, match=f"opset {opset} cannot be exported faithfully"):
        OnnxExporter().export(request)
    assert not list(tmp_path.iterdir())


def test_an_opset_of_zero_is_refused(checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """Opset 0, which was asked for, is not taken for none."""
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, opset=0)
    with pytest.raises(ExportError, match="opset 0"):
        OnnxExporter().export(request)


def test_an_opset_that_is_not_emitted_is_an_error(
    checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    """Where the exporter quietly emits another opset than asked for, nothing is written."""
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, opset=99)
    with pytest.raises(ExportError, match="99"):
        OnnxExporter().export(request)
    assert not list(tmp_path.iterdir())


def test_one_file_holds_everything(exported: Exported) -> None:
    """The export is a single file that loads from its bytes alone, with no weights outside it."""
    assert [path.name for path in exported.path.parent.iterdir()] == ["fp32.onnx"]
    model = onnx.load_model_from_string(exported.path.read_bytes())
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.initializer
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    onnxruntime.InferenceSession(exported.path.read_bytes(), providers=["CPUExecutionProvider"])
    assert (exported.format, exported.precision, exported.target) == ("onnx", "fp32", "any")


def test_the_signature_is_pixels_in_logits_and_probabilities_out(exported: Exported) -> None:
    """The input is uint8 NHWC and both outputs are float32, each with a named batch dimension."""
    opened = session(exported.path)
    (image,) = opened.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [8, 8, 1])
    assert [(value.name, value.type, value.shape[1:]) for value in opened.get_outputs()] == [
        ("logits", "tensor(float)", [10]),
        ("probabilities", "tensor(float)", [10]),
    ]
    batches = {value.shape[0] for value in (image, *opened.get_outputs())}
    assert len(batches) == 1
    assert isinstance(batches.pop(), str)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_the_batch_is_free(exported: Exported, pixels: npt.NDArray[np.uint8], batch: int) -> None:
    """Any batch size runs, and gives the rows that the images give alone."""
    rows = logits_of(exported.path, pixels[:batch])
    assert rows.shape == (batch, 10)
    alone = np.concatenate([logits_of(exported.path, pixels[row : row + 1]) for row in range(batch)])
    np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_the_logits_are_torchs(
    exported: Exported, run_folder: Path, preprocess: Preprocess, pixels: npt.NDArray[np.uint8]
) -> None:
    """The error against torch in float64 is of the size of torch float32's own."""
    exact = torch_logits(run_folder, preprocess, pixels, torch.float64)
    noise = np.abs(torch_logits(run_folder, preprocess, pixels, torch.float32) - exact).max()
    error = np.abs(logits_of(exported.path, pixels) - exact).max()
    assert 0 < noise < 1e-3
    assert error < 16 * noise


def test_the_logits_are_those_of_onnxs_evaluator(exported: Exported, pixels: npt.NDArray[np.uint8]) -> None:
    """ONNX Runtime and the standard's own evaluator agree on the file, and probabilities are a softmax."""
    logits, probabilities = ReferenceEvaluator(str(exported.path)).run(None, {"image": pixels})
    np.testing.assert_allclose(logits_of(exported.path, pixels), logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_nothing_of_training_is_left(exported: Exported) -> None:
    """Batch norm is folded, dropout is gone, and convolutions are as many as in the network."""
    operators = Counter(node.op_type for node in onnx.load(str(exported.path)).graph.node)
    assert not {"BatchNormalization", "Dropout"} & set(operators)
    assert operators["Conv"] == CONVOLUTIONS
    assert operators["ReduceMean"] == 0  # which ONNX Runtime does not quantize


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_the_file_says_what_it_is(exported: Exported, preprocess: Preprocess) -> None:
    """Labels and preprocessing are in the file's metadata and nothing else is."""
    found = properties(exported.path)
    assert set(found) == {"edgecnn.labels", "edgecnn.preprocess"}
    assert json.loads(found["edgecnn.labels"]) == [str(digit) for digit in range(10)]
    told = json.loads(found["edgecnn.preprocess"])
    assert told == {
        "height": 8, "width": 8, "channels": 1, "fit": "stretch", "background": 255,
        "scale": preprocess.scale, "zero_point": preprocess.zero_point,
    }  # fmt: skip
    assert onnx.load(str(exported.path)).producer_name == "edgecnn"


LEAKS = (
    b"/edgecnn/",
    b"site-packages",
    b".py",
    str(Path(__file__).resolve().parents[1]).encode(),
    str(Path.home()).encode(),
    b"/home/",
    b"/tmp/",
    b"torch.nn",
    b"forward",
    b"pkg.torch",
)


def test_nothing_of_this_machine_is_in_the_file(exported: Exported, int8: Int8) -> None:
    """Neither path nor line of source code of the exporting machine is in the bytes of any artifact."""
    for path in (exported.path, int8("any", False).path, int8("any", True).path):
        data = path.read_bytes()
        leaks = [leak for leak in (*LEAKS, str(Path.cwd()).encode(), str(path.parent).encode()) if leak in data]
        assert not leaks
        model = onnx.load_model_from_string(data)
        values = (
            *model.graph.node,
            *model.graph.input,
            *model.graph.output,
            *model.graph.value_info,
            *model.graph.initializer,
        )
        assert not any(value.doc_string or value.metadata_props for value in values)


def test_exporting_again_gives_the_same_file_in_silence(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No opset asked for means 18, the bytes are those of another export of it, and nothing is printed."""
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration)
    assert OnnxExporter().export(request).path.read_bytes() == exports[18].path.read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("exporter", [OnnxInt8Exporter(), OnnxFp16Exporter()], ids=["int8", "fp16"])
def test_quantizing_is_silent(
    exporter: OnnxInt8Exporter | OnnxFp16Exporter, request_for: RequestFor, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the quantizer has to say about itself stays off stdout and stderr, progress is told, and one file is left."""
    told: list[str] = []
    request = request_for(say=told.append)
    exporter.export(request)
    assert capfd.readouterr() == ("", "")
    assert told
    assert [path.name for path in request.folder.iterdir()] == [f"{exporter.artifact}.onnx"]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"], ids=["missing", "empty", "foreign"])
def test_a_bad_checkpoint_is_refused(content: bytes | None, calibration: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """A checkpoint that is missing or not one is named, and nothing is written."""
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        OnnxExporter().export(ExportRequest(checkpoint=path, folder=tmp_path, calibration=calibration))
    assert not list(tmp_path.glob("*.onnx"))


def test_weights_that_are_not_finite_are_refused(
    checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    """A NaN among the weights stops the export."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    weights = load_file(checkpoint)
    weights["head.bias"][3] = np.nan
    with safe_open(checkpoint, "numpy") as opened:
        save_file(weights, tmp_path / "bad.safetensors", metadata=opened.metadata())
    request = ExportRequest(checkpoint=tmp_path / "bad.safetensors", folder=tmp_path, calibration=calibration)
    with pytest.raises(CheckpointError, match=r"not finite in head\.bias"):
        OnnxExporter().export(request)
    assert not list(tmp_path.glob("*.onnx"))


def change_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def change_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "scores"


def change_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def change_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def add_batch_norm(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("BatchNormalization", ["a", "b", "c", "d", "e"], ["f"]))


def move_weights_out(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_batch, "signature"),
        (change_name, "scores"),
        (change_dtype, "signature"),
        (change_opset, "emitted 19"),
        (add_batch_norm, "BatchNormalization"),
        (move_weights_out, "outside the file"),
        (drop_output, "signature"),
    ],
)
def test_an_export_that_is_not_what_was_asked_for_is_refused(
    change: Callable[[onnx.ModelProto], None], told: str, exports: dict[int, Exported]
) -> None:
    """A fixed batch, another name, dtype or opset, weights elsewhere or training's operators are each an ExportError."""
    model = onnx.load(str(exports[18].path))
    check_signature(model, 18, (8, 8, 1), 10)
    change(model)
    with pytest.raises(ExportError, match=told):
        check_signature(model, 18, (8, 8, 1), 10)


Int8 = Callable[[Target, bool], Exported]


class RequestFor(Protocol):
    """Makes a request to quantize the fp32 export, into a folder of its own unless told where."""

    def __call__(self, **changes: Any) -> ExportRequest: ...


@pytest.fixture(scope="module")
def request_for(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> RequestFor:
    def make(**changes: Any) -> ExportRequest:
        request = ExportRequest(
            checkpoint=checkpoint,
            folder=tmp_path_factory.mktemp("quantized"),
            calibration=calibration,
            written={"fp32": exports[18].path},
            tolerance=LOOSE,
        )
        return dataclasses.replace(request, **changes)

    return make


@pytest.fixture(scope="module")
def int8(request_for: RequestFor) -> Int8:
    """Return what quantizes for a target, once, with the first convolution in int8 or, as that is faster, in float."""
    made: dict[tuple[str, bool], Exported] = {}

    def export(target: Target, first_in_float: bool) -> Exported:
        key = (target, first_in_float)
        if key not in made:
            with steady_races(in_float=(0,) if first_in_float else (), host=target):
                made[key] = OnnxInt8Exporter().export(request_for(target=target))
        return made[key]

    return export


def weights_in_int8(path: Path) -> list[npt.NDArray[np.int8]]:
    """Collect every int8 initializer that a convolution or the last layer multiplies with."""
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = [
        arrays[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays
    ]
    return [array for array in found if array.dtype == np.int8]


@pytest.mark.parametrize("first_in_float", [False, True], ids=["int8 first", "float first"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_range_of_weights_is_the_targets(target: Target, first_in_float: bool, int8: Int8) -> None:
    """Seven bits where x86 without VNNI may run it, so that 16 bit sums cannot saturate, and eight bits elsewhere."""
    one = int8(target, first_in_float)
    largest = [int(np.abs(array.astype(int)).max()) for array in weights_in_int8(one.path)]
    assert len(largest) == LAYERS - first_in_float
    if target in ("any", "x86-64"):
        assert max(largest) <= 64
        assert one.details["recipe"]["reduced_range"] is True
    else:
        assert min(largest) == max(largest) == 127
        assert one.details["recipe"]["reduced_range"] is False
    assert (one.target, one.precision, one.format) == (target, "int8", "onnx")


@pytest.mark.parametrize("first_in_float", [False, True], ids=["int8 first", "float first"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_convolution_meant_to_be_int8_is_fused(
    target: Target, first_in_float: bool, int8: Int8, tmp_path: Path
) -> None:
    """In the graph that ONNX Runtime really runs, all convolutions but the float one are QLinearConv."""
    one = int8(target, first_in_float)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(one.path), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    in_float = operators["Conv"] + operators["FusedConv"] + operators["NchwcConv"]
    assert operators["QLinearConv"] == CONVOLUTIONS - first_in_float
    assert in_float == first_in_float
    assert operators["QGemm"] == 1
    told = one.details["fusion"]
    assert [layer["int8"] for layer in told["layers"]] == [not first_in_float, True, True]
    assert [layer["op"] for layer in told["layers"]] == ["Conv", "Conv", "Gemm"]
    assert told["layers"][0]["why"] == ("left in float on purpose" if first_in_float else None)
    assert told["operators"] == dict(operators)


@pytest.mark.parametrize("target", TARGETS)
def test_pixels_are_the_first_quantized_tensor(target: Target, int8: Int8, preprocess: Preprocess) -> None:
    """Int8 throughout: the uint8 image goes into DequantizeLinear with the normalisation's own scale and zero point."""
    graph = onnx.load(str(int8(target, False).path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    (conv,) = [node for node in graph.node if node.op_type == "Conv"][:1]
    dequantize = makers[conv.input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    scale, zero_point = (arrays[name] for name in dequantize.input[1:3])
    assert (scale.dtype, scale.shape) == (np.float32, ())
    assert scale == np.float32(preprocess.scale)
    assert (zero_point.dtype, zero_point.shape) == (np.uint8, ())
    assert zero_point == preprocess.zero_point
    transpose = makers[dequantize.input[0]]
    assert (transpose.op_type, list(transpose.input)) == ("Transpose", ["image"])
    assert list(transpose.attribute[0].ints) == [0, 3, 1, 2]
    assert sum("image" in node.input for node in graph.node) == 1
    assert not {"Cast", "Sub", "Mul"} & {node.op_type for node in graph.node}


@pytest.mark.parametrize("target", TARGETS)
def test_a_first_convolution_in_float_reads_pixels_too(target: Target, int8: Int8, preprocess: Preprocess) -> None:
    """Float first: the image is dequantized by the normalisation's scale for each row, and the weights are as exported.

    With a single scale ONNX Runtime would round those weights itself.
    """
    graph = onnx.load(str(int8(target, True).path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    assert arrays[conv.input[1]].dtype == np.float32
    dequantize = makers[conv.input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    assert [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"] == [2]
    np.testing.assert_array_equal(arrays[dequantize.input[1]], np.full(8, preprocess.scale, np.float32))
    np.testing.assert_array_equal(arrays[dequantize.input[2]], np.full(8, preprocess.zero_point, np.uint8))
    transpose = makers[dequantize.input[0]]
    assert (transpose.op_type, list(transpose.input)) == ("Transpose", ["image"])
    (activation,) = [node for node in graph.node if conv.output[0] in node.input]
    assert activation.op_type == "Relu"


@pytest.mark.parametrize("first_in_float", [False, True], ids=["int8 first", "float first"])
@pytest.mark.parametrize("target", TARGETS)
def test_int8_is_near_float32_by_the_standards_own_evaluator(
    target: Target, first_in_float: bool, int8: Int8, exports: dict[int, Exported], pixels: npt.NDArray[np.uint8]
) -> None:
    """By exact arithmetic, in which nothing saturates, quantization costs at most a tenth of the signal."""
    model = onnx.version_converter.convert_version(onnx.load(str(int8(target, first_in_float).path)), 19)
    logits = ReferenceEvaluator(model).run(["logits"], {"image": pixels})[0]
    exact = ReferenceEvaluator(str(exports[18].path)).run(["logits"], {"image": pixels})[0]
    error = np.sqrt(np.square(logits - exact).mean() / np.square(exact).mean())
    assert 0 < error < 0.1
    assert (logits[:32].argmax(1) == exact[:32].argmax(1)).mean() > 0.9


@pytest.mark.parametrize("target", ["any", "x86-64"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_int8_of_reduced_range_runs_exactly_anywhere(
    target: Target, batch: int, int8: Int8, pixels: npt.NDArray[np.uint8]
) -> None:
    """With seven-bit weights ONNX Runtime's answer on this CPU is the evaluator's, to one step of the output or two."""
    path = int8(target, False).path
    model = onnx.version_converter.convert_version(onnx.load(str(path)), 19)
    exact = ReferenceEvaluator(model).run(["logits"], {"image": pixels[:batch]})[0]
    np.testing.assert_allclose(logits_of(path, pixels[:batch]), exact, rtol=0, atol=0.02 * np.abs(exact).max())


def test_the_last_layers_output_stays_float(int8: Int8) -> None:
    """The logits are not quantized, which would clip them to the range seen in calibration."""
    for first_in_float in (False, True):
        graph = onnx.load(str(int8("any", first_in_float).path)).graph
        maker = next(node for node in graph.node if "logits" in node.output)
        assert maker.op_type in ("Gemm", "MatMul", "Add")
        assert next(node for node in graph.node if "probabilities" in node.output).op_type == "Softmax"


def test_int8_keeps_signature_opset_and_metadata(int8: Int8, exports: dict[int, Exported]) -> None:
    """The int8 file has the inputs, outputs, opset and metadata of the fp32 file that it was made from."""
    source = onnx.load(str(exports[18].path))
    for first_in_float in (False, True):
        path = int8("any", first_in_float).path
        model = onnx.load(str(path))
        assert properties(path) == properties(exports[18].path)
        assert list(model.graph.input) == list(source.graph.input)
        assert [value.name for value in model.graph.output] == [value.name for value in source.graph.output]
        assert {entry.version for entry in model.opset_import if not entry.domain} == {18}
        assert session(path).get_inputs()[0].shape[1:] == [8, 8, 1]
        assert isinstance(session(path).get_inputs()[0].shape[0], str)
        assert [file.name for file in path.parent.iterdir()] == ["int8.onnx"]


def as_json(details: dict[str, Any]) -> dict[str, Any]:
    """Give an account as the manifest holds it."""
    found: dict[str, Any] = json.loads(json.dumps(details))
    return found


@pytest.mark.parametrize(("others", "level"), [(0.7, True), (0.815, True), (0.82, False), (0.9, False)])
def test_layers_stay_float_where_that_pays(others: float, level: bool, request_for: RequestFor) -> None:
    """Of placements that cost no more than two percent of the fastest, int8 at 0.8, the most accurate for its size is taken.

    A dB is worth two percent of the smallest file.
    """
    with steady_races(slow=others):
        search = as_json(OnnxInt8Exporter().export(request_for()).details)["search"]
    smallest = min(one["bytes"] for one in search["tried"])
    worth = {one["sqnr_db"] - (one["bytes"] / smallest - 1) / 0.02: one for one in search["tried"]}
    everything = min(search["tried"], key=lambda one: one["sqnr_db"])  # all layers in int8
    assert search["chosen"] == (worth[max(worth)] if level else everything)
    assert (search["chosen"]["floats"] == []) is not level


@pytest.mark.parametrize("first_in_float", [False, True])
def test_the_details_say_which_placement_was_taken(first_in_float: bool, int8: Int8) -> None:
    """The manifest's details hold the recipe, the measurements of what is worth choosing, and the choice."""
    one = int8("any", first_in_float)
    details = as_json(one.details)
    first = onnx.load(str(one.path)).graph.node
    conv = next(node.name for node in first if node.op_type == "Conv")
    assert details["recipe"] == {"activations": "uint8", "reduced_range": True, "integer_bias": True}
    assert (details["calibration_images"], details["evaluated_on"]) == (32, "the float model's own answers")
    assert details["search"]["chosen"]["floats"] == ([conv] if first_in_float else [])
    assert details["rungs"][details["best"]]["floats"] == details["search"]["chosen"]["floats"]
    assert layers_in_float(onnx.load(str(one.path))) == ((0,) if first_in_float else ())
    assert details["bytes"] == one.path.stat().st_size
    assert [check["what"] for check in details["gate"]["checks"]] == ["accuracy", "speed", "size"]
    assert details["forced"] == []


def test_the_details_hold_the_front_of_the_placements(int8: Int8) -> None:
    """Of the placements measured, those are kept that no other one beats in latency, error and size at once."""
    search = int8("any", False).details["search"]  # where what is faster and what is more exact are not the same
    kept = search["tried"]
    costs = [(one["speed"]["ratio"], -one["sqnr_db"], one["bytes"]) for one in kept]
    assert search["measured"] >= 5  # of three layers: none, the ends in all combinations, the middle one
    assert 1 < len(kept) <= search["measured"]
    assert all(one["front"] for one in kept)
    assert search["chosen"] in kept
    for cost in costs:
        assert not any(other != cost and np.less_equal(other, cost).all() for other in costs)


def test_a_whole_climb_fits_into_the_manifest(request_for: RequestFor) -> None:
    """Every rung that was climbed is told, without its list of single answers, in less than 200 kB."""
    noise = np.random.default_rng(9).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    request = request_for(tolerance=Tolerance(max_drop=1e-9), target="x86-64", calibration=noise)
    with steady_races(in_float=(0,), host="x86-64"):
        details = OnnxInt8Exporter().export(request).details
    rungs = details["rungs"]
    names = [rung["name"] for rung in rungs]
    assert (names[0], names[-1]) == ("min-max", "QAT")
    assert {"entropy", "percentile", "mse", "bias correction", "equalization"} < set(names)
    assert rungs[-1]["note"] == "no training images were given"
    climbed = [rung for rung in rungs if rung["decisions"] is not None]
    assert len(climbed) > 4
    assert all(rung["decisions"]["n"] == 300 and rung["sqnr_db"] > 10 for rung in climbed)
    assert not any("flips" in rung["decisions"] for rung in climbed)
    assert rungs[details["best"]] in climbed
    assert len(details["saturation"]) == LAYERS - 1
    assert 2000 < len(json.dumps(details)) < 200_000


def test_weights_have_a_scale_for_each_channel(int8: Int8) -> None:
    """Every convolution's weights are quantized with one scale for each of its filters."""
    graph = onnx.load(str(int8("arm64", False).path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == CONVOLUTIONS
    for node in convolutions:
        dequantize = makers[node.input[1]]
        assert arrays[dequantize.input[1]].shape == (arrays[dequantize.input[0]].shape[0],)


@pytest.mark.usefixtures("steady")
def test_every_calibration_image_is_used(
    exports: dict[int, Exported], request_for: RequestFor, pixels: npt.NDArray[np.uint8]
) -> None:
    """A tensor's range is what it takes over all images, by the standard's evaluator, though the last alone has it."""
    many = np.concatenate([*[pixels[:32] // 8 + 100] * 2, pixels[:6] // 8 + 100])  # more than two batches
    many[-1] = pixels[-1] // 2 + np.arange(8, dtype=np.uint8)[:, None, None] * 16  # and the last is the loudest
    model = onnx.load(str(exports[18].path))
    relu = next(node for node in model.graph.node if node.op_type == "Relu").output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(relu, onnx.TensorProto.FLOAT, None))
    (seen,) = ReferenceEvaluator(model).run([relu], {"image": many})
    assert seen[-1].max() > 1.1 * seen[:-1].max()
    graph = onnx.load(str(OnnxInt8Exporter().export(request_for(calibration=many)).path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    quantizer = next(
        node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == conv.output[0]
    )
    scale, zero_point = (arrays[name] for name in quantizer.input[1:3])
    assert zero_point == 0
    np.testing.assert_allclose(scale * 255, seen.max(), rtol=1e-5)


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


def test_fusion_is_read_from_the_optimised_graph(exports: dict[int, Exported]) -> None:
    """A float32 file has no layer in int8, and every convolution and the last layer in float."""
    found = prove_fusion(onnx.load(str(exports[18].path)))
    assert [layer.int8 for layer in found.layers] == [False] * LAYERS
    assert found.operators.get("QLinearConv", 0) == 0
    assert (found.count("Conv", int8=False), found.count("Conv", int8=True)) == (CONVOLUTIONS, 0)


@pytest.mark.usefixtures("steady")
def test_fp32_at_opset_21_can_be_quantized_too(exports: dict[int, Exported], request_for: RequestFor) -> None:
    """The int8 artifact of a newer opset keeps that opset and fuses as well."""
    one = OnnxInt8Exporter().export(request_for(opset=21, written={"fp32": exports[21].path}))
    assert {entry.version for entry in onnx.load(str(one.path)).opset_import if not entry.domain} == {21}
    assert [layer["int8"] for layer in one.details["fusion"]["layers"]] == [True] * LAYERS


def test_another_targets_placement_is_decided_by_error_alone(request_for: RequestFor) -> None:
    """What this machine's clock says does not decide for a target that it is not, and the details say so."""
    found = {}
    for target in ("x86-64", "any"):
        with steady_races(host="arm64"):
            one = OnnxInt8Exporter().export(request_for(target=target))
        found[target] = (layers_in_float(onnx.load(str(one.path))), one.details)
    floats, details = found["x86-64"]
    assert floats == (0,)
    assert details["search"]["reason"].startswith("by error alone")
    assert details["speed"] is details["search"]["chosen"]["speed"] is None
    assert "this machine is arm64" in details["gate"]["checks"][1]["reason"]
    floats, details = found["any"]
    assert floats == ()
    assert details["search"]["chosen"]["speed"]["ratio"] == 0.8


def test_a_net_of_one_convolution_is_quantized(tmp_path: Path, calibration: npt.NDArray[np.uint8]) -> None:
    """Where a convolution and the last layer are all there is both can be in int8, and the file is smaller all the same."""
    from edgecnn.nets import build_net
    from edgecnn.nets.compact import compact_config
    from edgecnn.training.checkpoint import Header, save_checkpoint

    torch.manual_seed(0)
    preprocess = Preprocess(height=8, width=8, channels=1, scale=0.01, zero_point=78)
    model = compact_config((8,), depth=1)
    net = build_net(model, preprocess, 3).eval()
    file = tmp_path / "one.safetensors"
    save_checkpoint(file, net, Header(model=model, preprocess=preprocess, labels=("a", "b", "c")))
    request = ExportRequest(checkpoint=file, folder=tmp_path, calibration=calibration, tolerance=LOOSE)
    written = {"fp32": OnnxExporter().export(request).path}
    with steady_races():
        one = OnnxInt8Exporter().export(dataclasses.replace(request, written=written))
    assert layers_in_float(onnx.load(str(one.path))) == ()
    assert [layer["int8"] for layer in one.details["fusion"]["layers"]] == [True, True]
    assert one.path.stat().st_size < written["fp32"].stat().st_size


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


def test_tensorrt_gets_symmetric_int8(
    request_for: RequestFor, exports: dict[int, Exported], pixels: npt.NDArray[np.uint8]
) -> None:
    """For TensorRT every zero point is an int8 zero, weights have eight bits, biases are float, and answers are right."""
    with steady_races(host="x86-64-vnni"):
        one = OnnxInt8Exporter().export(request_for(target="tensorrt"))
    assert (one.target, one.precision) == ("tensorrt", "int8")
    assert one.details["fusion"] is None  # ONNX Runtime's CPU kernels prove nothing for it
    model = onnx.load(str(one.path))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 2 * LAYERS
    for node in pairs:
        zero_point = arrays[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    in_float = layers_in_float(model)  # chosen by error alone, since no clock of this machine counts
    assert len(layers) == LAYERS
    assert len(in_float) <= 1
    for number, node in enumerate(layers):
        if number in in_float:
            continue
        assert arrays[node.input[2]].dtype == np.float32
        assert np.abs(arrays[makers[node.input[1]].input[0]].astype(int)).max() == 127
    converted = onnx.version_converter.convert_version(model, 19)
    logits = ReferenceEvaluator(converted).run(["logits"], {"image": pixels[:32]})[0]
    exact = ReferenceEvaluator(str(exports[18].path)).run(["logits"], {"image": pixels[:32]})[0]
    assert 0 < np.sqrt(np.square(logits - exact).mean() / np.square(exact).mean()) < 0.1


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


@pytest.mark.usefixtures("steady")
def test_images_that_are_never_black_nor_white_are_no_obstacle(
    request_for: RequestFor, exports: dict[int, Exported], calibration: npt.NDArray[np.uint8], preprocess: Preprocess
) -> None:
    """Calibration on dull images leaves every convolution in int8, and the first one's bias on the image's own scale."""
    dull = (calibration // 3 + 60).astype(np.uint8)
    one = OnnxInt8Exporter().export(request_for(calibration=dull))
    assert [layer["int8"] for layer in one.details["fusion"]["layers"]] == [True] * LAYERS
    model = onnx.load(one.path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    bias, weight = makers[first.input[2]], makers[first.input[1]]
    assert np.array_equal(arrays[bias.input[1]], np.float32(preprocess.scale) * arrays[weight.input[1]])
    exact = onnx.load(exports[18].path)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    wanted = floats[next(node for node in exact.graph.node if node.op_type == "Conv").input[2]]
    assert np.allclose(arrays[bias.input[0]] * arrays[bias.input[1]], wanted, atol=2 * arrays[bias.input[1]].max())
