"""Preparing models of every kind: held to onnx's own evaluator, numpy and ONNX Runtime, and to planted faults."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantization import zoo
from torch.nn import functional

from edgecnn.errors import QuantizationError
from edgecnn.quantization import prepare, source
from edgecnn.quantization.graph import layers_of, weights_of
from edgecnn.quantization.source import Source, read_source
from edgecnn.quantization.suitable import check_prepared

ROOT = Path(__file__).resolve().parents[2]
OCR = ROOT.parent / "shared" / "models" / "rapidocr_cls.onnx"
# onnx's evaluator has no linear Upsample, no Resize of opset 10, and fails at the batch norm of opset 7.
NOT_EVALUATED = ("upsample", "resize_10", "old_attributes", "weights_as_inputs")


def run(model: onnx.ModelProto, feeds: zoo.Arrays, optimised: bool = True) -> list[npt.NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[npt.NDArray[np.generic]] = session.run(None, feeds)
    return found


def prepared(model: onnx.ModelProto, folder: Path) -> Source:
    return read_source(zoo.save(model, folder / "model.onnx"))


def refused(model: onnx.ModelProto, folder: Path) -> str:
    """Return the message with which a model is refused."""
    with pytest.raises(QuantizationError) as caught:
        prepared(model, folder)
    message = str(caught.value)
    assert message.startswith(str(folder / "model.onnx"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_prepared_model_answers_as_the_original(name: str, tmp_path: Path) -> None:
    """Whatever wrote the model, the prepared one gives what onnx's evaluator makes of the original."""
    original = zoo.ZOO[name]()
    found = prepared(original, tmp_path)
    for batch in (1,) if name == "fixed_batch" else (1, 4):
        feeds = zoo.feeds(original, batch, seed=5)
        if name in NOT_EVALUATED:
            truth = run(original, feeds, optimised=False)
        else:
            truth = ReferenceEvaluator(original).run(None, feeds)
        for wanted, got in zip(truth, run(found.model, feeds), strict=True):
            assert np.abs(wanted).max() > 0.01
            np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max() + 1e-6)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_prepared_model_is_ready_to_quantize(name: str, tmp_path: Path) -> None:
    """One opset, named nodes, weights as float32 initializers and as nothing else, and a shape for every tensor."""
    original = zoo.ZOO[name]()
    found = prepared(original, tmp_path)
    model = found.model
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    operators = Counter(node.op_type for node in model.graph.node)
    assert not {"Constant", "Identity", "Dropout", "Upsample"} & set(operators)
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    weights = weights_of(model)
    assert not {value.name for value in model.graph.input} & set(weights)
    layers = layers_of(model)
    assert len(layers) == operators["Conv"] + operators["ConvTranspose"] + operators["Gemm"] + operators["MatMul"] > 1
    assert all(weights[layer.weight].data_type == TensorProto.FLOAT for layer in layers)
    shaped = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= shaped
    assert found.sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("constants", {"opset 11 converted to 17", "8 constants made weights", "1 Identity removed"}),
        ("old_attributes", {"opset 7 converted to 17", "1 batch norm folded into convolutions", "1 Dropout removed"}),
        ("weights_as_inputs", {"10 weights listed as inputs made constant"}),
        ("batch_norms", {"2 batch norms folded into convolutions"}),
        ("hard_swish_in_parts", {"2 hard swishes put together"}),
        ("dropout", {"1 Dropout and 1 Identity removed"}),
        ("local_function", {"1 function put into the graph"}),
        ("plain", {"8 nodes named"}),
    ],
)
def test_changes_say_what_was_done(name: str, said: set[str], tmp_path: Path) -> None:
    """Each change is told in words, with its number."""
    assert said <= set(prepared(zoo.ZOO[name](), tmp_path).changes)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_ready_model_is_left_alone(name: str, tmp_path: Path) -> None:
    """Preparing what is prepared already changes not a byte, and says so."""
    first = prepared(zoo.ZOO[name](), tmp_path)
    second = prepared(first.model, tmp_path)
    assert not second.changes
    assert second.model.SerializeToString() == first.model.SerializeToString()


def test_a_batch_norm_is_folded_as_by_hand(tmp_path: Path) -> None:
    """The folded weights and bias are what the formula gives in float64, under the name that the weight had."""
    original = zoo.batch_norms()
    before = {name: numpy_helper.to_array(tensor).astype(np.float64) for name, tensor in weights_of(original).items()}
    model = prepared(original, tmp_path).model
    layer = layers_of(model)[0]
    assert (layer.name, layer.weight) == ("one", "one.weight")
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in weights_of(model).items()}
    factor = before["an.scale"] / np.sqrt(before["an.var"] + 1e-5)
    np.testing.assert_allclose(weights["one.weight"], before["one.weight"] * factor[:, None, None, None], rtol=1e-6)
    assert layer.bias is not None
    np.testing.assert_allclose(
        weights[layer.bias], before["an.shift"] - before["an.mean"] * factor, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", ["old_attributes", "weights_as_inputs"])
def test_a_model_of_opset_7_is_what_torch_makes_of_it(name: str, tmp_path: Path) -> None:
    """What opset 7 wrote as attributes means after conversion what the same net in torch computes."""
    original = zoo.ZOO[name]()
    w = {one: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for one, tensor in weights_of(original).items()}
    feeds = zoo.feeds(original, 3)
    x = functional.pad(torch.from_numpy(feeds["image"]), (1, 1, 1, 1), value=0.25)
    x = functional.conv2d(x, w["one.weight"])
    x = functional.batch_norm(x, w["bn.mean"], w["bn.var"], w["bn.scale"], w["bn.shift"], eps=0.001)
    x = x.clamp(0, 6)[:, :, :, 1:-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    left, right = functional.conv2d(x, w["two.weight"], w["two.bias"], stride=2).split(4, 1)
    x = (left + right + left).mean((2, 3))
    wanted = functional.linear(x, w["head.weight"], w["head.bias"]).softmax(1)
    np.testing.assert_allclose(run(prepared(original, tmp_path).model, feeds)[0], wanted.numpy(), atol=1e-5)


def test_a_linear_upsample_keeps_its_old_coordinates(tmp_path: Path) -> None:
    """Before opset 11 a doubled row is each value, then the mean of it and the next, and so it stays."""
    weights = zoo.Weights()
    weights["one"] = np.ones((1, 1, 1, 1), dtype=np.float32)
    weights["scales"] = np.array([1, 1, 1, 2], dtype=np.float32)
    graph = """net (float[1,1,1,4] image) => (float[1,1,1,8] wide) {
        a = Conv(image, one)
        wide = Upsample<mode="linear">(a, scales)
    }"""
    model = prepared(zoo.build(graph, weights, opset=9, ir=4), tmp_path).model
    row = np.array([1, 5, 2, 4], dtype=np.float32).reshape(1, 1, 1, 4)
    assert run(model, {"image": row})[0].ravel().tolist() == [1, 3, 5, 3.5, 2, 3, 4, 4]


def test_preparing_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    """What is kept by a hash of the model can be found again: weights come as they are used, attributes by name."""
    first, second = (prepared(zoo.depthwise(), tmp_path).model for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    used = [name for node in first.graph.node for name in node.input]
    order = [used.index(tensor.name) for tensor in first.graph.initializer]
    assert order == sorted(order)
    for node in first.graph.node:
        names = [entry.name for entry in node.attribute]
        assert names == sorted(names)


def test_notes_in_the_file_are_kept(tmp_path: Path) -> None:
    """The model's metadata and producer come through; what its nodes note of the machine that exported them does not."""
    original = zoo.nhwc_uint8()
    original.graph.node[4].doc_string = "/somewhere/net.py:12"
    helper.set_model_props(original.graph.node[4], {"pkg.torch.onnx.stack_trace": "/somewhere/net.py:12"})
    original.producer_name, original.producer_version = "edgecnn", "3"
    model = prepared(original, tmp_path).model
    assert {entry.key for entry in model.metadata_props} == {"edgecnn.preprocess", "edgecnn.labels"}
    assert (model.producer_name, model.producer_version) == ("edgecnn", "3")
    assert b"somewhere" in original.SerializeToString()
    assert b"somewhere" not in model.SerializeToString()


@pytest.mark.skipif(not OCR.exists() and not os.environ.get("CI"), reason="the model is not beside the repository")
def test_a_real_classifier_from_somewhere_else(tmp_path: Path) -> None:
    """A PaddlePaddle export of opset 11 without one initializer comes out with weights, folded, and answers the same."""
    found = read_source(OCR)
    operators = Counter(node.op_type for node in found.model.graph.node)
    assert found.sha256 == hashlib.sha256(OCR.read_bytes()).hexdigest()
    assert {"opset 11 converted to 17", "308 constants made weights", "35 batch norms folded into convolutions"} <= set(found.changes)  # fmt: skip
    assert (operators["Conv"], operators["HardSwish"], operators["BatchNormalization"]) == (53, 18, 0)
    assert len(layers_of(found.model)) == 54
    assert "conv1_weights" in weights_of(found.model)
    original = onnx.load(str(OCR))
    for batch, size in ((1, (48, 192)), (3, (32, 100))):
        feeds = {"x": np.random.default_rng(1).normal(size=(batch, 3, *size)).astype(np.float32)}
        wanted, got = run(original, feeds, optimised=False)[0], run(found.model, feeds)[0]
        assert wanted.shape == (batch, 2)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def corrupt(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change one value of one weight by a tenth."""
    tensor = next(one for one in model.graph.initializer if one.name == "one.weight")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[7] *= 1.1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("step", prepare.STEPS)
def test_a_step_that_corrupts_one_weight_is_caught_and_named(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 216 weights off by a tenth after any step is refused, and the message names that step."""
    honest = prepare.STEPS[step]
    monkeypatch.setitem(prepare.STEPS, step, lambda model: corrupt(honest(model)))
    assert f": {step} changes its outputs by" in refused(zoo.plain(), tmp_path)


def test_the_converters_own_fault_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself onnx's converter gives a linear Upsample new coordinates; the comparison sees that."""
    monkeypatch.setattr(prepare, "_keep_old_resize", lambda model: None)
    assert ": converting the opset changes its outputs by" in refused(zoo.upsample(), tmp_path)


def test_a_step_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that gives up leaves one line with the step and the reason."""

    def fail(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter\nfor Foo")

    monkeypatch.setattr(prepare.version_converter, "convert_version", fail)
    assert "converting the opset failed (no adapter for Foo)" in refused(zoo.resize_11(), tmp_path)


def test_an_opset_high_enough_stays_where_it_cannot_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opset 13 knows per-channel quantization already, so a converter that gives up does not matter."""

    def fail(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter")

    model = zoo.plain()
    model.opset_import[0].version = 13
    monkeypatch.setattr(prepare.version_converter, "convert_version", fail)
    assert [entry.version for entry in prepared(model, tmp_path).model.opset_import] == [13]


def test_an_operator_that_the_folding_puts_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the folding to use operators that only ONNX Runtime knows, that would be an error, not a model."""
    level = onnxruntime.GraphOptimizationLevel
    monkeypatch.setattr(level, "ORT_ENABLE_BASIC", level.ORT_ENABLE_ALL)
    assert "folding failed (ONNX Runtime put in operators of com.microsoft" in refused(zoo.plain(), tmp_path)


def with_node(model: onnx.ModelProto, op: str, **attributes: int) -> onnx.ModelProto:
    """Add an operator behind the first output."""
    output = model.graph.output[0].name
    model.graph.node.append(helper.make_node(op, [output], ["more"], **attributes))
    model.graph.output.append(helper.make_empty_tensor_value_info("more"))
    return model


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["scores", "step"], ["codes"]))
    model.graph.output.append(helper.make_empty_tensor_value_info("codes"))
    return model


def perceptron(model: onnx.ModelProto) -> onnx.ModelProto:
    weights = zoo.Weights().normal("w", 4, 5)
    return zoo.build("net (float[N,5] x) => (float[N,4] y) { y = Gemm<transB=1>(x, w) }", weights)


def cast_to(kind: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Make every weight, input and output of another float type."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    return change


def spoil(value: float) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        values = numpy_helper.to_array(model.graph.initializer[0]).copy()
        values.flat[0] = value
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
        return model

    return change


def train_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    model = zoo.batch_norms()
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["m", "v"])
    return model


def old_train_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    model = zoo.old_attributes()
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.output.extend(["m", "v", "sm", "sv"])
    return model


def train_dropout(model: onnx.ModelProto) -> onnx.ModelProto:
    model = zoo.dropout()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    next(node for node in model.graph.node if node.op_type == "Dropout").input.append("training")
    return model


def dead_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a batch norm a variance that is negative: its weights are numbers until they are folded."""
    model = zoo.batch_norms()
    tensor = next(one for one in model.graph.initializer if one.name == "an.var")
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return model


def branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the whole net into both branches of an If whose condition is an input."""
    model = zoo.plain()
    inner = helper.make_graph(list(model.graph.node), "branch", [], [model.graph.output[0]])
    del model.graph.node[:]
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["chosen"], name="choice", then_branch=inner, else_branch=inner)
    )
    model.graph.output[0].name = "chosen"
    return model


def free_kernel(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = "net (float[N,3,12,12] image, float[8,3,3,3] kernel) => (float[N,8,10,10] y) { y = Conv(image, kernel) }"
    return zoo.build(graph, {})


def foreign(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with_node(model, "Rotate").graph.node[-1].domain = "acme"
    return model


def of_opset(version: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        model.opset_import[0].version = version
        return model

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (perceptron, "no CNN: not one of its 1 operators is a convolution"),
        (quantized, "is quantized already (QuantizeLinear); give the float model"),
        (cast_to(TensorProto.FLOAT16), "computes in float16 (Conv reads image); give the float32 model"),
        (cast_to(TensorProto.DOUBLE), "computes in float64 (Conv reads image); give the float32 model"),
        (spoil(np.nan), "one.weight holds NaN or infinity"),
        (spoil(np.inf), "one.weight holds NaN or infinity"),
        (train_norm, "BatchNormalization is in training mode"),
        (old_train_norm, "BatchNormalization is in training mode"),
        (train_dropout, "Dropout is in training mode"),
        (dead_norm, "its outputs are not finite on any random input"),
        (branch, "4 convolutions lie inside If"),
        (free_kernel, "its convolutions compute their weights from the input"),
        (foreign, "it has operators that are not ONNX's: acme.Rotate"),
        (of_opset(6), "is of opset 6; export it with opset 7 or newer"),
        (of_opset(99), "ONNX Runtime does not load it"),
        (lambda model: onnx.ModelProto(), "holds no graph"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_refused(
    change: Callable[[onnx.ModelProto], onnx.ModelProto], said: str, tmp_path: Path
) -> None:
    """Each kind of model that cannot be quantized is refused in one line that says why."""
    assert said in refused(change(zoo.plain()), tmp_path)


def test_weights_that_folding_makes_infinite_are_refused() -> None:
    """A layer whose weights are no numbers is refused after folding too, where activations may hide it."""
    with pytest.raises(QuantizationError, match=r"one\.weight of .* holds NaN or infinity after folding"):
        check_prepared(spoil(np.inf)(zoo.plain()), "model")
    check_prepared(zoo.plain(), "model")


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_truncated_files_are_refused(cut: int, tmp_path: Path) -> None:
    """A file that lacks its end is refused, however much of it there is."""
    data = zoo.plain().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[:-cut])
    with pytest.raises(QuantizationError, match="not an ONNX file, or a truncated one"):
        read_source(path)


@pytest.mark.parametrize("data", [b"", b"hello world, this is no protobuf", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    """Files of other kinds, and empty ones, are refused."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(QuantizationError, match=r"not an ONNX file|holds no graph"):
        read_source(path)
    with pytest.raises(QuantizationError, match="cannot be read"):
        read_source(tmp_path / "absent.onnx")


def test_weights_beside_the_file_are_read_into_the_model(tmp_path: Path) -> None:
    """A model with its weights in a second file comes out whole, and its hash covers both files."""
    original = zoo.batch_norms()
    path = zoo.save(zoo.batch_norms(), tmp_path / "model.onnx", "model.bin")
    assert all(
        one.data_location == TensorProto.EXTERNAL for one in onnx.load(path, load_external_data=False).graph.initializer
    )
    found = read_source(path)
    assert "model.bin read into the model" in found.changes
    assert not any(one.data_location == TensorProto.EXTERNAL for one in found.model.graph.initializer)
    feeds = zoo.feeds(original)
    (wanted,) = ReferenceEvaluator(original).run(None, feeds)
    np.testing.assert_allclose(run(found.model, feeds)[0], wanted, atol=1e-5)
    data = (tmp_path / "model.bin").read_bytes()
    assert found.sha256 == hashlib.sha256(path.read_bytes() + data).hexdigest()
    (tmp_path / "model.bin").write_bytes(data[:-4] + b"\0\0\0\0")
    assert read_source(path).sha256 != found.sha256


@pytest.mark.parametrize("place", ["../model.bin", "absolute", "inner/../../model.bin", ""])
def test_weights_outside_the_folder_are_not_read(place: str, tmp_path: Path) -> None:
    """A location that leaves the model's folder is refused, although the file is there and would fit."""
    folder = tmp_path / "inner"
    folder.mkdir()
    path = zoo.save(zoo.plain(), folder / "model.onnx", "model.bin")
    (folder / "model.bin").rename(tmp_path / "model.bin")
    move(path, str(tmp_path / "model.bin") if place == "absolute" else place)
    with pytest.raises(QuantizationError, match="not a file inside its own folder"):
        read_source(path)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_links_out_of_the_folder_are_not_followed(linked: str, tmp_path: Path) -> None:
    """A link inside the folder that points elsewhere is refused, be it the file or a folder on the way."""
    folder = tmp_path / "inner"
    folder.mkdir()
    path = zoo.save(zoo.plain(), folder / "model.onnx", "model.bin")
    (folder / "model.bin").rename(tmp_path / "model.bin")
    if linked == "file":
        (folder / "model.bin").symlink_to(tmp_path / "model.bin")
    else:
        (folder / "more").symlink_to(tmp_path)
        move(path, "more/model.bin")
    with pytest.raises(QuantizationError, match="not a file inside its own folder"):
        read_source(path)


def move(path: Path, place: str) -> None:
    """Rewrite where a model says that its weights are."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())


def test_missing_and_short_weight_files_are_refused(tmp_path: Path) -> None:
    """A weight file that is missing, or lacks its end, is named."""
    path = zoo.save(zoo.plain(), tmp_path / "model.onnx", "model.bin")
    file = tmp_path / "model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(QuantizationError, match=r"cannot be read from model\.bin"):
        read_source(path)
    file.unlink()
    with pytest.raises(QuantizationError, match=r"model\.bin, which is missing"):
        read_source(path)


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    """Reading writes nothing beside the model nor into it."""
    path = zoo.save(zoo.constants(), tmp_path / "model.onnx")
    before = path.read_bytes()
    read_source(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_comparison_of_nothing_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers under other output names, or in another shape, is no equal."""
    answers = source._run_original(zoo.plain().SerializeToString(), zoo.plain(), tmp_path)
    assert len(answers) == 4
    assert source.difference(answers, zoo.plain().SerializeToString()) == 0
    renamed = zoo.plain()
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "other"
    assert source.difference(answers, renamed.SerializeToString()) == np.inf
    longer = zoo.plain()
    longer.graph.node[-1].output[0] = "inner"
    longer.graph.node.append(helper.make_node("Concat", ["inner", "inner"], ["scores"], axis=1))
    longer.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    assert source.difference(answers, longer.SerializeToString()) == np.inf


@pytest.mark.parametrize(("kernel", "pads", "becomes"), [((6, 5), (0, 0, 0, 0), "GlobalAveragePool"), ((3, 5), (0, 0, 0, 0), "AveragePool"), ((6, 5), (1, 0, 1, 0), "AveragePool")])  # fmt: skip
def test_an_average_over_the_whole_plane_is_made_global(
    kernel: tuple[int, int], pads: tuple[int, ...], becomes: str, tmp_path: Path
) -> None:
    """An AveragePool whose only window is the plane becomes GlobalAveragePool, which the change says; others stay."""
    make = onnx.helper
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = make.make_graph(
        [
            make.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            make.make_node("AveragePool", ["c"], ["y"], kernel_shape=kernel, pads=pads),
        ],
        "g",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 6, 5])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    source = read_source(tmp_path / "net.onnx")
    assert source.model.graph.node[-1].op_type == becomes
    assert any("made global" in change for change in source.changes) == (becomes == "GlobalAveragePool")
