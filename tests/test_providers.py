"""ONNX Runtime's other providers: found by name, refused unless the work is really theirs, and WebGPU itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgecnn.backends import onnxruntime as backend_module
from edgecnn.backends import providers
from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.bundle import Bundle
from edgecnn.device.probe import diagnose
from edgecnn.errors import DeviceError, UsageError
from edgecnn.spec import Artifact, BackendRef
from edgecnn.testing import check_backend

ONE_THREAD = SessionOptions(threads=1)
RELU = ("AcmeExecutionProvider", ["Relu"])
WEBGPU = find_spec("onnxruntime_ep_webgpu") is not None or "webgpu=" in os.environ.get(providers.VARIABLE, "")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """Write a model of one Relu."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return Artifact(name="m", format="onnx", path=path)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a library for the device `acme` in the environment."""
    path = tmp_path / "libacme.so"
    path.write_bytes(b"no library at all")
    monkeypatch.setenv(providers.VARIABLE, f"acme={path}")
    monkeypatch.setattr(providers, "_REGISTERED", set())
    return path


class FakeOrt:
    """An ONNX Runtime whose plugin lists these kinds of device and whose sessions place nodes as told."""

    __version__ = "1.32.0"
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def __init__(self, kinds: Sequence[str] = ("NPU",), placed: Sequence[tuple[str, list[str]]] = (RELU,)) -> None:
        self.kinds = kinds
        self.registered: list[tuple[str, str]] = []
        self.added: list[Any] = []
        self.entries: dict[str, str] = {}
        self.SessionOptions = lambda: SimpleNamespace(
            add_session_config_entry=self.entries.__setitem__,
            add_provider_for_devices=lambda devices, options: self.added.extend(devices),
        )
        tensor = SimpleNamespace(name="x", shape=["n", 4], type="tensor(float)")
        parts = [SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
                 for name, ops in placed]  # fmt: skip

        class InferenceSession:
            def __init__(self, data: bytes, native: Any, providers: Any, enable_fallback: int) -> None:
                assert (providers, enable_fallback) == (None, 0)

            get_providers = staticmethod(lambda: ["AcmeExecutionProvider", "CPUExecutionProvider"])
            get_provider_graph_assignment_info = staticmethod(lambda: parts)
            get_inputs = get_outputs = staticmethod(lambda: [tensor])
            run = staticmethod(lambda names, feeds, options: [np.maximum(feeds["x"], 0)])

        self.InferenceSession = InferenceSession

    def get_available_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if any(known == path for _, known in self.registered):
            raise RuntimeError("already registered")
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        rows = [("CPUExecutionProvider", "CPU", None)]
        rows += [("AcmeExecutionProvider", kind, path) for _, path in self.registered for kind in self.kinds]
        return [
            SimpleNamespace(
                ep_name=name,
                device=SimpleNamespace(type=SimpleNamespace(name=kind)),
                ep_metadata={"library_path": path} if path else {},
            )
            for name, kind, path in rows
        ]


def opened(monkeypatch: pytest.MonkeyPatch, ort: Any, model: Artifact, device: str = "acme") -> Any:
    monkeypatch.setattr(backend_module, "import_onnxruntime", lambda: ort)
    return open_session(BackendRef(backend="onnxruntime", device=device), model, ONE_THREAD, OnnxRuntimeBackend())


def refused(monkeypatch: pytest.MonkeyPatch, ort: Any, model: Artifact, device: str = "acme") -> str:
    with pytest.raises(DeviceError) as caught:
        opened(monkeypatch, ort, model, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plugin_that_runs_every_node_is_used(library: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is registered once, its device goes into the options, and the session says the name asked for."""
    ort = FakeOrt()
    for _ in range(2):
        session = opened(monkeypatch, ort, model)
        assert session.device == "acme"
    assert ort.registered == [("acme", str(library))]
    assert [device.ep_name for device in ort.added] == ["AcmeExecutionProvider"] * 2
    assert ort.entries["session.record_ep_graph_assignment_info"] == "1"


@pytest.mark.usefixtures("library")
def test_a_plugin_without_a_device_is_refused(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered is not usable: a plugin that finds no hardware is an error that says just that, also the second time."""
    ort = FakeOrt(kinds=())
    for _ in range(2):
        assert "acme: its plugin is registered and lists no device" in refused(monkeypatch, ort, model)


LEFT: dict[str, tuple[list[tuple[str, list[str]]], str | None]] = {
    "all there": ([RELU], None),
    "shapes on the CPU": ([RELU, ("CPUExecutionProvider", ["Shape", "Gather", "Concat"])], None),
    "a convolution on the CPU": ([RELU, ("CPUExecutionProvider", ["Conv", "Shape", "Conv"])], "left 2 Conv on CPU"),
    "a cast on the CPU": ([RELU, ("CPUExecutionProvider", ["Cast"])], "left 1 Cast on CPU"),
    "quantization on the CPU": ([("CPUExecutionProvider", ["QuantizeLinear"]), RELU], "left 1 QuantizeLinear on CPU"),
    "some on a third": ([RELU, ("XnnpackExecutionProvider", ["Conv"])], "left 1 Conv on Xnnpack"),
    "all on the CPU": ([("CPUExecutionProvider", ["Relu"])], "was given no node"),
    "only shapes": ([("CPUExecutionProvider", ["Shape"])], "was given no node"),
    "nothing recorded": ([], "was given no node"),
}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("case", LEFT)
def test_nodes_left_to_others_are_refused(case: str, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that computes and is not on the provider is an error that counts and names it; work on shapes is not."""
    placed, told = LEFT[case]
    if told is None:
        assert opened(monkeypatch, FakeOrt(placed=placed), model).device == "acme"
    else:
        line = refused(monkeypatch, FakeOrt(placed=placed), model)
        assert told in line
        assert "AcmeExecutionProvider" in line
        assert "Shape" not in line


def test_a_provider_that_is_not_first_is_refused(library: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A session that lists another provider first did not obtain what was asked for."""
    ort = FakeOrt()
    monkeypatch.setattr(ort.InferenceSession, "get_providers", staticmethod(lambda: ["CPUExecutionProvider"]))
    assert "asked for AcmeExecutionProvider, ONNX Runtime gave CPU" in refused(monkeypatch, ort, model)


def test_a_kind_of_device_can_be_asked_for(library: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a plugin lists several kinds the name must say which, and a kind that is not there is refused."""
    ort = FakeOrt(kinds=("CPU", "GPU"))
    assert "ask for one of acme:cpu, acme:gpu" in refused(monkeypatch, ort, model)
    monkeypatch.setenv(providers.VARIABLE, f"acme:gpu={library}, acme:npu={library}")
    assert opened(monkeypatch, ort, model, "acme:gpu").device == "acme:gpu"
    assert [device.device.type.name for device in ort.added] == ["GPU"]
    assert "acme:npu: its plugin lists only cpu, gpu" in refused(monkeypatch, ort, model, "acme:npu")


@pytest.mark.usefixtures("library")
def test_an_old_onnx_runtime_says_so_only_when_asked(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plugins' interface the device is listed, and asking for it names both versions."""
    ort = SimpleNamespace(
        __version__="1.20.1",
        get_available_providers=lambda: ["CPUExecutionProvider"],
        SessionOptions=FakeOrt().SessionOptions,
        InferenceSession=object,
        GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
    )
    line = refused(monkeypatch, ort, model)
    assert "need ONNX Runtime 1.24 or newer, this is 1.20.1" in line
    listed = OnnxRuntimeBackend().devices()  # with plugins that are installed here
    assert (listed[0], listed[-1]) == ("cpu", "acme")


def test_a_library_that_is_none_is_refused(library: Path, model: Artifact) -> None:
    """The real ONNX Runtime's refusal of a file that is no library is one line with the device's name."""
    with pytest.raises(DeviceError, match="acme: its plugin could not be loaded") as caught:
        open_session(BackendRef(backend="onnxruntime", device="acme"), model, ONE_THREAD, OnnxRuntimeBackend())
    assert "\n" not in str(caught.value)
    library.unlink()
    with pytest.raises(DeviceError, match="there is no such file"):
        open_session(BackendRef(backend="onnxruntime", device="acme"), model, ONE_THREAD, OnnxRuntimeBackend())


@pytest.mark.parametrize("text", ["webgpu", "=/lib.so", "webgpu=lib.so", "webgpu=", "cpu=/lib.so", "cuda:1=/lib.so", "a=/b,c"])  # fmt: skip
def test_a_variable_that_cannot_be_read_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that is no NAME=/path, a path ONNX Runtime would look for elsewhere, or our own names, is refused."""
    monkeypatch.setenv(providers.VARIABLE, text)
    with pytest.raises(UsageError, match=providers.VARIABLE):
        providers.plugins()


PACKAGES = {
    "onnxruntime_ep_acme": ["acme"],
    "onnxruntime_ep_nv_tensorrt_rtx": ["tensorrt-rtx"],
    "onnxruntime_ep_openvino": ["openvino", "openvino:cpu", "openvino:gpu", "openvino:npu"],
    "onnxruntime_qnn": ["qnn", "qnn:cpu", "qnn:gpu", "qnn:npu"],
    "onnxruntime_extensions": [],
    "onnxruntime_ep_acme-1.0.dist-info": [],
}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_found_without_being_imported(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed plugin gives its devices by its package's name alone; what it imports is left alone."""
    before = set(providers.plugins())
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported although nobody asked')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [device for device in providers.plugins() if device not in before] == PACKAGES[package]
    assert package not in sys.modules


def test_a_package_tells_its_library(
    model: Artifact, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package is asked for its library and its provider's name, and one that fails is an error of one line."""
    monkeypatch.delenv(providers.VARIABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("whole", "torn"):
        package = tmp_path / f"onnxruntime_ep_{name}"
        package.mkdir()
        text = f"get_ep_name = lambda: 'Own{name}'\nget_library_path = lambda: {str(library)!r}\n"
        (package / "__init__.py").write_text(text if name == "whole" else "raise OSError('libcuda.so\\nis missing')")
    ort = FakeOrt()
    assert opened(monkeypatch, ort, model, "whole").device == "whole"
    assert ort.registered == [("Ownwhole", str(library))]
    assert "torn: its plugin could not be loaded (libcuda.so is missing)" in refused(monkeypatch, ort, model, "torn")


def test_tensorrt_is_listed_only_where_the_wheel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider in the wheel makes the device, and the device asks for that provider and that precision."""
    import onnxruntime

    held = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.delenv(providers.VARIABLE, raising=False)
    monkeypatch.setattr(providers, "_packages", list)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    for count, devices in ((3, ("cpu", "cuda:0", "tensorrt:0")), (2, ("cpu", "cuda:0")), (1, ("cpu",))):
        listed = held[3 - count :]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda listed=listed: listed)
        assert OnnxRuntimeBackend().devices() == devices
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ, "looking changes nothing"
    assert providers.builtin("tensorrt:0", "fp32")[0] == held[0]
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert providers.builtin("tensorrt:0", "int8")[1]["trt_int8_enable"] == 1
    assert providers.builtin("tensorrt:0", "fp32")[1] == {"device_id": 0, "trt_int8_enable": 0, "trt_fp16_enable": 0}


@pytest.mark.filterwarnings("ignore:Specified provider 'TensorrtExecutionProvider' is not in available")
def test_tensorrt_in_the_list_but_not_there_is_refused(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime listing TensorRT is no reason to run on the CPU or on CUDA instead."""
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime really has TensorRT")
    listed = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(DeviceError):
        open_session(BackendRef(backend="onnxruntime", device="tensorrt:0"), model)


def test_doctor_tells_what_keeps_a_plugin_idle(library: Path) -> None:
    """A plugin that cannot be loaded is not among the names that work, and its reason is among the advice."""
    found = diagnose()
    state = next(state for state in found.backends if state.name == "onnxruntime")
    assert "onnxruntime" in state.usable
    assert "onnxruntime@acme" not in state.usable
    assert any(line.startswith("onnxruntime@acme: its plugin could not be loaded (") for line in found.advice)


def test_doctor_outlives_a_variable_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is what is the matter with ONNX Runtime, and the other backends are shown as ever."""
    monkeypatch.setenv(providers.VARIABLE, "webgpu")
    states = {state.name: state for state in diagnose().backends}
    assert providers.VARIABLE in (states["onnxruntime"].problem or "")
    assert states["onnxruntime"].usable == ()
    assert states["openvino"].usable == ("openvino",)


def test_a_plugin_that_ends_the_process_is_told(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor outlives a driver that crashes, and passes on how the process ended."""
    monkeypatch.delenv(providers.VARIABLE)
    (tmp_path / "onnxruntime_ep_rash").mkdir()
    (tmp_path / "onnxruntime_ep_rash" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert providers.problem("rash") == "its plugin ended the process (-6)"


def needs_webgpu() -> None:
    """Skip without the plugin, and fail without a Vulkan device where CI promised one."""
    if not WEBGPU:
        assert not os.environ.get("EDGECNN_CI_WEBGPU"), "CI installs onnxruntime-ep-webgpu, and it is not here"
        pytest.skip("needs pip install onnxruntime-ep-webgpu and Vulkan, for example Mesa's lavapipe 25")
    reason = providers.problem("webgpu")
    if reason:
        assert not os.environ.get("EDGECNN_CI_WEBGPU"), reason
        pytest.skip(reason)


def test_webgpu_gives_the_same_answers(bundle_folder: Path) -> None:
    """On WebGPU, be it Vulkan in software, float32 logits are the CPU's to rounding and the contract holds."""
    needs_webgpu()
    bundle = Bundle.open(bundle_folder)
    pixels = {"image": np.asarray(bundle.goldens().pixels)}
    backend = OnnxRuntimeBackend()
    with open_session(BackendRef(backend="onnxruntime"), bundle.artifact("fp32"), ONE_THREAD, backend) as cpu:
        want = cpu.run(pixels)["logits"]
    ref = BackendRef(backend="onnxruntime", device="webgpu")
    with open_session(ref, bundle.artifact("fp32"), ONE_THREAD, backend) as gpu:
        assert gpu.device == "webgpu"
        got = gpu.run(pixels)["logits"]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert not np.array_equal(got, want), "or it was the CPU that computed"
    check_backend(backend, bundle.artifact("fp32"), "webgpu")


def test_webgpu_refuses_what_it_would_leave_to_the_cpu(bundle_folder: Path) -> None:
    """WebGPU has no QuantizeLinear: the int8 artifact would run half on the CPU, and is refused with that reason."""
    needs_webgpu()
    artifact = Bundle.open(bundle_folder).artifact("int8")
    with pytest.raises(DeviceError, match=r"left \d+ QuantizeLinear on CPU"):
        open_session(BackendRef(backend="onnxruntime", device="webgpu"), artifact, ONE_THREAD, OnnxRuntimeBackend())


def test_webgpu_without_a_device_is_refused(model: Artifact, tmp_path: Path) -> None:
    """Where Vulkan lists nothing the real plugin registers and offers no device, which is an error that says so."""
    if not WEBGPU:
        pytest.skip("needs pip install onnxruntime-ep-webgpu")
    gone = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER")
    env = {name: text for name, text in os.environ.items() if name not in gone}
    command = [sys.executable, "-c", "from edgecnn.backends import providers; providers.look('webgpu')"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has a real GPU that WebGPU finds")
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert "lists no device" in done.stdout
