"""OpenVINO against numpy and torch in float64: precision, names, types, refusals, and silence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecnn.backends.base import CheckedSession, SessionOptions, open_session
from edgecnn.backends.openvino import OpenVinoBackend, OpenVinoSession, import_openvino, one_line
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, DeviceError
from edgecnn.spec import Artifact, BackendRef, TensorSpec

FLOAT, UINT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
REF = BackendRef(backend="openvino")
ONE_THREAD = SessionOptions(threads=1)


def value(name: str, kind: int = FLOAT, shape: tuple[int | str, ...] = ("n", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def saved(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: Any = ()
) -> Artifact:
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return Artifact(name="m", format="onnx", path=path)


def inner(session: CheckedSession) -> OpenVinoSession:
    assert isinstance(session.inner, OpenVinoSession)
    return session.inner


@pytest.fixture(scope="module")
def weights() -> dict[str, npt.NDArray[np.float32]]:
    """Return two layers whose sums are long enough for bfloat16 to show."""
    random = np.random.default_rng(3)
    draw = {"w0": ((32, 3, 3, 3), 0.2), "w1": ((16, 32, 3, 3), 0.06)}
    return {name: (random.normal(size=shape) * scale).astype(np.float32) for name, (shape, scale) in draw.items()}


@pytest.fixture(scope="module")
def net(weights: dict[str, npt.NDArray[np.float32]], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a net that takes bytes: a cast, two convolutions with a ReLU between them, and a mean."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["x"]),
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["features"], pads=[1] * 4),
        helper.make_node("ReduceMean", ["features", "axes"], ["logits"], keepdims=0),
    ]
    constants = {"scale": np.float32(1 / 256), "axes": np.array([2, 3]), **weights}
    inputs = [value("image", UINT8, ("n", 3, 16, 16))]
    outputs = [value("logits", shape=("n", 16)), value("features", shape=("n", 16, 16, 16))]
    constants = {name: np.asarray(array) for name, array in constants.items()}
    return saved(tmp_path_factory.mktemp("net") / "net.onnx", nodes, inputs, outputs, constants)


@pytest.fixture(scope="module")
def opened(net: Artifact) -> Iterator[CheckedSession]:
    with open_session(REF, net, ONE_THREAD, OpenVinoBackend()) as session:
        yield session


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def truth(weights: dict[str, npt.NDArray[np.float32]], pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Compute the features with torch in float64."""
    first, second = (torch.from_numpy(weights[name]).double() for name in ("w0", "w1"))
    x = torch.conv2d(torch.from_numpy(pixels.copy()).double() / 256, first, padding=1).relu()
    return np.asarray(torch.conv2d(x, second, padding=1))


def off(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_float32_is_computed_in_float32(
    opened: CheckedSession, weights: dict[str, npt.NDArray[np.float32]], pixels: npt.NDArray[np.uint8], count: int
) -> None:
    """Any batch is within float32's rounding of float64; bfloat16 would be a thousand times further off."""
    want = truth(weights, pixels[:count])
    answers = opened.run({"image": pixels[:count]})
    assert list(answers) == ["logits", "features"]
    assert off(answers["features"], want) < 2e-6
    assert off(answers["logits"], want.mean(axis=(2, 3))) < 2e-6


def test_the_precision_asked_for_is_the_one_compiled(opened: CheckedSession) -> None:
    """The compiled model itself says f32, one thread, the CPU, and that it quantizes nothing of its own accord."""
    session = inner(opened)
    assert session.property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert session.property("EXECUTION_DEVICES") == ["CPU"]
    assert int(session.property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
    assert session.property("INFERENCE_NUM_THREADS") == 1


def test_bfloat16_would_have_been_seen(
    net: Artifact, weights: dict[str, npt.NDArray[np.float32]], pixels: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A model compiled in bfloat16, OpenVINO's own choice on some CPUs, is refused; its answers are indeed off."""
    openvino = import_openvino()
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")
    real = openvino.Core.compile_model

    def careless(self: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        return real(self, model, device, {"INFERENCE_PRECISION_HINT": "bf16"})

    monkeypatch.setattr(openvino.Core, "compile_model", careless)
    with pytest.raises(DeviceError, match="asked OpenVINO to compute in f32, it chose bf16"):
        open_session(REF, net, ONE_THREAD, OpenVinoBackend())
    compiled = careless(core, core.read_model(str(net.path)), "CPU", {})
    assert off(compiled({0: pixels})["features"], truth(weights, pixels)) > 1e-3


def test_another_device_than_the_cpu_is_refused(net: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that OpenVINO put elsewhere, or partly elsewhere, is refused with what was obtained."""
    openvino = import_openvino()
    real = openvino.CompiledModel.get_property

    def elsewhere(self: Any, name: str) -> Any:
        return ["GPU.0", "CPU"] if name == "EXECUTION_DEVICES" else real(self, name)

    monkeypatch.setattr(openvino.CompiledModel, "get_property", elsewhere)
    with pytest.raises(DeviceError, match=r"asked OpenVINO for CPU, obtained GPU\.0, CPU"):
        open_session(REF, net, ONE_THREAD, OpenVinoBackend())


def test_int8_answers_are_those_of_onnx_runtime(bundle_folder: Path) -> None:
    """A QDQ model's logits are within a small part of its own quantization error of what ONNX Runtime gives."""
    bundle = Bundle.open(bundle_folder)
    artifact = bundle.artifact("int8")
    image = {"image": np.asarray(bundle.goldens().pixels)}
    with open_session(BackendRef(backend="onnxruntime"), artifact, ONE_THREAD) as theirs:
        want = theirs.run(image)["logits"]
    with open_session(BackendRef(backend="onnxruntime"), bundle.artifact("fp32"), ONE_THREAD) as whole:
        exact = whole.run(image)["logits"]
    with open_session(REF, artifact, ONE_THREAD) as ours:
        got = ours.run(image)["logits"]
    assert off(want, exact) > 0.001, "or the model is not quantized"
    assert off(got, want) < 0.1 * off(want, exact)


def test_int8_layers_are_run_in_int8(bundle_folder: Path) -> None:
    """In the graph that OpenVINO runs of a QDQ model there are convolutions of eight-bit input."""
    with open_session(REF, Bundle.open(bundle_folder).artifact("int8"), ONE_THREAD) as session:
        graph = inner(session)._compiled.get_runtime_model()
    info = [{name: node.get_rt_info()[name].value for name in ("layerType", "runtimePrecision")} for node in graph.get_ordered_ops()]  # fmt: skip
    kinds = {entry["runtimePrecision"] for entry in info if entry["layerType"] == "Convolution"}
    assert kinds & {"i8", "u8"}


NAMES: dict[str, tuple[list[onnx.NodeProto], list[str], list[str]]] = {
    "plain": ([helper.make_node("Relu", ["x"], ["y"])], ["x"], ["y"]),
    "slashes and colons": ([helper.make_node("Relu", ["a/x:0"], ["b/y:0"])], ["a/x:0"], ["b/y:0"]),
    "swapped": ([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])], ["x"], ["b", "a"]),
    "behind an identity": (
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", ["r"], ["y"])], ["x"], ["y"],
    ),
    "twice": (
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", ["r"], ["y"])], ["x"], ["y", "r"],
    ),
    "passed through": (
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])], ["x"], ["z", "y"],
    ),
    "two inputs": ([helper.make_node("Sub", ["b", "a"], ["y"])], ["b", "a"], ["y"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_are_those_of_the_file(case: str, tmp_path: Path) -> None:
    """Inputs and outputs have the file's names in the file's order, and each carries its own values."""
    nodes, inputs, outputs = NAMES[case]
    artifact = saved(tmp_path / "m.onnx", nodes, [value(name) for name in inputs], [value(name) for name in outputs])
    values = {name: np.array([[-1, 2, -3, 4]], np.float32) * (at + 1) for at, name in enumerate(inputs)}
    by_hand = dict(values)
    compute = {"Relu": lambda a: np.maximum(a, 0), "Neg": lambda a: -a, "Identity": lambda a: a, "Sub": np.subtract}
    for node in nodes:
        by_hand[node.output[0]] = compute[node.op_type](*(by_hand[name] for name in node.input))
    with open_session(REF, artifact, ONE_THREAD, OpenVinoBackend()) as session:
        assert [spec.name for spec in session.inputs] == inputs
        assert [spec.name for spec in session.outputs] == outputs
        answers = session.run(values)
    for name in outputs:
        np.testing.assert_array_equal(answers[name], by_hand[name])


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "UINT8", "INT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BOOL"])  # fmt: skip
def test_types_that_numpy_has_are_kept(kind: str, tmp_path: Path) -> None:
    """Every type goes in and comes out as it is, with its values, beside a second input of another type."""
    proto = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(proto)
    nodes = [helper.make_node("Concat", ["a", "a"], ["y"], axis=1), helper.make_node("Neg", ["b"], ["z"])]
    inputs, outputs = [value("a", proto, ("n", 3)), value("b")], [value("y", proto, ("n", 6)), value("z")]
    artifact = saved(tmp_path / "m.onnx", nodes, inputs, outputs)
    a, b = np.array([[0, 1, 100], [7, 0, 127]]).astype(dtype), np.ones((2, 4), np.float32)
    with open_session(REF, artifact, ONE_THREAD, OpenVinoBackend()) as session:
        assert session.inputs[0] == TensorSpec(name="a", shape=(None, 3), dtype=str(dtype))
        answers = session.run({"a": a, "b": b})
    np.testing.assert_array_equal(answers["y"], np.concatenate([a, a], axis=1))
    assert answers["y"].dtype == dtype
    np.testing.assert_array_equal(answers["z"], -b)


@pytest.mark.parametrize("kind", ["DOUBLE", "BFLOAT16", "STRING"])
def test_types_that_would_be_changed_are_refused(kind: str, tmp_path: Path) -> None:
    """Float64, which OpenVINO computes in float32, and types that numpy has not are refused by their name."""
    proto = getattr(TensorProto, kind)
    node = helper.make_node("Identity", ["x"], ["y"])
    artifact = saved(tmp_path / "m.onnx", [node], [value("x", proto)], [value("y", proto)])
    with pytest.raises(BackendError, match=r"'x' is .*, which OpenVINO on a CPU cannot take or give as it is"):
        open_session(REF, artifact, ONE_THREAD, OpenVinoBackend())


def test_an_operator_it_does_not_know_is_one_line(tmp_path: Path) -> None:
    """What OpenVINO says over many lines is one, with the file and the operator, and without its own source files."""
    graph = helper.make_graph(
        [helper.make_node("Blend", ["x"], ["y"], domain="com.acme")], "g", [value("x")], [value("y")]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    path = tmp_path / "acme.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    with pytest.raises(BackendError) as caught:
        open_session(REF, Artifact(name="m", format="onnx", path=path), ONE_THREAD, OpenVinoBackend())
    line = str(caught.value)
    assert str(path) in line
    assert "com.acme.Blend" in line
    assert "\n" not in line
    assert ".cpp" not in line


def test_messages_lose_their_source_files_only() -> None:
    """The reason stays, whatever was piled upon it; a message of nothing else is named by its kind."""
    piled = "Exception from src/a.cpp:105:\nCheck 'x == \"y\"' failed at src/b.cpp:1:\nShapes  do not\nmatch: 3\n\n"
    assert one_line(RuntimeError(piled)) == "Shapes do not match: 3"
    assert one_line(RuntimeError("Exception from src/a.cpp:105:\n")) == "RuntimeError"


FAKE = """
import pathlib
class Telemetry:
    def __init__(self, *args, **kwargs): self.note("made")
    def note(self, *args, **kwargs):
        with pathlib.Path(__file__).with_name("sent.txt").open("a") as file: print(args, file=file)
    send_event = send_error = start_session = end_session = note
"""
ROADS = {
    "edgecnn": "from edgecnn.backends.openvino import OpenVinoBackend as B\n"
    "from edgecnn.spec import Artifact\nfrom edgecnn.backends.base import SessionOptions\nimport pathlib, sys\n"
    "B().load(Artifact(name='m', format='onnx', path=pathlib.Path(sys.argv[1])), 'cpu', SessionOptions(threads=1))",
    "plain": "import openvino",
}


@pytest.mark.parametrize("road", ROADS)
def test_nothing_is_sent(road: str, net: Artifact, tmp_path: Path) -> None:
    """Loading through edgecnn never reaches OpenVINO's telemetry, to which its plain import reports at once."""
    package = tmp_path / "openvino_telemetry"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    (package / "backend" / "__init__.py").write_text("")
    (package / "backend" / "backend_ga4.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", ROADS[road], str(net.path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (package / "sent.txt").exists() == (road == "plain")
    assert not (tmp_path / "intel").exists()
