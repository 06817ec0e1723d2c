"""The browser backend without its runtime: what is missing, stand-ins that misbehave, the wire and the bridge."""

from __future__ import annotations

import http.client
import shlex
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from web_models import need

from edgecnn.backends.base import SessionOptions
from edgecnn.backends.onnxruntime_web import VERSION, OnnxRuntimeWebBackend
from edgecnn.backends.web_bridge import Bridge
from edgecnn.backends.web_wire import PREFIX, pack, unpack
from edgecnn.errors import BackendError, DeviceError, MissingPackageError
from edgecnn.spec import Artifact


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that holds an npm package of the right name, and nothing in it."""
    folder = tmp_path / "we b"
    (folder / "node_modules" / "onnxruntime-web" / "dist").mkdir(parents=True)
    monkeypatch.setenv("EDGECNN_WEB", str(folder))
    return folder


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the only folder on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    (tmp_path / "model.onnx").write_bytes(b"model")
    return Artifact(name="fp32", format="onnx", path=tmp_path / "model.onnx")


def program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_without_the_package_the_error_is_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message ends with one command that a shell reads as npm's own arguments; nothing was made."""
    folder = tmp_path / "my web"
    monkeypatch.setenv("EDGECNN_WEB", str(folder))
    for call in (OnnxRuntimeWebBackend().devices, lambda: load("node", model=tmp_path / "x.onnx")):
        (tmp_path / "x.onnx").write_bytes(b"x")
        with pytest.raises(MissingPackageError) as caught:
            call()
        told, _, command = str(caught.value).partition(": ")
        assert str(folder) in told
        assert shlex.split(command) == [
            "npm", "install", "--ignore-scripts", "--prefix", str(folder), f"onnxruntime-web@{VERSION}",
        ]  # fmt: skip
    assert not folder.exists()


def load(device: str, model: Path) -> Any:
    return OnnxRuntimeWebBackend().load(Artifact(name="a", format="onnx", path=model), device, SessionOptions())


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"EDGECNN_WEB": "/a", "XDG_DATA_HOME": "/b"}, "/a"),
        ({"XDG_DATA_HOME": "/b"}, "/b/edgecnn/web"),
        ({"EDGECNN_WEB": "", "XDG_DATA_HOME": "relative"}, "/h/.local/share/edgecnn/web"),
        ({}, "/h/.local/share/edgecnn/web"),
    ],
)
def test_the_package_is_looked_for_in_one_place(
    variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDGECNN_WEB comes first, then XDG_DATA_HOME if absolute, then ~/.local/share."""
    for name in ("EDGECNN_WEB", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/h", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingPackageError, match=f" is not in {place}: npm "):
        OnnxRuntimeWebBackend().devices()


@pytest.mark.usefixtures("web")
def test_devices_are_what_is_on_the_path(path: Path, model: Artifact) -> None:
    """Neither program is an error that says what to install; each makes its own device, under any of its names."""
    backend = OnnxRuntimeWebBackend()
    with pytest.raises(MissingPackageError, match="apt-get install nodejs, or chromium"):
        backend.devices()
    with pytest.raises(DeviceError, match="node"):
        backend.load(model, "node", SessionOptions())
    program(path / "google-chrome", "#!/bin/sh\n")
    assert backend.devices() == ("chromium",)
    program(path / "node", "#!/bin/sh\n")
    assert backend.devices() == ("node", "chromium")
    (path / "google-chrome").unlink()
    assert backend.devices() == ("node",)


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(("device", "name"), [("node", "node"), ("chromium", "chromium")])
def test_a_process_that_ends_says_its_last_line(device: str, name: str, path: Path, model: Artifact) -> None:
    """A program that cannot start is one line with what it wrote last, and at once."""
    program(path / name, "#!/bin/sh\necho one >&2\necho 'two: no such thing' >&2\necho >&2\nexit 3\n")
    with pytest.raises(BackendError, match=rf"model\.onnx: .* on {device} \({device} ended: two: no such thing\)"):
        OnnxRuntimeWebBackend().load(model, device, SessionOptions())
    program(path / name, "#!/bin/sh\nexit 3\n")
    with pytest.raises(BackendError, match=rf"{device} ended: exit status 3"):
        OnnxRuntimeWebBackend().load(model, device, SessionOptions())


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("device", ["node", "chromium"])
def test_silence_is_not_waited_for_for_ever(
    device: str, path: Path, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that gives no answer in time is ended with all it started, and its folder is removed."""
    made: list[str] = []
    real = tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", lambda *words, **named: made.append(real(*words, **named)) or made[-1])
    program(
        path / device, f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {shutil.which('sleep', path='/usr/bin:/bin')} 99\n"
    )
    with pytest.raises(BackendError, match=rf"{device} gave no answer in 0\.7 s"):
        OnnxRuntimeWebBackend(start_s=0.7).load(model, device, SessionOptions())
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()
    assert len(made) == (device == "chromium")
    assert not any(Path(folder).exists() for folder in made)


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("length", [1, 40, 150])
def test_the_browser_gets_a_place_for_its_socket(
    length: int, path: Path, model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long TMPDIR is, a socket can be bound below the one that the browser gets, as the kernel says."""
    long = tmp_path / (length * "x")
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    bind = (
        "import os, socket, sys; place = os.environ['TMPDIR'] + '/org.chromium.Chromium.abcdef'; os.mkdir(place); "
        "socket.socket(socket.AF_UNIX).bind(place + '/SingletonSocket'); print('bound', file=sys.stderr)"
    )
    program(path / "chromium", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{bind}"\n')
    with pytest.raises(BackendError, match="chromium ended: bound"):
        OnnxRuntimeWebBackend().load(model, "chromium", SessionOptions())
    assert not list(long.iterdir())


@pytest.mark.usefixtures("web")
def test_without_a_place_for_the_browser_the_error_says_what_to_set(
    path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no folder with a short path can be written to, one line says so, and nothing was started."""

    def refuse(*words: object, **named: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    program(path / "chromium", f"#!/bin/sh\ntouch {path}/started\n")
    with pytest.raises(BackendError, match=r"none of .*/tmp.* is one: set TMPDIR") as caught:
        OnnxRuntimeWebBackend().load(model, "chromium", SessionOptions())
    assert "\n" not in str(caught.value)
    assert not (path / "started").exists()


@pytest.mark.usefixtures("web")
def test_a_process_that_reads_nothing_is_given_up(path: Path, tmp_path: Path) -> None:
    """A model larger than a pipe does not wait for ever for a program that does not read it."""
    program(path / "node", f"#!/bin/sh\nexec {shutil.which('sleep', path='/usr/bin:/bin')} 99\n")
    (tmp_path / "big.onnx").write_bytes(bytes(10_000_000))
    big = Artifact(name="big", format="onnx", path=tmp_path / "big.onnx")
    with pytest.raises(BackendError, match=r"node gave no answer in 0\.5 s"):
        OnnxRuntimeWebBackend(start_s=0.5).load(big, "node", SessionOptions())


ORT = """
console.log('chatter that would spoil an answer on standard output');
export const env = { wasm: {}, versions: { web: '1.20.0' } };
export const InferenceSession = { create: async () => (SESSION) };
"""
SIGNATURE = "inputMetadata: [{ name: 'x', isTensor: true, type: 'float32', shape: ['n'] }], outputMetadata: [OUTPUT]"
SESSIONS = {
    "no metadata": ("{}", r"onnxruntime-web 1\.20\.0 does not tell dtypes and shapes; 1\.21 or newer does"),
    "no tensor": (f"{{{SIGNATURE}}}".replace("OUTPUT", "{ name: 'y', isTensor: false }"), "'y' is no tensor"),
    "strings": (
        f"{{{SIGNATURE}}}".replace("OUTPUT", "{ name: 'y', isTensor: true, type: 'string', shape: [1] }"),
        "tensors of string cannot be fed",
    ),
    "it dies": ("(() => { console.error('out of luck'); process.exit(7); })()", "node ended: out of luck"),
    "fewer threads": ("(env.wasm.numThreads = 1, {})", "3 threads were asked for and 1 obtained"),
}


@pytest.mark.parametrize("case", SESSIONS)
def test_a_runtime_that_tells_too_little_is_refused(
    case: str, web: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stand-in for ONNX Runtime does not tell, or not as asked, is an error of one line."""
    need("node", monkeypatch)
    session, told = SESSIONS[case]
    dist = web / "node_modules" / "onnxruntime-web" / "dist"
    (dist / "ort.node.min.mjs").write_text(ORT.replace("SESSION", session))
    with pytest.raises(BackendError, match=told) as caught:
        OnnxRuntimeWebBackend().load(model, "node", SessionOptions(threads=3))
    assert "\n" not in str(caught.value)


def test_what_is_packed_is_unpacked() -> None:
    """Header and tensors come back as they were, whatever their memory layout, and belong to the caller."""
    tensors = {"a/ü": np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2], "b": np.array(True), "": np.zeros((0, 3))}
    header, back = unpack(pack({"do": "run", "n": 1}, tensors))
    assert header == {"do": "run", "n": 1}
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].flags.owndata
        assert back[name].flags.writeable


def test_a_message_that_is_not_whole_is_refused() -> None:
    """A message cut short, too long, or with fewer numbers than its header lists is a ValueError."""
    message = pack({}, {"x": np.arange(3, dtype=np.float32)})
    length, size = PREFIX.unpack_from(message)
    for broken in (message[:-1], message + b"\0", PREFIX.pack(length, size - 4) + message[PREFIX.size : -4],
                   PREFIX.pack(length, size + 4) + message[PREFIX.size :] + bytes(4)):  # fmt: skip
        with pytest.raises(ValueError, match=r"bytes|buffer"):
            unpack(broken)
    assert unpack(message)[1]["x"].tolist() == [0, 1, 2]


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "ort.mjs").write_text("ort")
    (tmp_path / "package" / "secret.txt").write_text("secret")
    (tmp_path / "outside.mjs").write_text("outside")
    made = Bridge(tmp_path / "package")
    yield made
    made.close()


def fetched(bridge: Bridge, path: str, body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", bridge.server_port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.headers)


def test_the_bridge_serves_its_own_files_alone(bridge: Bridge) -> None:
    """The page and the package's scripts are served; other files, other folders and other addresses are not there."""
    root = bridge.root
    assert bridge.server_address[0] == "127.0.0.1"
    assert len(root) > 30
    status, content, headers = fetched(bridge, f"{root}page.html")
    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert b"page.mjs" in content
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert fetched(bridge, f"{root}ort/ort.mjs")[:2] == (200, b"ort")
    for path in ("/", "/page.html", "/x/page.html", root[:-2] + "/page.html", root, f"{root}ort/secret.txt",
                 f"{root}ort/../outside.mjs", f"{root}ort/%2e%2e/outside.mjs", f"{root}../outside.mjs",
                 f"{root}ort//ort.mjs", f"{root}elsewhere/ort.mjs"):  # fmt: skip
        assert fetched(bridge, path)[:2] == (404, b""), path


def test_messages_reach_the_page_and_answers_come_back(bridge: Bridge) -> None:
    """A page waits until there is a message, hands in the answer when it asks for the next, and is sent away at the end."""
    later = threading.Timer(0.2, bridge.messages.put, [b"first"])
    later.start()
    assert fetched(bridge, f"{bridge.root}next", b"")[:2] == (200, b"first")
    later.join()
    assert bridge.answers.empty()
    bridge.messages.put(b"second")
    assert fetched(bridge, f"{bridge.root}next", b"answer")[:2] == (200, b"second")
    assert bridge.answers.get(timeout=10) == b"answer"
    bridge.messages.put(None)
    assert fetched(bridge, f"{bridge.root}next", b"")[0] == 410
    assert fetched(bridge, "/next", b"forged")[0] == 404
    assert bridge.answers.empty()


def test_a_page_without_its_files_fails_at_once(web: Path, path: Path, model: Artifact) -> None:
    """A page that asks for a file that is not there is an error that names the file, long before time is up."""
    fetch = "import sys, time, urllib.request as r; r.urlopen(sys.argv[-1].replace('page.html', 'ort/gone.mjs'))"
    program(path / "chromium", f'#!/bin/sh\n{shlex.quote(sys.executable)} -c "{fetch}" "$@"\nexec {shutil.which("sleep", path="/usr/bin:/bin")} 99\n')  # fmt: skip
    with pytest.raises(BackendError, match=r"the page needs ort/gone\.mjs, which is not there"):
        OnnxRuntimeWebBackend(start_s=60).load(model, "chromium", SessionOptions())
