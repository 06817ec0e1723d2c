"""The ONNX artifacts, read back with onnx, its evaluator, ONNX Runtime and torch, none of them through edgecnn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn.bundle import Bundle
from edgecnn.errors import CheckpointError, ExportError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.spec import Preprocess, Target
from edgecnn_exporters import onnx_int8
from edgecnn_exporters.fusion import fusion_report
from edgecnn_exporters.onnx import OnnxExporter, check_signature
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter

OPSETS = (18, 21)
TARGETS: tuple[Target, ...] = ("any", "x86-64", "x86-64-vnni", "arm64")
CONVOLUTIONS = 2  # of the fixture's network: two widths, depth 1


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


def test_quantizing_is_silent(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What the quantizer has to say about itself stays off stdout and stderr, and one file is left."""
    monkeypatch.setattr(onnx_int8, "measure_latency", stopwatch(200.0))
    written = {"fp32": exports[18].path}
    OnnxInt8Exporter().export(
        ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, written=written)
    )
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


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


def stopwatch(float_first_us: float) -> Callable[..., dict[str, SimpleNamespace]]:
    """Make a latency measurement that finds 100 us for int8 throughout and as told for the first layer in float."""

    def measure(sessions: Mapping[str, Any], feeds: Any, seconds: float) -> dict[str, SimpleNamespace]:
        assert set(sessions) == {"False", "True"}
        return {"False": SimpleNamespace(p50_us=100.0), "True": SimpleNamespace(p50_us=float_first_us)}

    return measure


@pytest.fixture(scope="module")
def int8(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> Int8:
    """Return what quantizes for a target, once, with the first convolution in int8 or, as that is cheaper, in float."""
    made: dict[tuple[str, bool], Exported] = {}

    def export(target: Target, first_in_float: bool) -> Exported:
        key = (target, first_in_float)
        if key not in made:
            request = ExportRequest(
                checkpoint=checkpoint,
                folder=tmp_path_factory.mktemp("int8"),
                calibration=calibration,
                target=target,
                written={"fp32": exports[18].path},
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(onnx_int8, "measure_latency", stopwatch(90.0 if first_in_float else 200.0))
                patch.setattr(onnx_int8, "target_of_host", lambda: target)
                made[key] = OnnxInt8Exporter().export(request)
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
    assert len(largest) == CONVOLUTIONS + 1 - first_in_float
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
    told = one.details["fusion"]
    assert (told["fused_convolutions"], told["float_convolutions"]) == (CONVOLUTIONS - first_in_float, in_float)
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
def test_a_first_convolution_in_float_keeps_its_normalisation(target: Target, int8: Int8) -> None:
    """Float first: the image is cast and normalised in float, and neither it nor the weights are quantized before."""
    graph = onnx.load(str(int8(target, True).path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    assert arrays[conv.input[1]].dtype == np.float32
    name, chain = conv.input[0], []
    while name in makers:
        chain.append(makers[name].op_type)
        name = makers[name].input[0]
    assert name == "image"
    assert sorted(chain) == ["Cast", "Mul", "Sub", "Transpose"]
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


@pytest.mark.parametrize(
    ("float_first_us", "chosen"), [(50.0, True), (100.0, True), (103.0, True), (103.5, False), (200.0, False)]
)
def test_the_first_convolution_stays_float_where_that_pays(
    float_first_us: float, chosen: bool, exports: dict[int, Exported], int8: Int8
) -> None:
    """The more accurate placement is taken as long as it costs no more than three percent."""
    measured = int8("any", False).details["placements"]
    assert [row["first_convolution_in_float"] for row in measured] == [False, True]
    assert measured[1]["sqnr_db"] > measured[0]["sqnr_db"]
    rows = [{**measured[0], "p50_us": 100.0}, {**measured[1], "p50_us": float_first_us}]
    assert onnx_int8._float_first_pays(rows) is chosen
    worse = [rows[0], {**rows[1], "sqnr_db": rows[0]["sqnr_db"] - 1}]
    assert onnx_int8._float_first_pays(worse) is False
    assert onnx_int8._float_first_pays(rows, timed=False) is True
    assert onnx_int8._float_first_pays(worse, timed=False) is False


@pytest.mark.parametrize("first_in_float", [False, True])
def test_the_details_say_which_placement_was_taken(first_in_float: bool, int8: Int8) -> None:
    """The manifest's details hold the recipe, both measurements and the choice."""
    details = int8("any", first_in_float).details
    assert details["first_convolution_in_float"] is first_in_float
    assert details["recipe"] == {
        "format": "QDQ", "activations": "uint8", "weights": "int8 per channel", "reduced_range": True,
        "calibration": "min-max", "calibration_images": 32,
    }  # fmt: skip
    json.dumps(details)


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


def test_every_calibration_image_is_used(exports: dict[int, Exported], pixels: npt.NDArray[np.uint8]) -> None:
    """The reader hands out each calibration image once, in order, in batches, and then nothing more."""
    many = np.concatenate([pixels, pixels[::-1]])[:70]
    reader = onnx_int8._Reader(many)
    batches = []
    while (batch := reader.get_next()) is not None:
        assert list(batch) == ["image"]
        batches.append(batch["image"])
    assert [len(batch) for batch in batches] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate(batches), many)
    assert reader.get_next() is None


def test_no_calibration_images_is_an_error(exports: dict[int, Exported], checkpoint: Path, tmp_path: Path) -> None:
    """Without a calibration image there is no int8, and nothing is written."""
    none = np.zeros((0, 8, 8, 1), dtype=np.uint8)
    request = ExportRequest(
        checkpoint=checkpoint, folder=tmp_path, calibration=none, written={"fp32": exports[18].path}
    )
    with pytest.raises(ExportError, match="calibration"):
        OnnxInt8Exporter().export(request)
    assert not list(tmp_path.iterdir())


def test_int8_that_does_not_fuse_is_refused(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file in which ONNX Runtime leaves a convolution in float is refused, with the counts."""

    def unfused(path: Path) -> dict[str, Any]:
        return {**fusion_report(path), "fused_convolutions": 1}

    monkeypatch.setattr(onnx_int8, "measure_latency", stopwatch(200.0))
    monkeypatch.setattr(onnx_int8, "fusion_report", unfused)
    written = {"fp32": exports[18].path}
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, written=written)
    with pytest.raises(ExportError, match="only 1 of 2 convolutions"):
        OnnxInt8Exporter().export(request)


def test_fusion_is_read_from_the_optimised_graph(exports: dict[int, Exported]) -> None:
    """A float32 file has no fused int8 convolution and all of its convolutions in float."""
    found = fusion_report(exports[18].path)
    assert found["fused_convolutions"] == 0
    assert found["operators"].get("QLinearConv", 0) == 0
    assert found["float_convolutions"] == CONVOLUTIONS


def test_fp32_at_opset_21_can_be_quantized_too(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The int8 artifact of a newer opset keeps that opset and fuses as well."""
    monkeypatch.setattr(onnx_int8, "measure_latency", stopwatch(200.0))
    written = {"fp32": exports[21].path}
    request = ExportRequest(checkpoint=checkpoint, folder=tmp_path, calibration=calibration, opset=21, written=written)
    one = OnnxInt8Exporter().export(request)
    assert {entry.version for entry in onnx.load(str(one.path)).opset_import if not entry.domain} == {21}
    assert one.details["fusion"]["fused_convolutions"] == CONVOLUTIONS


def test_another_targets_placement_is_decided_by_error_alone(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What this machine's clock says does not decide for a target that it is not, and the details say so."""
    monkeypatch.setattr(onnx_int8, "measure_latency", stopwatch(200.0))
    monkeypatch.setattr(onnx_int8, "target_of_host", lambda: "x86-64")
    written = {"fp32": exports[18].path}
    found = {}
    for target in ("arm64", "any"):
        folder = tmp_path / target
        folder.mkdir()
        request = ExportRequest(
            checkpoint=checkpoint, folder=folder, calibration=calibration, target=target, written=written
        )
        found[target] = OnnxInt8Exporter().export(request).details
    assert found["arm64"]["first_convolution_in_float"] is True
    assert found["arm64"]["placed_by"].startswith("error alone")
    assert found["any"]["first_convolution_in_float"] is False
    assert found["any"]["placed_by"] == "error and latency"


def test_a_net_of_one_convolution_has_it_in_int8(tmp_path: Path, calibration: npt.NDArray[np.uint8]) -> None:
    """Of a single convolution none is left in float, for nothing would be left in int8."""
    import torch

    from edgecnn.nets import build_net
    from edgecnn.nets.compact import compact_config
    from edgecnn.training.checkpoint import Header, save_checkpoint

    torch.manual_seed(0)
    preprocess = Preprocess(height=8, width=8, channels=1, scale=0.01, zero_point=78)
    model = compact_config((8,), depth=1)
    net = build_net(model, preprocess, 3).eval()
    file = tmp_path / "one.safetensors"
    save_checkpoint(file, net, Header(model=model, preprocess=preprocess, labels=("a", "b", "c")))
    request = ExportRequest(checkpoint=file, folder=tmp_path, calibration=calibration)
    written = {"fp32": OnnxExporter().export(request).path}
    request = ExportRequest(checkpoint=file, folder=tmp_path, calibration=calibration, written=written)
    details = OnnxInt8Exporter().export(request).details
    assert details["first_convolution_in_float"] is False
    assert details["fusion"]["fused_convolutions"] == 1
    assert details["opset"] == 18


def test_images_that_are_never_black_nor_white_are_no_obstacle(
    checkpoint: Path, calibration: npt.NDArray[np.uint8], preprocess: Preprocess, tmp_path: Path
) -> None:
    """Calibration on dull images leaves every convolution in int8, and the first one's bias on the image's own scale."""
    dull = (calibration // 3 + 60).astype(np.uint8)
    folder = tmp_path / "fp32"
    folder.mkdir()
    OnnxExporter().export(ExportRequest(checkpoint=checkpoint, folder=folder, calibration=dull))
    path = tmp_path / "int8.onnx"
    onnx_int8.quantize(folder / "fp32.onnx", path, dull, preprocess, True, False)
    assert fusion_report(path)["fused_convolutions"] == CONVOLUTIONS
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    bias, weight = makers[first.input[2]], makers[first.input[1]]
    assert np.array_equal(arrays[bias.input[1]], np.float32(preprocess.scale) * arrays[weight.input[1]])
    exact = onnx.load(folder / "fp32.onnx")
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    wanted = floats[next(node for node in exact.graph.node if node.op_type == "Conv").input[2]]
    assert np.allclose(arrays[bias.input[0]] * arrays[bias.input[1]], wanted, atol=2 * arrays[bias.input[1]].max())
