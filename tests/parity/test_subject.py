"""What a check is of: signatures as ONNX Runtime reads them, precision, artifacts by name or path, and files that are no models."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from parity.fakes import chain_file, half_file, int8_file, specs, unsorted
from quantization import graphs, small

from edgecnn.errors import BackendError, ContractError, EdgecnnError, UsageError
from edgecnn.parity.subject import Subject, answer_size, is_model, load_model, model_artifact
from edgecnn.spec import BackendRef

VALUE = helper.make_tensor_value_info


def written(path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any]) -> Path:
    """Write a model of nodes without weights."""
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path.write_bytes(model.SerializeToString())
    return path


def noted(folder: Path, key: str, value: str) -> Path:
    """Write the chain with a note in it."""
    model = small.chain()
    helper.set_model_props(model, {key: value})
    path = folder / "noted.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_is_described_as_onnx_runtime_reads_it(tmp_path: Path) -> None:
    """Names, shapes and types are ONNX Runtime's own, weights that are listed as inputs are none, and the hash is the file's."""
    model = small.chain()
    weight = model.graph.initializer[0]
    model.graph.input.append(VALUE(weight.name, TensorProto.FLOAT, list(weight.dims)))
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    subject = Subject.of_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, told in ((subject.inputs, session.get_inputs()), (subject.outputs, session.get_outputs())):
        assert [one.name for one in found] == [one.name for one in told]
        shapes = [tuple(size if isinstance(size, int) else None for size in one.shape) for one in told]
        assert [one.shape for one in found] == shapes
        assert {one.dtype for one in found} == {"float32"}
    assert subject.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (subject.name, subject.answer, answer_size(subject)) == ("net.onnx", "y", small.CLASSES)


def test_without_onnx_the_runtime_reads_the_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a box without the package onnx the same inputs and outputs are found by ONNX Runtime."""
    path = chain_file(tmp_path)
    before = Subject.of_model(path)
    module = import_module("edgecnn.parity.subject")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    after = Subject.of_model(path)
    assert (after.inputs, after.outputs, after.answer) == (before.inputs, before.outputs, before.answer)
    assert model_artifact(int8_file(tmp_path)).precision == "int8"


def test_the_answer_is_the_first_float_output(tmp_path: Path) -> None:
    """Of an integer and a float output the float one is judged, wherever it stands."""
    nodes = [helper.make_node("ArgMax", ["x"], ["class"], axis=1), helper.make_node("Relu", ["x"], ["score"])]
    outputs = [VALUE("class", TensorProto.INT64, ["n", 1]), VALUE("score", TensorProto.FLOAT, ["n", 4])]
    path = written(tmp_path / "two.onnx", nodes, [VALUE("x", TensorProto.FLOAT, ["n", 4])], outputs)
    assert Subject.of_model(path).answer == "score"


@pytest.mark.parametrize(
    ("note", "labels"),
    [('["a","b","c","d"]', ("a", "b", "c", "d")), ("[1, 2]", None), ("not json", None), ("[]", None)],
)
def test_labels_are_taken_from_the_files_note(note: str, labels: tuple[str, ...] | None, tmp_path: Path) -> None:
    """Labels noted at export name the classes; a note that is none, and labels of another number, leave numbers."""
    subject = Subject.of_model(noted(tmp_path, "edgecnn.labels", note))
    assert subject.labels == labels
    assert subject.classes(4) == (labels or ("0", "1", "2", "3"))
    assert subject.classes(3) == ("0", "1", "2")


def autocast_file(folder: Path) -> Path:
    """Write a net whose weights are float32 and whose product is of float16."""
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "half"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [VALUE(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    return written(folder / "autocast.onnx", nodes, values[:1], values[1:])


@pytest.mark.parametrize(
    ("make", "precision"),
    [(chain_file, "fp32"), (int8_file, "int8"), (half_file, "fp16"), (autocast_file, "fp16")],
    ids=["float32", "int8", "float16", "casts alone"],
)
def test_precision_is_read_off_the_graph(make: Any, precision: str, tmp_path: Path) -> None:
    """Quantizers make int8, weights, constants or casts of float16 make fp16, whatever the file is called."""
    path = make(tmp_path).rename(tmp_path / "net-int8-fp16-fp32.onnx")
    assert model_artifact(path).precision == precision


def test_artifacts_are_named_or_lie_at_a_path(tmp_path: Path) -> None:
    """Without a name, and as `model`, the subject's own file is run; a path is another file; any other name is refused."""
    subject, other = Subject.of_model(chain_file(tmp_path)), int8_file(tmp_path)
    for name in (None, "model"):
        own = subject.artifact(BackendRef(backend="any", artifact=name))
        assert (own.name, own.path, own.sha256) == ("model", subject.path, subject.sha256)
    found = subject.artifact(BackendRef(backend="any", artifact=str(other)))
    assert (found.path, found.precision) == (other, "int8")
    assert found.sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert not subject.is_own(found)
    with pytest.raises(UsageError, match="has no artifact 'fp32'; give the path"):
        subject.artifact(BackendRef(backend="any", artifact="fp32"))
    with pytest.raises(UsageError, match="is not there"):
        subject.artifact(BackendRef(backend="any", artifact=str(tmp_path / "gone.onnx")))


class _Announced:
    """A session that announces inputs and outputs."""

    def __init__(self, inputs: Any, outputs: Any) -> None:
        self.inputs, self.outputs = inputs, outputs


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([("x", (None, 3, 8, 8), "float32")], [("y", (None, 4), "float32")], None),
        ([("x", (4, 3, 8, 8), "float32")], [("y", (4, 4), "float32")], None),
        ([("x", (None, 3, 8, 8), "float32")], [("y", (), "float32")], None),
        ([("pixels", (None, 3, 8, 8), "float32")], [("y", (None, 4), "float32")], "input 'x' is missing; it has pixels"),
        ([("x", (None, 8, 8, 3), "float32")], [("y", (None, 4), "float32")], "input 'x' has dtype float32, shape"),
        ([("x", (None, 3, 8, 8), "uint8")], [("y", (None, 4), "float32")], "input 'x' has dtype uint8"),
        ([("x", (None, 3, 8, 8), "float32")], [("y", (None, 5), "float32")], "output 'y' has dtype float32, shape"),
        ([("x", (None, 3, 8, 8), "float32")], [("y", (None, 4, 1), "float32")], "output 'y' has dtype float32, shape"),
    ],
)  # fmt: skip
def test_sides_are_held_to_the_signature(inputs: Any, outputs: Any, said: str | None, tmp_path: Path) -> None:
    """Another name, type, size or number of axes is refused; a size that one leaves free is not."""
    session: Any = _Announced(specs(*inputs), specs(*outputs))
    subject = Subject.of_model(chain_file(tmp_path))
    if said is None:
        subject.check(session)
    else:
        with pytest.raises(ContractError, match=said):
            subject.check(session)


def _sequence(folder: Path) -> Path:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("Relu", ["x"], ["y"])]
    outputs = [VALUE("y", TensorProto.FLOAT, ["n"]), helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)]  # fmt: skip
    return written(folder / "m.onnx", nodes, [VALUE("x", TensorProto.FLOAT, ["n"])], outputs)


def _integers(folder: Path) -> Path:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return written(folder / "m.onnx", nodes, *([VALUE(name, TensorProto.INT64, ["n"])] for name in "xy"))


def _no_input(folder: Path) -> Path:
    nodes = [helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])]
    return written(folder / "m.onnx", nodes, [], [VALUE("y", TensorProto.FLOAT, [2])])


def _bytes(data: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(data)
        return folder / "m.onnx"

    return write


def _folder(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


def _external(folder: Path) -> Path:
    place = folder / "m.onnx"
    onnx.save(small.chain(), str(place), save_as_external_data=True, location="m.data", size_threshold=0)
    return place


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (_sequence, BackendError, "'s' is a sequence and no tensor"),
        (_integers, UsageError, "no output is float"),
        (_no_input, UsageError, "has no input"),
        (_bytes(b""), BackendError, "holds no graph"),
        (_bytes(b"\xff" * 60), BackendError, r"is no (whole )?ONNX model"),
        (_bytes(small.chain().SerializeToString()[:-100]), BackendError, r"is no (whole )?ONNX model"),
        (_folder, UsageError, "is not there; give an .onnx file"),
        (_external, EdgecnnError, r"'m\.data' read from outside"),
    ],
    ids=["sequence", "integers", "no input", "empty", "noise", "truncated", "folder", "external"],
)
def test_what_cannot_be_compared_is_refused(make: Any, kind: type[EdgecnnError], said: str, tmp_path: Path) -> None:
    """A file that is no model, or one that answers in no float tensor, is one line with what to do."""
    with pytest.raises(kind, match=said) as caught:
        Subject.of_model(make(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_is_no_file(tmp_path: Path) -> None:
    """A bundle's folder that ends in .onnx is a bundle, and a file is a model by its name in any case."""
    (tmp_path / "bundle.onnx").mkdir()
    assert not is_model(tmp_path / "bundle.onnx")
    assert is_model(tmp_path / "MODEL.ONNX")
    assert not is_model(tmp_path / "manifest.json")


def test_nodes_come_in_order(tmp_path: Path) -> None:
    """A graph whose nodes stand backwards, which onnx's evaluator cannot run, is loaded so that it can, to the same answers."""
    model, images = unsorted(small.chain()), small.images(5)
    path = tmp_path / "backwards.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r".+"):
        ReferenceEvaluator(model).run(None, {"x": images})
    (found,) = ReferenceEvaluator(load_model(model_artifact(path))).run(None, {"x": images})
    np.testing.assert_allclose(found, graphs.run(small.chain(), {"x": images})["y"], rtol=1e-4, atol=1e-5)
