"""The `remote` backend against OpenSSH's own server: answers of the box's own edgecnn, and what goes wrong on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from loopback import Loopback

from edgecnn.backends.base import CheckedSession, SessionOptions, open_session
from edgecnn.backends.remote import RemoteBackend
from edgecnn.bench.run import bench
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.errors import BackendError, DeviceError, MissingPackageError
from edgecnn.host import fingerprint
from edgecnn.report.bench import bench_text
from edgecnn.spec import Artifact, BackendRef
from edgecnn.ssh import Connection
from edgecnn.testing import check_backend

pytestmark = pytest.mark.slow  # each session is a login and an interpreter that imports ONNX Runtime


@pytest.fixture
def deployed(box: Loopback) -> Loopback:
    """Give a box with a release whose interpreter is this one, and whose bundle is empty."""
    release(box, sys.executable)
    return box


def release(box: Loopback, python: str, folder: str = "edgecnn") -> Path:
    """Lay out what deploy leaves behind."""
    made = box.home / folder / "releases" / "0001-0"
    (made / "bundle").mkdir(parents=True)
    (made / "release.json").write_text(json.dumps({"python": python}))
    (box.home / folder / "current").symlink_to("releases/0001-0")
    return made / "bundle"


def opened(artifact: Artifact, device: str = "box", options: SessionOptions | None = None) -> CheckedSession:
    return open_session(BackendRef(backend="remote", device=device), artifact, options, RemoteBackend())


def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)


def test_it_keeps_the_contract(deployed: Loopback, bundle_folder: Path) -> None:
    """The shared conformance suite passes over ssh."""
    check_backend(RemoteBackend(), Bundle.open(bundle_folder).artifact("fp32"), "box")


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_answers_are_those_of_the_box(name: str, deployed: Loopback, bundle_folder: Path) -> None:
    """The box being this machine, its answers are this machine's to the bit, and it tells which machine it is."""
    artifact = Bundle.open(bundle_folder).artifact(name)
    one = SessionOptions(threads=1)
    with open_session(BackendRef(backend="onnxruntime"), artifact, one) as here, opened(artifact, options=one) as there:
        assert (there.inputs, there.outputs, there.device) == (here.inputs, here.outputs, "box")
        for _ in range(2):
            answers = there.run({"image": pixels()})
            for output, array in here.run({"image": pixels()}).items():
                np.testing.assert_array_equal(answers[output], array)
        assert there.inner.host == fingerprint()  # type: ignore[attr-defined]


def test_what_lies_in_the_bundle_there_is_not_sent(
    deployed: Loopback, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that the deployed bundle holds is taken by its hash; one that differs in a byte there is sent from here."""
    sent: list[int] = []
    ask = Connection.ask

    def counting(self: Connection, message: bytes, timeout_s: float) -> bytes:
        sent.append(len(message))
        return ask(self, message, timeout_s)

    monkeypatch.setattr(Connection, "ask", counting)
    artifact = Bundle.open(bundle_folder).artifact("fp32")
    size = artifact.path.stat().st_size
    there = deployed.home / "edgecnn" / "current" / "bundle" / "any name.onnx"
    for content, is_sent in ((None, True), (artifact.read_bytes(), False), (artifact.read_bytes()[:-1] + b"x", True)):
        if content is not None:
            there.write_bytes(content)
        sent.clear()
        with opened(artifact) as session:
            assert session.run({"image": pixels()})["logits"].shape == (9, 10)
        assert (max(sent[:2]) > size) == is_sent


def test_a_bench_says_what_is_in_its_times(deployed: Loopback, bundle_folder: Path) -> None:
    """Times taken from here are told to hold the way there and back; another candidate's have no such line."""
    refs = [BackendRef.parse("onnxruntime:fp32"), BackendRef.parse("remote:fp32@box")]
    lines = bench_text(bench(Bundle.open(bundle_folder), refs, seconds=0.1, cold_runs=0)).splitlines()
    (told,) = [line for line in lines if "the way there and back" in line]
    assert told.startswith("remote:fp32@box: its times hold")


def test_options_reach_the_box(deployed: Loopback, bundle_folder: Path) -> None:
    """Threads asked for here are those of the session there; one that the edgecnn there does not know is refused."""
    artifact = Bundle.open(bundle_folder).artifact("fp32")
    (deployed.home.parent / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        f"def note():\n    if 'onnxruntime' in sys.modules: open({str(deployed.home / 'threads')!r}, 'w').write(str(noted))\n"
        "noted = []\natexit.register(note)\n"
        "def watch(frame, event, argument):\n"
        "    if frame.f_code.co_name == '_session_options': noted.append(frame.f_locals['options'].threads)\n"
        "sys.settrace(watch)\n"
    )
    deployed.plant(f"export PYTHONPATH='{deployed.home.parent}'")
    with opened(artifact, options=SessionOptions(threads=3)) as session:
        session.run({"image": pixels()})
    until = time.monotonic() + 10
    while not (deployed.home / "threads").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (deployed.home / "threads").read_text() == "[3]"

    @dataclasses.dataclass(frozen=True)
    class Newer(SessionOptions):
        turbo: bool = False

    deployed.plant("")
    with pytest.raises(BackendError, match=r"does not know turbo.*deploy --install"):
        opened(artifact, options=Newer(turbo=True))


def test_a_box_without_edgecnn_says_how_it_gets_there(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """Nothing installed, nothing but edgecnn installed, and an environment that is gone: each names `deploy --install`."""
    artifact = Bundle.open(bundle_folder).artifact("fp32")
    with pytest.raises(BackendError, match=r"edgecnn is not installed there: `edgecnn deploy --install`"):
        opened(artifact)
    release(box, sys.executable)
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery as m\nreal = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(lambda cls, name, *a: None if name == 'onnxruntime' else real(name, *a))\n"
    )
    box.plant(f"export PYTHONPATH='{tmp_path}'")
    with pytest.raises(BackendError, match=r"onnxruntime, which is not installed here.*`edgecnn deploy --install`"):
        opened(artifact)
    box.plant("")
    shutil.rmtree(box.home / "edgecnn")
    release(box, str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(DeviceError, match=r"venv/bin/python is not there any more: `edgecnn deploy --install`"):
        opened(artifact)


def test_another_folder_is_another_device(box: Loopback, bundle_folder: Path) -> None:
    """What follows the colon is where it was deployed, whatever its name, and the device obtained is called so."""
    release(box, sys.executable, "a $(touch pwned) b@c")
    artifact = Bundle.open(bundle_folder).artifact("fp32")
    device = "box:a $(touch pwned) b@c"
    with opened(artifact, device) as session:
        assert session.device == device
        assert session.run({"image": pixels()})["logits"].shape == (9, 10)
    assert not list(box.home.rglob("pwned"))
    with pytest.raises(BackendError, match="edgecnn is not installed there"):
        opened(artifact, "box")


@pytest.mark.parametrize("device", ["cpu", "", "-oProxyCommand=id", "box;id", "user@"])
def test_no_host_is_one_line(device: str, bundle_folder: Path) -> None:
    """Without a host, or with what cannot be one, the line shows how it is written, and ssh is not started."""
    artifact = Bundle.open(bundle_folder).artifact("int8")
    with pytest.raises(DeviceError, match=r"no box(?: is named)?: write remote:int8@user@host\[:path\]") as error:
        opened(artifact, device)
    assert "\n" not in str(error.value)


def test_devices_ask_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list shows how a device is written and starts nothing; without ssh it says what to install."""
    monkeypatch.setattr("subprocess.Popen", None)
    assert list(RemoteBackend().devices()) == ["user@host[:path]"]
    assert "pi@anywhere" in RemoteBackend().devices()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="openssh-client"):
        RemoteBackend().devices()


def test_a_file_that_is_no_model_is_refused_with_the_reason(deployed: Loopback, tmp_path: Path) -> None:
    """ONNX Runtime's own reason comes back in one line that names the file here, and the connection is closed."""
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(
        BackendError, match=r"bad\.onnx: could not be loaded on box \(ONNX Runtime.*protobuf parsing"
    ) as error:
        opened(Artifact(name="bad", format="onnx", path=tmp_path / "bad.onnx"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("killed", ["ssh", "the box's process"])
def test_a_connection_that_is_lost_is_one_line(killed: str, deployed: Loopback, bundle_folder: Path) -> None:
    """Killed on either side between two runs, the next run is one line that names the box, and the one after it too."""
    with opened(Bundle.open(bundle_folder).artifact("fp32")) as session:
        session.run({"image": pixels()})
        connection: Connection = session.inner._connection  # type: ignore[attr-defined]
        if killed == "ssh":
            connection._process.kill()
        else:
            os.kill(_child(deployed), signal.SIGKILL)
        with pytest.raises(BackendError, match=r"box: (ssh was ended by SIGKILL|what ran there has ended|.*lost)"):
            session.run({"image": pixels()})
        with pytest.raises(BackendError, match="box: the connection is closed"):
            session.run({"image": pixels()})


def _child(box: Loopback) -> int:
    """Find the interpreter that the box's commands have become, by where it was started."""
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and (entry / "cwd").readlink() == box.home
                and b"edgecnn-box" in (entry / "cmdline").read_bytes()
            ):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no process of the box was found")


def test_closing_ends_the_process_there(deployed: Loopback, bundle_folder: Path) -> None:
    """When a session is closed the interpreter on the box ends, and the model's temporary file is gone."""
    with opened(Bundle.open(bundle_folder).artifact("fp32")) as session:
        session.run({"image": pixels()})
        pid = _child(deployed)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_parity_compares_what_the_box_answers(
    deployed: Loopback, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edgecnn parity` passes on a box that computes right, and fails on one whose answers are a tenth too large."""
    asked = ["parity", str(bundle_folder), "-r", "onnxruntime:fp32", "-c", "remote:fp32@box", "--json"]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output
    cell = json.loads(result.stdout)["cells"][0]
    assert (cell["candidate"], cell["computation"]["verdict"]) == ("remote:fp32@box", "PASS")
    here = fingerprint()
    assert cell["where"]["runtime"] == f"onnxruntime {here.packages['onnxruntime']} on {here.cpu}"
    (tmp_path / "sitecustomize.py").write_text(
        "import edgecnn.backends.onnxruntime as one\nrun = one.OnnxRuntimeSession.run\n"
        "def larger(self, feeds): return {k: v * v.dtype.type(1.1) for k, v in self._true(feeds).items()}\n"
        "one.OnnxRuntimeSession._true = run\none.OnnxRuntimeSession.run = larger\n"
    )
    deployed.plant(f"export PYTHONPATH='{tmp_path}'")
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["cells"][0]["computation"]["verdict"] == "FAIL"


def test_the_hash_is_checked_before_anything_is_sent(deployed: Loopback, bundle_copy: Path) -> None:
    """A file that is not what its record says does not leave this machine."""
    artifact = Bundle.open(bundle_copy).artifact("fp32")
    artifact.path.write_bytes(artifact.path.read_bytes() + b"x")
    assert hashlib.sha256(artifact.path.read_bytes()).hexdigest() != artifact.sha256
    with pytest.raises(Exception, match="not what the manifest recorded"):
        opened(artifact)
