"""The float32 file, read back with onnx, its evaluator, ONNX Runtime and torch, none of them through edgecnn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from exporters.made import (
    CONVOLUTIONS,
    Int8,
    change_batch,
    change_dtype,
    change_name,
    change_opset,
    drop_output,
    logits_of,
    properties,
    session,
)
from onnx.reference import ReferenceEvaluator

from edgecnn.errors import CheckpointError, ExportError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.spec import Preprocess
from edgecnn_exporters.onnx import OnnxExporter, check_signature


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
    str(Path(__file__).resolve().parents[2]).encode(),
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


def add_batch_norm(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("BatchNormalization", ["a", "b", "c", "d", "e"], ["f"]))


def move_weights_out(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


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
