"""The way to an emulated CPU and back: arrays, names, session options, and what goes wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from edgecnn.device.emulate import CPUS, EmulatedCpu, EmulatedProcess, Value, run_emulated
from edgecnn.errors import BackendError, MissingPackageError

NAMES = ("file", "a/b:0")
HASWELL = EmulatedCpu("Haswell")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a model that negates two inputs; their names are arguments and paths elsewhere."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["n"]) for name in NAMES]
    outputs = [helper.make_tensor_value_info(f"-{name}", TensorProto.INT32, ["n"]) for name in NAMES]
    nodes = [helper.make_node("Neg", [name], [f"-{name}"]) for name in NAMES]
    made = helper.make_model(
        helper.make_graph(nodes, "negate", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for qemu on the PATH that notes its arguments and runs the command on the real CPU."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "qemu-x86_64-static"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\necho $$ > {tmp_path}/pid\nshift 2\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return script


@pytest.fixture
def process(qemu: Path, model: Path) -> Iterator[EmulatedProcess]:
    """Start a process that holds the model."""
    started = EmulatedProcess(HASWELL, model)
    yield started
    started.close()


def feeds_of(start: int = 0, count: int = 3) -> dict[str, npt.NDArray[np.int32]]:
    return {name: np.arange(start, start + count, dtype=np.int32) + index for index, name in enumerate(NAMES)}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_arrays_go_in_and_come_back_under_any_name(qemu: Path, model: Path) -> None:
    """Every output comes back under its own name and with its dtype, whatever tensors are called."""
    feeds = feeds_of()
    outputs = run_emulated("Haswell", model, feeds)
    assert set(outputs) == {"-file", "-a/b:0"}
    for name, array in feeds.items():
        assert outputs[f"-{name}"].dtype == np.int32
        np.testing.assert_array_equal(outputs[f"-{name}"], -array)
    assert (qemu.parents[1] / "arguments").read_text().startswith("-cpu Haswell ")


def test_a_run_leaves_neither_process_nor_files(
    qemu: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the answer is there the process has ended and the folder that carried the arrays is gone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    run_emulated("Haswell", model, feeds_of())
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert not list(temporary.iterdir())


def test_one_process_answers_many_runs(process: EmulatedProcess, tmp_path: Path) -> None:
    """Runs of any size are answered by the one process that was started, each with its own numbers."""
    assert process.inputs == [Value(name, "tensor(int32)", ["n"]) for name in NAMES]
    assert [value.name for value in process.outputs] == ["-file", "-a/b:0"]
    for start, count in ((0, 1), (5, 4), (-3, 70_000)):
        np.testing.assert_array_equal(process.run(feeds_of(start, count))["-file"], -np.arange(start, start + count))
    assert len((tmp_path / "arguments").read_text().splitlines()) == 1


def test_arrays_that_are_refused_leave_the_process_alive(process: EmulatedProcess) -> None:
    """ONNX Runtime's reason against one run is one line, and the next run is answered."""
    with pytest.raises(BackendError, match=r"model\.onnx on an emulated Haswell failed: .*data type") as error:
        process.run({name: array.astype(np.float64) for name, array in feeds_of().items()})
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(process.run(feeds_of())["-file"], [0, -1, -2])


def test_a_killed_process_is_one_line(process: EmulatedProcess, tmp_path: Path) -> None:
    """A process that was killed between two runs is told with the signal, and stays ended."""
    process.run(feeds_of())
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(BackendError, match=r"model\.onnx on an emulated Haswell failed: it was ended by SIGKILL$"):
        process.run(feeds_of())
    with pytest.raises(BackendError, match="it was closed, or ended before"):
        process.run(feeds_of())


def test_closing_ends_the_process(process: EmulatedProcess, tmp_path: Path) -> None:
    """Once closed, and closed again, there is no process, and a run is refused."""
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    process.close()
    process.close()
    assert not is_running(pid)
    with pytest.raises(BackendError, match="it was closed"):
        process.run(feeds_of())


def test_what_else_is_printed_is_no_answer(
    qemu: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libraries write to standard output while they load and run does not disturb the answers."""
    noise = "import json, os\nreal = json.loads\njson.loads = lambda text: (os.write(1, b'{}\\n'), real(text))[1]\n"
    (tmp_path / "sitecustomize.py").write_text(noise)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_emulated("Haswell", model, feeds_of())["-file"].tolist() == [0, -1, -2]


def test_session_options_arrive(qemu: Path, model: Path) -> None:
    """A config entry reaches ONNX Runtime: one that it refuses makes the run fail with ONNX Runtime's own words."""
    feeds = {name: np.zeros(1, np.int32) for name in NAMES}
    with pytest.raises(
        BackendError, match=r"model\.onnx on an emulated Haswell failed: .*Config key is empty"
    ) as error:
        run_emulated("Haswell", model, feeds, {"": "1"})
    assert "\n" not in str(error.value)


def test_a_failure_says_its_last_line(qemu: Path, tmp_path: Path) -> None:
    """A file that is no model is one line that names the file, the CPU and ONNX Runtime's reason."""
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(BackendError, match=r"bad\.onnx on an emulated Nehalem failed: .*Protobuf parsing") as error:
        run_emulated("Nehalem", tmp_path / "bad.onnx", {})
    assert "\n" not in str(error.value)


def test_what_qemu_says_last_is_told(qemu: Path, model: Path) -> None:
    """A qemu that cannot start says why itself, and one that says nothing is told by its exit code."""
    qemu.write_text("#!/bin/sh\necho first >&2\necho unable to find CPU model >&2\nexit 1\n")
    with pytest.raises(BackendError, match=r"Haswell failed: unable to find CPU model$"):
        run_emulated("Haswell", model, {})
    qemu.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(BackendError, match=r"Haswell failed: it ended with exit code 7$"):
        run_emulated("Haswell", model, {})


def test_silence_is_not_waited_for_for_ever(qemu: Path, model: Path, tmp_path: Path) -> None:
    """A process that gives no answer is ended, and the line says what to do."""
    qemu.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    with pytest.raises(BackendError, match=r"no answer in 0\.5 s: feed fewer"):
        run_emulated("Haswell", model, {}, timeout_s=0.5)
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_without_qemu_the_error_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where qemu is missing the error names Debian's package."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="apt-get install qemu-user-static"):
        run_emulated("Haswell", model, {})


@pytest.fixture
def sysroot(qemu: Path, tmp_path: Path) -> Path:
    """Make a folder whose Python is this one, and a stand-in for qemu that notes what an Arm program would see."""
    python = tmp_path / "sysroot" / "usr" / "bin" / "python3.11"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nunset PYTHONHOME PYTHONPATH\nexec {sys.executable} "$@"\n')
    script = qemu.with_name("qemu-aarch64-static")
    seen = f'echo "$@" > {tmp_path}/arguments\ncat "$4/proc/cpuinfo" > {tmp_path}/cpuinfo\nenv > {tmp_path}/env'
    script.write_text(f'#!/bin/sh\n{seen}\ntest "$4/usr" -ef {tmp_path}/sysroot/usr || exit 9\nshift 4\nexec "$@"\n')
    for file in (python, script):
        file.chmod(0o755)
    return tmp_path / "sysroot"


@pytest.mark.parametrize(
    ("device", "cpu", "dot"), [("arm64", "cortex-a72", False), ("arm64-dotprod", "neoverse-n1", True)]
)
def test_an_arm_program_sees_an_arm_cpu_and_its_own_modules(
    device: str, cpu: str, dot: bool, sysroot: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's features are those of the device, and neither libraries nor modules of this machine go along."""
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.chdir(sysroot.parent)
    process = EmulatedProcess(CPUS[device], model, sysroot=Path("sysroot"))
    assert process.run(feeds_of())["-file"].tolist() == [0, -1, -2]
    process.close()
    assert (tmp_path / "arguments").read_text().startswith(f"-cpu {cpu} -L ")
    told = dict(line.split("\t: ") for line in (tmp_path / "cpuinfo").read_text().splitlines() if "\t: " in line)
    assert ("asimddp" in told["Features"].split()) == dot
    assert "asimd" in told["Features"].split()
    assert told["CPU part"] == {"cortex-a72": "0xd08", "neoverse-n1": "0xd0c"}[cpu]
    environment = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert environment["PYTHONHOME"] == str(sysroot / "usr")
    assert environment["PYTHONPATH"] == str(sysroot / "opt" / "site")
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert not {"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONSTARTUP"} & set(environment)


def test_without_a_sysroot_the_error_says_how_to_get_one(sysroot: Path, model: Path, tmp_path: Path) -> None:
    """An Arm CPU without a folder to run from, or with an empty one, names the command."""
    for folder in (None, tmp_path / "empty"):
        with pytest.raises(MissingPackageError, match="`edgecnn sysroot arm64`"):
            EmulatedProcess(CPUS["arm64"], model, sysroot=folder)
