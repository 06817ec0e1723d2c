"""What a model answers in WebAssembly, in Node and in a real browser, against numpy and native ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper
from web_models import need, truth, write_int8, write_model, write_net

from edgecnn.backends import web_bridge
from edgecnn.backends.base import CheckedSession, SessionOptions, open_session
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.backends.onnxruntime_web import OnnxRuntimeWebBackend, find_package
from edgecnn.errors import BackendError, ContractError
from edgecnn.spec import Artifact, BackendRef
from edgecnn.testing import check_backend

PIXELS = np.random.default_rng(7).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
Pair = tuple[Artifact, Artifact, CheckedSession, CheckedSession]
KINDS = ("float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "bool")


@pytest.fixture(params=["node", "chromium"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    need(name, monkeypatch)
    return name


@pytest.fixture
def fp32(tmp_path: Path) -> Artifact:
    return write_net(tmp_path / "fp32.onnx")


@pytest.fixture
def int8(tmp_path: Path, fp32: Artifact) -> Artifact:
    return write_int8(fp32, PIXELS, tmp_path / "int8.onnx")


def opened(artifact: Artifact, device: str, threads: int | None = None) -> CheckedSession:
    ref = BackendRef(backend="onnxruntime-web", device=device)
    return open_session(ref, artifact, SessionOptions(threads=threads), OnnxRuntimeWebBackend())


def natively(artifact: Artifact) -> CheckedSession:
    options = SessionOptions(threads=1)
    return open_session(BackendRef(backend="onnxruntime"), artifact, options, OnnxRuntimeBackend())


@pytest.fixture(scope="module", params=["node", "chromium"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Give a float32 net and its int8, and a session of each; both are open at once."""
    folder = tmp_path_factory.mktemp("pair")
    floats = write_net(folder / "fp32.onnx")
    steps = write_int8(floats, PIXELS, folder / "int8.onnx")
    with pytest.MonkeyPatch.context() as patch:
        need(request.param, patch)
        with opened(floats, request.param) as first, opened(steps, request.param) as second:
            yield floats, steps, first, second


@pytest.fixture(scope="module", params=["node", "chromium"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedSession]:
    """Give a session of a model that returns eleven dtypes as they are, negates one tensor and adds two others."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    info = helper.make_tensor_value_info
    codes = {f"{kind} ü/0": helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in KINDS}
    nodes = [helper.make_node("Identity", [name], [f"{name}:same"]) for name in codes]
    inputs = [info(name, code, ["n", 3]) for name, code in codes.items()]
    outputs = [info(f"{name}:same", code, ["n", 3]) for name, code in codes.items()]
    nodes += [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Add", ["a", "b"], ["c"])]
    inputs += [info(name, TensorProto.INT32, [f"of {name}"]) for name in "xab"]
    outputs += [info(name, TensorProto.INT32, [f"of {name}"]) for name in "yc"]
    write_model(path, nodes, inputs, outputs)
    with pytest.MonkeyPatch.context() as patch:
        need(request.param, patch)
        with opened(Artifact(name="mixed", format="onnx", path=path), request.param) as session:
            yield session


def feeds(**others: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Give what the mixed model takes: the extremes of each dtype, and three short tensors unless there are others."""
    short = dict.fromkeys("xab", np.ones(2, np.int32))
    return {**{f"{kind} ü/0": extremes(kind) for kind in KINDS}, **short, **others}


def process_of(session: CheckedSession) -> subprocess.Popen[bytes]:
    inner: Any = session.inner
    process: subprocess.Popen[bytes] = inner._link._process
    return process


def running(session_id: int) -> list[str]:
    """Name the processes that began in a session of processes, or whose parent leads it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session, *_ = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if state != "Z" and str(session_id) in (entry.parent.name, parent, session):
            found.append(entry.parent.name)
    return found


def test_the_backend_keeps_the_contract(device: str, fp32: Artifact) -> None:
    """The shared suite passes on a float32 net."""
    check_backend(OnnxRuntimeWebBackend(), fp32, device)


def test_the_backend_keeps_the_contract_in_int8(int8: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared suite passes on an int8 net; what carries it to Chromium knows no model from another."""
    need("node", monkeypatch)
    check_backend(OnnxRuntimeWebBackend(), int8, "node")


def test_float32_is_as_near_to_the_truth_as_native(pair: Pair, request: pytest.FixtureRequest) -> None:
    """Names, dtypes and shapes are native's, and logits as near to numpy's float64 as float32 can be."""
    fp32, _, session, _ = pair
    with natively(fp32) as native:
        assert (session.inputs, session.outputs) == (native.inputs, native.outputs)
        assert session.device == request.node.callspec.params["pair"]
        logits, theirs = session.run({"image": PIXELS})["logits"], native.run({"image": PIXELS})["logits"]
    exact = truth(PIXELS)
    size = np.abs(exact).max()
    assert np.abs(theirs - exact).max() < 1e-6 * size
    assert np.abs(logits - exact).max() < 1e-6 * size


def test_int8_of_seven_bit_weights_is_native_int8(pair: Pair) -> None:
    """Nearly every int8 logit is native's to the bit, none is a step off more, and all differ from float32's."""
    fp32, int8, _, session = pair
    with natively(int8) as native:
        logits, theirs = session.run({"image": PIXELS})["logits"], native.run({"image": PIXELS})["logits"]
    with natively(fp32) as native:
        floats = native.run({"image": PIXELS})["logits"]
    step = np.diff(np.unique(theirs)).min()
    assert np.abs(logits - theirs).max() <= 1.01 * step
    assert (logits == theirs).mean() > 0.95
    assert (floats == theirs).mean() < 0.05, "or the model would not be int8"


def extremes(kind: str) -> npt.NDArray[Any]:
    if kind == "bool":
        return np.array([[True, False, True]])
    if kind.startswith("float"):
        limits = np.finfo(kind)
        return np.array([[limits.max, limits.smallest_subnormal, -0.0], [np.inf, np.nan, 0.1]], dtype=kind)
    bounds = np.iinfo(kind)
    return np.array([[bounds.min, bounds.max, 1]], dtype=kind)


def test_every_dtype_goes_there_and_back_to_the_bit(mixed: CheckedSession) -> None:
    """Tensors of eleven dtypes, their extremes and names beyond ASCII come back with the same bytes."""
    stated = {spec.name: spec.dtype for spec in mixed.inputs if spec.name not in tuple("xab")}
    assert stated == {f"{kind} ü/0": kind for kind in KINDS}
    given = feeds()
    outputs = mixed.run(given)
    for name in stated:
        array, back = given[name], outputs[f"{name}:same"]
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert back.flags.writeable


def test_megabytes_go_through(mixed: CheckedSession) -> None:
    """A tensor many times what a pipe holds comes back negated."""
    x = np.arange(2_000_003, dtype=np.int32)
    np.testing.assert_array_equal(mixed.run(feeds(x=x))["y"], -x)


def test_two_sessions_at_once_keep_apart(pair: Pair) -> None:
    """Two models, run in turn, each give their own answers."""
    _, _, first, second = pair
    floats, steps = first.run({"image": PIXELS})["logits"], second.run({"image": PIXELS})["logits"]
    assert not np.array_equal(floats, steps)
    np.testing.assert_array_equal(first.run({"image": PIXELS})["logits"], floats)
    np.testing.assert_array_equal(second.run({"image": PIXELS})["logits"], steps)


@pytest.mark.parametrize(
    ("device", "content"),
    [("node", b""), ("node", b"not a model at all"), ("chromium", b"not a model at all")],
    ids=["node-empty", "node-foreign", "chromium-foreign"],
    indirect=["device"],
)
def test_a_file_that_is_no_model_is_one_line(device: str, content: bytes, tmp_path: Path) -> None:
    """A broken file is an error that names it, the device and ONNX Runtime's reason."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=rf"broken\.onnx: ONNX Runtime Web could not load it on {device} \(.+\)") as caught:  # fmt: skip
        opened(Artifact(name="broken", format="onnx", path=path), device)
    assert "\n" not in str(caught.value)


def test_a_failing_run_is_one_line_and_the_session_lives_on(mixed: CheckedSession) -> None:
    """What ONNX Runtime refuses while running is an error with its reason, and the next run is answered."""
    with pytest.raises(BackendError, match="failed while running on") as caught:
        mixed.run(feeds(b=np.ones(3, np.int32)))
    assert "\n" not in str(caught.value)
    assert mixed.run(feeds())["c"].tolist() == [2, 2]


def test_a_process_that_dies_is_said_to_have_ended(device: str, fp32: Artifact) -> None:
    """After its process was killed a session raises at once, and then says that it is closed."""
    with opened(fp32, device) as session:
        session.run({"image": PIXELS})
        process_of(session).kill()
        process_of(session).wait()
        with pytest.raises(BackendError, match=f"{device} ended: "):
            session.run({"image": PIXELS})
        with pytest.raises(BackendError, match="the session is closed"):
            session.run({"image": PIXELS})


def test_closing_leaves_nothing(device: str, fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed session leaves no process, no folder, no socket and no answers."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own is too long for Chromium's socket
        folder = Path(name)
        monkeypatch.setattr("tempfile.tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        with opened(fp32, device) as session:
            session.run({"image": PIXELS})
            leader = process_of(session).pid
            assert running(leader), "or nothing would be looked for"
            assert device == "node" or list(folder.glob("edgecnn-*"))
            assert device == "node" or list(folder.rglob("SingletonSocket"))
        assert not running(leader)
        assert not list(folder.iterdir())
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"image": PIXELS})
    with pytest.raises(ContractError):
        session.run({})


def test_a_long_tmpdir_does_not_keep_chromium_from_starting(
    fp32: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR is longer than a socket's path may be the browser gets a shorter place, and answers."""
    need("chromium", monkeypatch)
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    with opened(fp32, "chromium") as session:
        assert session.run({"image": PIXELS})["logits"].shape == (40, 10)
    assert not list(long.iterdir())


def test_a_killed_python_takes_its_processes_along(device: str, fp32: Artifact) -> None:
    """Where Python has no chance to close anything, the processes it started end by themselves."""
    code = (
        "import os, sys; from pathlib import Path; from edgecnn.backends.onnxruntime_web import *\n"
        "artifact = Artifact(name='a', format='onnx', path=Path(sys.argv[1]))\n"
        "session = OnnxRuntimeWebBackend().load(artifact, sys.argv[2], SessionOptions())\n"
        "print(session._link._process.pid, flush=True); input(); os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(fp32.path), device]
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
        ) as python,
    ):
        assert python.stdin is not None
        assert python.stdout is not None
        leader = int(python.stdout.readline())
        assert running(leader)
        python.communicate("\n")
    assert python.returncode == -9
    patience = time.monotonic() + 60
    while running(leader) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not running(leader)


def test_a_session_that_is_forgotten_ends_its_process(device: str, fp32: Artifact) -> None:
    """A session that nobody closed is closed when nothing refers to it any more."""
    session = opened(fp32, device)
    leader = process_of(session).pid
    assert running(leader)
    del session
    assert not running(leader)


def test_threads_asked_for_are_obtained(fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads give the answers of one, as the shared suite shows of Chromium too, and are more."""
    need("node", monkeypatch)
    with opened(fp32, "node", 1) as one, opened(fp32, "node", 2) as two:
        first, second = one.run({"image": PIXELS})["logits"], two.run({"image": PIXELS})["logits"]
        count = [len(list(Path(f"/proc/{process_of(session).pid}/task").iterdir())) for session in (one, two)]
        assert count[0] < count[1]
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6 * np.abs(first).max())


def test_threads_not_obtained_are_refused(fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not isolated has one thread only; two asked for are an error and one is not."""
    need("chromium", monkeypatch)
    monkeypatch.delitem(web_bridge.HEADERS, "Cross-Origin-Opener-Policy")
    with pytest.raises(BackendError, match=r"2 threads were asked for and 1 obtained"):
        opened(fp32, "chromium", 2)
    with opened(fp32, "chromium", 1) as session:
        assert session.run({"image": PIXELS})["logits"].shape == (40, 10)


@pytest.mark.parametrize("gone", ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs", "ort.{}.min.mjs"])
def test_a_damaged_package_is_one_line(
    device: str, gone: str, fp32: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file of the npm package is missing nothing is fetched in its stead: it is an error of one line."""
    whole = find_package()
    dist = tmp_path / "web" / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for file in whole.glob("*.[mw]*"):
        if file.name != gone.format("node" if device == "node" else "wasm"):
            (dist / file.name).symlink_to(file)
    for package in whole.parents[1].iterdir():
        if package.name != "onnxruntime-web":
            (dist.parents[1] / package.name).symlink_to(package)
    (dist.parent / "package.json").symlink_to(whole.parent / "package.json")
    monkeypatch.setenv("EDGECNN_WEB", str(tmp_path / "web"))
    monkeypatch.setenv("NODE_OPTIONS", "--preserve-symlinks")
    with pytest.raises(BackendError, match=rf"fp32\.onnx: ONNX Runtime Web could not load it on {device} \(.+\)") as caught:  # fmt: skip
        opened(fp32, device)
    assert "\n" not in str(caught.value)
