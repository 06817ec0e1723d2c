"""Hostile clients: too large, too slow, too many, too much at once; each is refused, and an honest client is answered."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image
from served import Server, drain, sample, serving

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, UsageError
from edgecnn.serving import run as serving_run
from edgecnn.serving.app import SERVICE, make_app
from edgecnn.serving.limits import Limits
from edgecnn.spec import BackendRef

ONE_THREAD = SessionOptions(threads=1)
FP32 = BackendRef(backend="onnxruntime", artifact="fp32")
MB = 1 << 20


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the rest of what was refused for a moment only; clients on loopback need no more to see the refusal."""
    monkeypatch.setattr(serving_run, "LINGER", 0.3)


def make(bundle: Bundle, **limits: Any) -> web.Application:
    return make_app(bundle, FP32, ONE_THREAD, Limits(**limits))


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Write a request as bytes; `length` is what it claims its body has."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


class Gate:
    """Holds the model's thread until it is opened."""

    def __init__(self, app: web.Application) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        batcher = app[SERVICE].batcher
        run = batcher.run

        def wait(rows: Any) -> Any:
            self.entered.set()
            assert self.opened.wait(30)
            return run(rows)

        batcher.run = wait


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen within 20 seconds"
        time.sleep(0.01)


def test_a_gigabyte_is_refused_before_it_is_read(bundle: Bundle) -> None:
    """A body that says it has 1 GB is refused with 413 by its header alone, and the connection is closed."""
    with serving(make(bundle)) as server:
        answer = server.raw(post("/predict", b"x" * 1000, length=1 << 30))
        assert status(answer) == 413
        assert b"Connection: close" in answer
        assert server.ask("/predict", bundle.goldens().encoded[0]).status == 200


def test_an_endless_body_is_cut_off_at_the_limit(bundle: Bundle) -> None:
    """A chunked body that never ends is refused with 413 once it is over the limit, and no more of it is kept."""
    app = make(bundle, body=MB, bodies=4 * MB)
    with serving(app) as server, server.connect() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MB:
                client.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
                assert app[SERVICE].admission.held <= MB
        until(lambda: app[SERVICE].admission.held == 0)
        assert sample(server.ask("/metrics").body, 'edgecnn_rejected_total{reason="413"}') == 1


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_413(bundle: Bundle, coding: str) -> None:
    """A body of 64 KB that inflates to 64 MB is refused with 413."""
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(bytes(64 * MB))
    assert len(bomb) < 100_000
    with serving(make(bundle)) as server:
        answer = server.ask("/v2/models/bundle/infer", bomb, {"Content-Encoding": coding})
        assert answer.status == 413
        until(lambda: sample(server.ask("/metrics").body, "edgecnn_body_bytes") == 0)


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400),
        ("deflate", zlib.compress(b"{}") + b"more", 400),
        ("gzip", b"", 400),
    ],
)
def test_bad_codings_are_refused(bundle: Bundle, coding: str, body: bytes, expected: int) -> None:
    """An unknown coding is 415; a stream that is damaged, cut short or followed by more is 400."""
    with serving(make(bundle)) as server:
        answer = server.ask("/v2/models/bundle/infer", body, {"Content-Encoding": coding})
    assert (answer.status, list(answer.json)) == (expected, ["error"])


def test_large_pictures_are_refused_by_their_header(bundle: Bundle) -> None:
    """A PNG of 20,000 by 20,000 pixels in 50 KB is refused before it is decoded, and so is a chain of chunks of zeros."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    bomb = buffer.getvalue()
    assert len(bomb) < 100_000
    with serving(make(bundle)) as server:
        answer = server.ask("/predict", bomb)
        assert answer.status == 400
        assert "million pixels" in answer.json["error"] or "million" in answer.json["error"]
        assert server.ask("/predict", bundle.goldens().encoded[0]).status == 200


def test_bodies_at_once_are_bounded(bundle: Bundle) -> None:
    """When all bodies together reach their limit one more is 503 with Retry-After, and after they left it is answered."""
    app = make(bundle, body=MB, bodies=2 * MB, receive=20.0)
    golden = bundle.goldens().encoded[0]
    with serving(app) as server, server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(post("/predict", bytes(MB - 100), length=MB))
        until(lambda: app[SERVICE].admission.held >= 2 * MB - 200)
        refused = server.ask("/predict", golden + bytes(1000))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        first.close()
        second.close()
        until(lambda: app[SERVICE].admission.held == 0)
        assert server.ask("/predict", golden).status == 200


def test_a_full_queue_is_503_and_loses_nobody(bundle: Bundle) -> None:
    """With the model busy and four requests in flight a fifth is 503 with Retry-After; the four are answered right."""
    app = make(bundle, queue=4)
    gate = Gate(app)
    goldens = bundle.goldens()
    with serving(app) as server, ThreadPoolExecutor(4) as clients:
        inside = [clients.submit(server.ask, "/predict", encoded) for encoded in goldens.encoded[:4]]
        until(lambda: app[SERVICE].admission.inside == 4)
        refused = server.ask("/predict", goldens.encoded[4])
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert server.ask("/v2/health/live").status == 200
        gate.opened.set()
        labels = [future.result().json["label"] for future in inside]
        assert labels == [bundle.manifest.labels[row.argmax()] for row in goldens.logits_float64[:4]]
        until(lambda: app[SERVICE].admission.inside == 0)
        assert server.ask("/predict", goldens.encoded[4]).status == 200


def test_an_answer_that_takes_too_long_is_504(bundle: Bundle) -> None:
    """When the model hangs the client gets 504, the server says it is not ready, and its place is kept until it ends."""
    app = make(bundle, answer=0.2)
    gate = Gate(app)
    with serving(app) as server:
        assert server.ask("/predict", bundle.goldens().encoded[0]).status == 504
        assert app[SERVICE].admission.inside == 1
        until(lambda: server.ask("/v2/health/ready").status == 503)
        assert server.ask("/v2/health/live").status == 200
        gate.opened.set()
        until(lambda: app[SERVICE].admission.inside == 0)
        assert server.ask("/v2/health/ready").status == 200
        assert server.ask("/predict", bundle.goldens().encoded[0]).status == 200


def test_a_model_that_fails_is_500_for_its_requests_alone(bundle: Bundle) -> None:
    """An error of the backend is a 500 that says so, and the next request is answered."""
    app = make(bundle)
    batcher = app[SERVICE].batcher
    run = batcher.run

    def fail(rows: Any) -> Any:
        batcher.run = run
        raise BackendError("the device went away")

    batcher.run = fail
    with serving(app) as server:
        answer = server.ask("/predict", bundle.goldens().encoded[0])
        assert (answer.status, answer.json) == (500, {"error": "the device went away"})
        assert server.ask("/predict", bundle.goldens().encoded[0]).status == 200


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_slow_header_is_cut_off(bundle: Bundle, pieces: int) -> None:
    """A header that does not end is cut off in its time, however regularly a byte of it comes."""
    app = make(bundle, header=0.5, idle=30.0)
    with serving(app) as server, server.connect() as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(pieces - 1):
                time.sleep(0.05)
                client.sendall(b"x")
        assert drain(client) == b""
        assert sample(server.ask("/metrics").body, 'edgecnn_rejected_total{reason="slow header"}') == 1


def test_a_slow_second_header_is_cut_off(bundle: Bundle) -> None:
    """On a connection that was answered once the next header has no more time than the first."""
    with serving(make(bundle, header=0.5, idle=30.0)) as server, server.connect() as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
        client.sendall(b"GET /v2 HTTP/1.1\r\nHo")
        assert drain(client) == b""


def test_an_idle_connection_is_closed_later(bundle: Bundle) -> None:
    """A connection that asks for nothing outlives the header's time and is closed after the idle time."""
    with serving(make(bundle, header=0.1, idle=1.5)) as server, server.connect() as client:
        time.sleep(0.5)
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
        assert drain(client) == b""
        assert sample(server.ask("/metrics").body, 'edgecnn_rejected_total{reason="idle"}') == 1


def test_a_slow_body_is_408(bundle: Bundle) -> None:
    """A body that does not come in its time is 408, and the connection is closed."""
    with serving(make(bundle, receive=0.3)) as server:
        answer = server.raw(post("/predict", b"x", length=1000))
        assert status(answer) == 408
        assert b"Connection: close" in answer


def test_a_client_that_does_not_read_is_cut_off(bundle: Bundle) -> None:
    """A client that asks for megabytes and reads none of them is cut off after the idle time, its answer not sent whole."""
    rows = np.zeros((20_000, *bundle.manifest.preprocess.shape), np.uint8)
    tensor = {
        "name": "image",
        "shape": rows.shape,
        "datatype": "UINT8",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    sent = post("/v2/models/bundle/infer", head + rows.tobytes(), f"Inference-Header-Content-Length: {len(head)}")
    with serving(make(bundle, idle=0.5)) as server, server.connect() as client:
        client.sendall(sent)
        name = 'edgecnn_rejected_total{reason="idle"}'
        until(lambda: name.encode() in server.ask("/metrics").body)
        answer = drain(client)
    promised = int(answer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    assert status(answer) == 200
    assert len(answer) < promised, "the answer fitted into the sockets' buffers, so this shows nothing"


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Server]]:
    """Run `edgecnn serve` by itself, wait for its line, and see to it that it ends."""
    command = [sys.executable, "-m", "edgecnn", "serve", *arguments, "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr
            line = child.stderr.readline()
            assert "http://127.0.0.1:" in line, line + child.stderr.read()
            yield child, Server(int(line.partition("127.0.0.1:")[2].partition("/")[0]))
        finally:
            child.kill()


def test_a_thousand_idle_connections_keep_nobody_out(bundle: Bundle, bundle_folder: Path) -> None:
    """With 1,000 connections open that ask for nothing an honest client is answered, and so is each client after it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no 1,200 files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard) if soft < 1200 else (soft, hard))
    golden = bundle.goldens().encoded[0]
    try:
        with process(str(bundle_folder)) as (child, server), contextlib.ExitStack() as stack:
            idle = [stack.enter_context(server.connect()) for _ in range(1000)]
            assert len(idle) == 1000
            for _ in range(20):
                assert server.ask("/predict", golden).status == 200
            page = server.ask("/metrics").body
            assert 990 <= sample(page, "edgecnn_connections") <= 1000
            assert sample(page, 'edgecnn_rejected_total{reason="idle"}') >= 1
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_all_are_busy_one_more_is_told(bundle: Bundle) -> None:
    """With every connection in the middle of a request one more gets 503 at once, and nobody is cut off for it."""
    app = make(bundle, connections=2)
    gate = Gate(app)
    encoded = bundle.goldens().encoded[0]
    with serving(app) as server, server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(post("/predict", encoded))
        until(lambda: app[SERVICE].admission.inside == 2)
        answer = server.raw(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (status(answer), b"Retry-After: 1" in answer) == (503, True)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body) == {"error": "too many connections"}
        assert f"Content-Length: {len(body)}".encode() in head
        gate.opened.set()
        assert status(first.recv(4096)) == status(second.recv(4096)) == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_answers_what_is_in_flight(bundle_folder: Path, bundle: Bundle, number: signal.Signals) -> None:
    """After the signal a request that was half sent is still answered, a new connection is refused, and the exit is 0."""
    encoded = bundle.goldens().encoded[0]
    with process(str(bundle_folder)) as (child, server), server.connect() as client:
        client.sendall(post("/predict", b"", length=len(encoded)))
        client.sendall(encoded[:10])
        until(lambda: b'stage="receive"' not in server.ask("/metrics").body)
        time.sleep(0.2)
        child.send_signal(number)

        def refused() -> bool:
            try:
                server.connect().close()
            except ConnectionError:
                return True
            return False

        until(refused)
        client.sendall(encoded[10:])
        answer = drain(client)
        assert status(answer) == 200
        assert bundle.manifest.labels[int(bundle.goldens().logits_float64[0].argmax())] in answer.decode()
        assert child.wait(20) == 0


def test_an_idle_connection_does_not_hold_up_the_end(bundle_folder: Path) -> None:
    """A client that keeps its connection open after an answer is closed at the signal, and the server ends at once."""
    with process(str(bundle_folder)) as (child, server), server.connect() as client, server.connect():
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
        child.send_signal(signal.SIGTERM)
        assert drain(client) == b""
        assert child.wait(20) == 0


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\0" * 1000 + b"\r\n\r\n",
    ],
    ids=["tls", "version", "long line", "many headers", "smuggling", "length", "chunks", "nulls"],
)
def test_what_is_no_http_is_400(bundle: Bundle, bytes_sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no request are answered with 400 and the connection closed; nothing is printed, the server lives."""
    with serving(make(bundle)) as server:
        answer = server.raw(bytes_sent)
        assert status(answer) == 400
        assert server.ask("/v2/health/ready").status == 200
    assert capfd.readouterr().err == ""


def test_limits_that_make_no_sense_are_refused() -> None:
    """A queue of nothing, a negative delay, or less room for all bodies than for one, is a UsageError."""
    for bad in ({"queue": 0}, {"max_delay": -1.0}, {"bodies": 1}, {"header": 0.0}, {"max_batch": -1}):
        with pytest.raises(UsageError):
            Limits(**bad)  # type: ignore[arg-type]
