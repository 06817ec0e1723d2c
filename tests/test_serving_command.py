"""`edgecnn serve` as it is called: who may be let in, what is refused before anything listens, and what is said."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgecnn.serving.run
from edgecnn.backends.onnxruntime import OnnxRuntimeSession
from edgecnn.cli import cli
from edgecnn.serving.app import _ACCESS, SERVICE
from edgecnn.serving.run import _listen, _url


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what would be served, in place of serving it."""
    calls: list[Any] = []
    monkeypatch.setattr(edgecnn.serving.run, "run", lambda *call: calls.append(call))
    return calls


def call(bundle: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["serve", str(bundle), "--threads", "1", *arguments], env=environment)
    return done.exit_code, done.stderr


REFUSED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "open to all": (["--host", "0.0.0.0"], {}, "--token-file"),
    "a name": (["--host", "box.example"], {}, "--token-file"),
    "both": (["--token", "a", "--no-auth"], {}, "give one"),
    "two tokens": (["--token-file", "token"], {"EDGECNN_TOKEN": "b"}, "give one"),
    "empty": (["--token", " "], {}, "printable ASCII"),
    "accents": (["--token", "é"], {}, "printable ASCII"),
    "empty file": (["--token-file", "empty"], {}, "printable ASCII"),
    "two lines": (["--token-file", "lines"], {}, "printable ASCII"),
    "binary": (["--token-file", "binary"], {}, "printable ASCII"),
    "backend": (["-b", "nothing"], {}, "nothing"),
    "batch": (["--max-batch", "65"], {}, "--max-batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_and_contradictory_calls_are_refused(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[Any], case: str
) -> None:
    """A server open to others without a token, two tokens, or one that no header carries, is exit 2 with one line."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"token": b"a", "empty": b"\n", "lines": b"a\nb\n", "binary": b"\xff\xfe"}.items():
        Path(name).write_bytes(content)
    arguments, environment, said = REFUSED[case]
    code, err = call(bundle_folder, *arguments, **environment)
    assert (code, served) == (2, [])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "token", "loopback"),
    [
        ([], {}, None, True),
        (["--host", "::1"], {}, None, True),
        (["--host", "localhost"], {}, None, True),
        (["--host", "0.0.0.0", "--no-auth"], {}, None, False),
        (["--host", "0.0.0.0"], {"EDGECNN_TOKEN": "from the environment"}, "from the environment", False),
        (["--host", "0.0.0.0", "--token-file", "token"], {}, "from a file", False),
        (["--token", "given"], {}, "given", True),
    ],
)
def test_who_may_ask_follows_from_the_call(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[Any],
    arguments: list[str], environment: dict[str, str], token: str | None, loopback: bool,
) -> None:  # fmt: skip
    """The token comes from option, file or environment, and only a loopback server minds by which name it is called."""
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("from a file\n")
    code, err = call(bundle_folder, *arguments, **environment)
    assert code == 0, err
    access = served[0][0][_ACCESS]
    assert (access.token, access.loopback) == (token, loopback)


def test_limits_are_those_of_the_call(bundle_folder: Path, served: list[Any]) -> None:
    """Sizes, times and counts on the command line arrive in bytes and seconds."""
    given = [
        "--max-body",
        "3",
        "--queue",
        "5",
        "--max-batch",
        "2",
        "--max-delay-ms",
        "4",
        "--timeout",
        "6",
        "--port",
        "0",
    ]
    code, err = call(bundle_folder, *given)
    assert code == 0, err
    app, host, port, _ = served[0]
    limits = app[SERVICE].limits
    assert (limits.body, limits.queue, limits.max_batch, limits.max_delay) == (3 << 20, 5, 2, 0.004)
    assert (limits.receive, limits.answer, host, port) == (6.0, 6.0, "127.0.0.1", 0)


def test_a_port_in_use_is_one_line(bundle_folder: Path) -> None:
    """A port that somebody listens on is exit 2 and one line that names it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, err = call(bundle_folder, "--port", str(port))
    assert code == 2
    assert f"127.0.0.1 port {port}" in err
    assert len(err.splitlines()) == 1


def test_without_its_packages_it_says_what_to_install(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, served: list[Any]
) -> None:
    """Where aiohttp is not installed the call is exit 2 and names the extra."""
    find = util.find_spec
    monkeypatch.setattr("edgecnn.cli.serve.find_spec", lambda name: None if name == "aiohttp" else find(name))
    code, err = call(bundle_folder)
    assert (code, served) == (2, [])
    assert "edgecnn[serve]" in err


def test_where_batches_change_answers_none_is_made(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, served: list[Any]
) -> None:
    """On a runtime whose answers change with three images together, each is run alone, said so; asked for, it is refused."""
    run = OnnxRuntimeSession.run

    def drift(self: OnnxRuntimeSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
        outputs = run(self, feeds)
        many = len(next(iter(feeds.values()))) >= 3
        return {name: np.nextafter(array, np.float32(2)) if many else array for name, array in outputs.items()}

    monkeypatch.setattr(OnnxRuntimeSession, "run", drift)
    code, err = call(bundle_folder)
    assert code == 0, err
    assert served[0][0][SERVICE].max_batch == 1
    assert "3 images run together" in err
    code, err = call(bundle_folder, "--max-batch", "4")
    assert (code, len(served)) == (2, 1)
    assert "--max-batch 2" in err
    assert call(bundle_folder, "--max-batch", "2")[0] == 0


@pytest.mark.parametrize(
    ("host", "written"), [("0.0.0.0", "box"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")]
)
def test_the_address_told_can_be_opened(host: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on all addresses tells the machine's name: 0.0.0.0 is none that another machine could open."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    with contextlib.closing(_listen(host, 0)) as listening:
        assert _url(host, listening) == f"http://{written}:{listening.getsockname()[1]}/"
