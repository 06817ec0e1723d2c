"""A server for tests: the application in a thread of this process, on a port that the system chooses; and a bare client."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from edgecnn.serving.run import serve


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers and body, as they were on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    port: int

    @property
    def place(self) -> str:
        """Host and port as clients are given them."""
        return f"127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Answer:
        """Send one request over a new connection; POST if there is a body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def raw(self, *pieces: bytes, until_closed: bool = True) -> bytes:
        """Send bytes as they are and return all that comes until the server closes the connection."""
        with self.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            return drain(client) if until_closed else client.recv(1 << 16)

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def drain(client: socket.socket) -> bytes:
    """Receive until the other side closes, or resets, the connection."""
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        return received
    return received


@contextmanager
def serving(app: web.Application) -> Iterator[Server]:
    """Serve from a thread until the block ends."""
    started, problem = threading.Event(), []
    urls: list[str] = []
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        ends.append((asyncio.get_running_loop(), stop))

        def ready(url: str) -> None:
            urls.append(url)
            started.set()

        await serve(app, "127.0.0.1", 0, ready, stop)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            problem.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait(30)
    try:
        assert urls, problem
        yield Server(int(urls[0].rstrip("/").rpartition(":")[2]))
    finally:
        if thread.is_alive():
            ends[0][0].call_soon_threadsafe(ends[0][1].set)
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"
        assert not problem, problem


def sample(page: bytes, name: str) -> float:
    """Read one sample of a page of metrics, by its whole name with labels."""
    for line in page.decode().splitlines():
        if line.rpartition(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no sample {name}")
