"""The way to an emulated CPU and back: arrays, names, session options, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecnn.device.emulate import run_emulated
from edgecnn.errors import BackendError, MissingPackageError

NAMES = ("file", "a/b:0")


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
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nshift 2\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return script


def test_arrays_go_in_and_come_back_under_any_name(qemu: Path, model: Path) -> None:
    """Every output comes back under its own name and with its dtype, whatever tensors are called."""
    feeds = {name: np.arange(3, dtype=np.int32) + index for index, name in enumerate(NAMES)}
    outputs = run_emulated("Haswell", model, feeds)
    assert set(outputs) == {"-file", "-a/b:0"}
    for name, array in feeds.items():
        assert outputs[f"-{name}"].dtype == np.int32
        np.testing.assert_array_equal(outputs[f"-{name}"], -array)
    assert (qemu.parents[1] / "arguments").read_text().startswith("-cpu Haswell ")


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


def test_silence_is_not_waited_for_for_ever(qemu: Path, model: Path) -> None:
    """A process that gives no answer is ended, and the line says what to do."""
    qemu.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(BackendError, match=r"no answer in 0\.2 s: feed fewer"):
        run_emulated("Haswell", model, {}, timeout_s=0.2)


def test_without_qemu_the_error_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where qemu is missing the error names Debian's package."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="apt-get install qemu-user-static"):
        run_emulated("Haswell", model, {})
