"""What every backend promises, held against a network that numpy computes by hand from the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgecnn import registry
from edgecnn.backends.base import Array, CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, ContractError, DamagedError, DeviceError, EdgecnnError
from edgecnn.spec import Artifact, BackendRef, TensorSpec

CASES = (
    "onnxruntime:fp32",
    "onnxruntime:int8",
    "torch:checkpoint",
    "reference:fp32",
    "reference:int8",
    "openvino:fp32",
    "openvino:int8",
)
BACKENDS = ("onnxruntime", "torch", "reference", "openvino")
ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def pixels(bundle: Bundle) -> npt.NDArray[np.uint8]:
    """Return digits and, behind them, images no one has seen."""
    noise = np.random.default_rng(5).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    return np.concatenate([bundle.goldens().pixels[:8], noise])


@pytest.fixture(scope="module")
def truth(bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Compute the logits in float64 with nothing but numpy and the weights' names."""
    preprocess = bundle.manifest.preprocess
    weights = {name: w.astype(np.float64) for name, w in load_file(bundle.root / "model.safetensors").items()}
    x = (pixels.astype(np.float64) - preprocess.zero_point) * preprocess.scale
    x = x.transpose(0, 3, 1, 2)
    convolutions = sorted({int(name.split(".")[1]) for name in weights if name.startswith("layers.")})
    assert len(convolutions) == 2
    for position, index in enumerate(convolutions):
        if position:  # depth 1: a pooling stands between any two convolutions
            count, filters, height, width = x.shape
            x = x.reshape(count, filters, height // 2, 2, width // 2, 2).max(axis=(3, 5))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
        x = np.einsum("nchwij,fcij->nfhw", windows, weights[f"layers.{index}.0.weight"])
        norm = {
            key: weights[f"layers.{index}.1.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        }
        x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
        x = np.maximum(x, 0)
    return x.mean(axis=(2, 3)) @ weights["head.weight"].T + weights["head.bias"]


@pytest.fixture(scope="module", params=CASES)
def session(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[CheckedSession]:
    ref = BackendRef.parse(request.param)
    with open_session(ref, bundle.artifact(ref.artifact), ONE_THREAD) as opened:
        yield opened


def test_signature_is_the_same_everywhere(session: CheckedSession, bundle: Bundle) -> None:
    """Every backend takes uint8 NHWC pixels and gives float32 logits and probabilities, batch free."""
    assert session.inputs == (TensorSpec(name="image", shape=(None, 8, 8, 1), dtype="uint8"),)
    assert session.outputs == tuple(
        TensorSpec(name=name, shape=(None, 10), dtype="float32") for name in ("logits", "probabilities")
    )
    assert (session.inputs, session.outputs) == (bundle.manifest.inputs, bundle.manifest.outputs)
    assert session.device == "cpu"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_outputs_are_host_arrays_of_the_promised_kind(
    session: CheckedSession, pixels: npt.NDArray[np.uint8], count: int
) -> None:
    """Any batch comes back as plain numpy arrays of the promised names, dtypes and shapes."""
    outputs = session.run({"image": pixels[:count]})
    assert list(outputs) == ["logits", "probabilities"]
    for array in outputs.values():
        assert type(array) is np.ndarray
        assert (array.dtype, array.shape) == (np.float32, (count, 10))


def test_logits_are_those_that_numpy_computes(
    session: CheckedSession,
    pixels: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.float64],
    request: pytest.FixtureRequest,
) -> None:
    """Float32 backends are within rounding of float64, and int8 within a few hundredths of the signal.

    Answers are the same, but for int8 where the two best are closer than its error.
    """
    logits = session.run({"image": pixels})["logits"]
    error = np.sqrt(np.square(logits - truth).mean() / np.square(truth).mean())
    int8 = "int8" in request.node.callspec.params["session"]
    assert error < (0.1 if int8 else 1e-6)
    changed = logits.argmax(1) != truth.argmax(1)
    lead = np.diff(np.sort(truth, axis=1)[:, -2:], axis=1)[:, 0]
    assert changed.mean() < (0.2 if int8 else 1e-6)
    assert (lead[changed] < 2 * np.abs(logits - truth).max(1)[changed]).all()
    assert (lead[:8] > 0.01 * np.abs(truth).max()).sum() > 4, "or no answer would be decided"


def test_probabilities_are_the_softmax_of_logits(session: CheckedSession, pixels: npt.NDArray[np.uint8]) -> None:
    """The two outputs belong to each other."""
    outputs = session.run({"image": pixels})
    powers = np.exp(outputs["logits"].astype(np.float64))
    np.testing.assert_allclose(outputs["probabilities"], powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_rows_do_not_depend_on_their_batch(session: CheckedSession, pixels: npt.NDArray[np.uint8]) -> None:
    """An image gets the same logits alone as among others, to float noise."""
    together = session.run({"image": pixels})["logits"]
    alone = np.concatenate([session.run({"image": pixels[row : row + 1]})["logits"] for row in range(len(pixels))])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5 * np.abs(together).max())
    assert len(np.unique(together.round(3), axis=0)) == len(together)


def test_later_runs_leave_earlier_answers_alone(session: CheckedSession, pixels: npt.NDArray[np.uint8]) -> None:
    """What was returned is the caller's own and is not written over."""
    first = session.run({"image": pixels[:1]})
    kept = {name: array.copy() for name, array in first.items()}
    second = session.run({"image": pixels[1:2]})
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    assert not np.array_equal(second["logits"], kept["logits"])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_any_memory_layout_is_read_rightly(session: CheckedSession, pixels: npt.NDArray[np.uint8]) -> None:
    """Read-only, reversed and strided views give what a fresh copy of them gives."""
    frozen = pixels[:4].copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(pixels[:8].transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    for view in (frozen, pixels[::-1], pixels[::3], strided, pixels[:, ::-1, ::-1]):
        fresh = session.run({"image": np.ascontiguousarray(view).copy()})["logits"]
        np.testing.assert_array_equal(session.run({"image": view})["logits"], fresh)


GOOD = np.zeros((1, 8, 8, 1), dtype=np.uint8)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({}, "the inputs are named []"),
    "misnamed": ({"Image": GOOD}, "['Image']"),
    "one too many": ({"image": GOOD, "mask": GOOD}, "['image', 'mask']"),
    "None": ({"image": None}, "image"),
    "float32": ({"image": GOOD.astype(np.float32)}, "float32 (1, 8, 8, 1); the model's is uint8 (N, 8, 8, 1)"),
    "int8": ({"image": GOOD.astype(np.int8)}, "int8 (1, 8, 8, 1); the model's is uint8 (N, 8, 8, 1)"),
    "bool": ({"image": GOOD.astype(bool)}, "bool"),
    "planes first": ({"image": GOOD.reshape(1, 1, 8, 8)}, "uint8 (1, 1, 8, 8); the model's is uint8 (N, 8, 8, 1)"),
    "one image without a batch": ({"image": GOOD[0]}, "uint8 (8, 8, 1)"),
    "one dimension too many": ({"image": GOOD[None]}, "uint8 (1, 1, 8, 8, 1)"),
    "another size": ({"image": np.zeros((1, 8, 9, 1), dtype=np.uint8)}, "uint8 (1, 8, 9, 1)"),
    "colour": ({"image": np.zeros((1, 8, 8, 3), dtype=np.uint8)}, "uint8 (1, 8, 8, 3)"),
    "a number": ({"image": np.uint8(3)}, "uint8"),
    "empty batch": ({"image": GOOD[:0]}, "uint8 (0, 8, 8, 1)"),
    "a list": ({"image": GOOD.tolist()}, "image"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_feeds_off_the_contract_are_refused(session: CheckedSession, fault: str) -> None:
    """A wrong name, dtype or shape is a ContractError that says both sides, and the session lives on."""
    feeds, told = REFUSED[fault]
    with pytest.raises(ContractError) as caught:
        session.run(feeds)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert session.run({"image": GOOD})["logits"].shape == (1, 10)


@pytest.mark.parametrize("case", CASES)
def test_a_closed_session_refuses_to_run(case: str, bundle: Bundle) -> None:
    """A session is its own context manager and gives a clear error once it is closed."""
    ref = BackendRef.parse(case)
    opened = open_session(ref, bundle.artifact(ref.artifact), ONE_THREAD)
    with opened as entered:
        assert entered is opened
        assert entered.run({"image": GOOD})["logits"].shape == (1, 10)
    with pytest.raises(BackendError):
        opened.run({"image": GOOD})


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any machine one without CUDA."""
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.parametrize("device", ["cuda:0", "cuda", "gpu", "CPU", "cpu:0", "nowhere:1"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_cuda")
def test_a_device_that_is_not_there_is_refused(backend: str, device: str, bundle: Bundle) -> None:
    """An unknown device, and CUDA where there is none, is a DeviceError that lists what there is."""
    artifact = bundle.artifact("checkpoint" if backend == "torch" else "fp32")
    with pytest.raises(DeviceError) as caught:
        open_session(BackendRef(backend=backend, device=device), artifact)
    assert repr(device) in str(caught.value)
    assert "it has: cpu" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
def test_a_provider_in_the_list_but_not_there_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime listing CUDA, as its GPU wheel does on any machine, is no reason to run on the CPU instead."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime really has CUDA")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(DeviceError):
        open_session(BackendRef(backend="onnxruntime", device="cuda:0"), bundle.artifact("fp32"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["torch:checkpoint@cuda:0", "onnxruntime:fp32@cuda:0"])
def test_cuda_gives_the_same_logits(
    case: str, bundle: Bundle, pixels: npt.NDArray[np.uint8], truth: npt.NDArray[np.float64]
) -> None:
    """Where CUDA is obtained its logits are within float32's rounding of float64."""
    ref = BackendRef.parse(case)
    if ref.device not in registry.get(registry.BACKENDS, ref.backend).devices():
        pytest.skip(f"{ref.backend} has no CUDA device here")
    with open_session(ref, bundle.artifact(ref.artifact)) as opened:
        assert opened.device == "cuda:0"
        logits = opened.run({"image": pixels})["logits"]
    assert np.sqrt(np.square(logits - truth).mean() / np.square(truth).mean()) < 1e-5


@pytest.mark.parametrize(("backend", "artifact"), [("onnxruntime", "checkpoint"), ("reference", "checkpoint"), ("openvino", "checkpoint"), ("torch", "fp32")])  # fmt: skip
def test_a_format_it_does_not_read_is_refused(backend: str, artifact: str, bundle: Bundle) -> None:
    """A backend says which formats it reads and which it was given."""
    formats = {"onnx", "safetensors"}
    with pytest.raises(BackendError) as caught:
        open_session(BackendRef(backend=backend), bundle.artifact(artifact))
    assert all(name in str(caught.value) for name in (backend, *formats))


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_artifact_is_refused(case: str, bundle_copy: Path) -> None:
    """One changed bit is a DamagedError that names the file, before anything is run."""
    ref = BackendRef.parse(case)
    artifact = Bundle.open(bundle_copy).artifact(ref.artifact)
    data = bytearray(artifact.path.read_bytes())
    data[-20] ^= 1
    artifact.path.write_bytes(data)
    with pytest.raises(DamagedError, match=artifact.path.name):
        open_session(ref, artifact)


@pytest.mark.parametrize("content", [b"", b"not a model at all", "half"], ids=["empty", "foreign", "truncated"])
@pytest.mark.parametrize("case", ["onnxruntime:fp32", "torch:checkpoint", "reference:fp32", "openvino:fp32"])
def test_a_file_that_is_no_model_is_one_clear_line(
    case: str, content: bytes | str, bundle: Bundle, tmp_path: Path
) -> None:
    """Without a recorded hash a broken file is still edgecnn's own error, in one line with its path."""
    ref = BackendRef.parse(case)
    original = bundle.artifact(ref.artifact)
    data = original.path.read_bytes()
    path = tmp_path / original.path.name
    path.write_bytes(content if isinstance(content, bytes) else data[: len(data) // 2])
    with pytest.raises(EdgecnnError) as caught:
        open_session(ref, Artifact(name="broken", format=original.format, path=path))
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", ["onnxruntime:fp32", "torch:checkpoint", "reference:fp32", "openvino:fp32"])
def test_a_missing_artifact_is_one_clear_line(case: str, bundle_copy: Path) -> None:
    """A file that is gone is a BackendError that names it."""
    ref = BackendRef.parse(case)
    artifact = Bundle.open(bundle_copy).artifact(ref.artifact)
    artifact.path.unlink()
    with pytest.raises(BackendError, match=artifact.path.name):
        open_session(ref, artifact)


def test_torch_gives_float64_on_request(
    bundle: Bundle, pixels: npt.NDArray[np.uint8], truth: npt.NDArray[np.float64]
) -> None:
    """The float64 session says so in its outputs and agrees with numpy to float64's own rounding."""
    options = SessionOptions(threads=1, dtype="float64")
    with open_session(BackendRef(backend="torch"), bundle.artifact("checkpoint"), options) as opened:
        assert {spec.dtype for spec in opened.outputs} == {"float64"}
        logits = opened.run({"image": pixels})["logits"]
    np.testing.assert_allclose(logits, truth, rtol=0, atol=1e-12 * np.abs(truth).max())


def test_torch_uses_the_threads_asked_for_and_gives_them_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread count holds while a session runs, and the process's own is restored."""
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []
    real = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda *a, **k: (seen.append(torch.get_num_threads()), real(*a, **k))[1])
    with open_session(BackendRef(backend="torch"), bundle.artifact("checkpoint"), SessionOptions(threads=3)) as opened:
        opened.run({"image": GOOD})
    assert seen == [3]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_onnxruntime_gets_the_threads_asked_for(bundle: Bundle, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads reaches ONNX Runtime, one operator at a time and without spinning."""
    import onnxruntime

    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def spy(model: Any, options: Any, **rest: Any) -> Any:
        seen.append(options)
        return real(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    with open_session(BackendRef(backend="onnxruntime"), bundle.artifact("fp32"), SessionOptions(threads=threads)):
        pass
    assert [options.intra_op_num_threads for options in seen] == [threads]
    assert seen[0].inter_op_num_threads == 1
    assert seen[0].get_session_config_entry("session.intra_op.allow_spinning") == "0"


class Fake:
    """A backend of somebody else, of which one part can be broken."""

    name = "fake"
    formats: tuple[str, ...] = ("onnx",)

    def __init__(self, session: Any) -> None:
        self.session = session

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "npu:0")

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> Any:
        if isinstance(self.session, Exception):
            raise self.session
        return self.session


class FakeSession:
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="x", shape=(None, 4), dtype="float32"),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="y", shape=(None, 2), dtype="float32"),)

    def __init__(self, answer: Any = None, device: str = "cpu") -> None:
        self.answer = answer
        self.device = device
        self.closed = False

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"y": feeds["x"][:, :2]} if self.answer is None else self.answer

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


def open_fake(session: Any, device: str = "cpu") -> CheckedSession:
    artifact = Artifact(name="a", format="onnx", path=Path("a.onnx"))
    return open_session(BackendRef(backend="fake", device=device), artifact, backend=Fake(session))


FEEDS = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}


def test_a_third_partys_backend_runs_and_is_closed() -> None:
    """A backend made by somebody else is run as it is and its session is closed at the end."""
    inner = FakeSession(device="npu:0")
    with open_fake(inner, "npu:0") as session:
        np.testing.assert_array_equal(session.run(FEEDS)["y"], [[0, 1], [4, 5]])
        assert not inner.closed
    assert inner.closed


@pytest.mark.parametrize(("asked", "obtained"), [("npu:0", "cpu"), ("cpu", "npu:0")])
def test_another_device_than_asked_for_is_an_error(asked: str, obtained: str) -> None:
    """A session that landed elsewhere is refused, and the message names both devices."""
    with pytest.raises(DeviceError, match=f"asked for {asked} and obtained {obtained}"):
        open_fake(FakeSession(device=obtained), asked)


def test_what_run_raises_is_wrapped() -> None:
    """Whatever a backend raises while running is a BackendError of one line, with the cause attached."""
    cause = RuntimeError("first line\nsecond line")
    with pytest.raises(BackendError, match="first line second line") as caught:
        open_fake(FakeSession(cause)).run(FEEDS)
    assert caught.value.__cause__ is cause
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        open_fake(FakeSession(ZeroDivisionError())).run(FEEDS)


def test_what_load_raises_is_wrapped() -> None:
    """Whatever a backend raises while loading is a BackendError that names the backend, with the cause attached."""
    cause = ValueError("no such\nkernel")
    with pytest.raises(BackendError, match="no such kernel") as caught:
        open_fake(cause)
    assert caught.value.__cause__ is cause
    own = DamagedError("a.onnx: broken")
    with pytest.raises(DamagedError) as passed:
        open_fake(own)
    assert passed.value is own


Y = np.zeros((2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    "answer",
    [{}, {"z": Y}, {"y": Y, "z": Y}, {"y": Y.astype(np.float64)}, {"y": Y[0]}, {"y": Y[:, :1]}, {"y": Y[:0]}, {"y": Y.tolist()}],
    ids=["none", "misnamed", "one too many", "dtype", "rank", "shape", "empty", "a list"],
)  # fmt: skip
def test_outputs_off_the_contract_are_refused(answer: Any) -> None:
    """A backend whose outputs are not what it declared, in name, dtype, shape or kind, is stopped."""
    with pytest.raises(ContractError):
        open_fake(FakeSession(answer)).run(FEEDS)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_session_without_tensors_is_refused(side: str) -> None:
    """A model that takes nothing or gives nothing is no model."""
    inner = FakeSession()
    setattr(inner, side, ())
    with pytest.raises(ContractError, match="at least one"):
        open_fake(inner)


SPY = """
import json, os, sys
from importlib.machinery import PathFinder

class Spy(PathFinder):
    seen = []
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "onnxruntime":
            cls.seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Spy
exec(sys.argv[1])
print(json.dumps([Spy.seen, "onnxruntime" in sys.modules]))
"""
ROADS = {
    "the backend": "import edgecnn.backends.onnxruntime as b; assert 'onnxruntime' not in sys.modules; b.import_onnxruntime()",
    "the registry": "from edgecnn import registry as r; r.get(r.BACKENDS, 'onnxruntime').devices()",
    "quantization": "import onnx; from edgecnn.quantization.fusion import optimised; optimised(onnx.load(sys.argv[2]))",
    "an exporter": "from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter; import edgecnn.quantization.run",
}


@pytest.mark.parametrize("road", ROADS)
def test_telemetry_is_off_before_onnxruntime_is_imported(road: str, bundle_folder: Path) -> None:
    """On every road into ONNX Runtime its telemetry is switched off in the environment before the import."""
    quiet = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "TF_BUILD", "BUILD_ID", "JENKINS_URL", "GITLAB_CI")
    env = {name: value for name, value in os.environ.items() if name not in quiet}
    command = [sys.executable, "-c", SPY, ROADS[road], str(bundle_folder / "fp32.onnx")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, imported = json.loads(done.stdout)
    assert imported
    assert seen
    assert set(seen) == {"1"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_artifact_is_loaded_from_the_bytes_that_were_checked(backend: str, bundle: Bundle, tmp_path: Path) -> None:
    """Without its file a loaded session answers as before: nothing is read again after the check."""
    recorded = bundle.artifact("fp32")
    path = tmp_path / "fp32.onnx"
    shutil.copy(recorded.path, path)
    moved = Artifact(name="fp32", format="onnx", path=path, sha256=recorded.sha256)
    with open_session(BackendRef(backend=backend), moved, ONE_THREAD) as opened:
        before = opened.run({"image": GOOD})["logits"]
        path.unlink()
        np.testing.assert_array_equal(opened.run({"image": GOOD})["logits"], before)
