"""The int8 file for each target: its graph, what is fused in it, and its answers by the standard's own evaluator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from exporters.made import CONVOLUTIONS, LAYERS, TARGETS, Int8, RequestFor, logits_of, properties, session
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from steady import layers_in_float, steady_races

from edgecnn.exporter import Exported
from edgecnn.quantization.fusion import prove_fusion
from edgecnn.spec import Preprocess, Target
from edgecnn_exporters.onnx_fp16 import OnnxFp16Exporter
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter


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
