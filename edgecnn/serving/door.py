"""Connections: how many, and how long one may sit there without asking for anything.

aiohttp of some versions waits for a request's header for as long as the client likes; this stands before it, sees bytes come
and requests begin and end, and cuts off whoever takes too long (a "slow loris").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from edgecnn.serving.limits import Limits

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 32\r\n\r\n"
    b'{"error":"too many connections"}'
)


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp's own protocol, and notes when a request's first bytes come."""

    def __init__(self, door: Door, inner: Any) -> None:
        self._door = door
        self._inner = inner
        self.transport: Any = None
        self.deadline = 0.0
        self.reading = False  # bytes of a request's header have come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter, or be turned away."""
        self.transport = transport
        if self._door.enter(self):
            self._inner.connection_made(transport)
        else:
            self._inner = None

    def data_received(self, data: bytes) -> None:
        """Pass on, and start the header's time with its first byte."""
        if self._inner is not None:
            if not self.reading:
                self._door.reads(self)
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return None if self._inner is None else self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Leave."""
        self._door.leave(self)
        if self._inner is not None:
            self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """Pass on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._inner.resume_writing()


class Door:
    """All connections of a server; those without a request in progress in the order of how long they have been so."""

    def __init__(self, limits: Limits, closed: Callable[[str], None]) -> None:
        self._limits = limits
        self._closed = closed
        self._open: dict[Any, Connection] = {}
        self._idle: dict[Connection, None] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._now = asyncio.get_running_loop().time

    def connection(self, runner: web.AppRunner) -> Connection:
        """Make what stands before aiohttp's protocol for one connection."""
        if runner.server is None:
            raise ConnectionError("the server has stopped")
        return Connection(self, runner.server())

    def count(self) -> int:
        """Tell how many are open."""
        return len(self._open)

    def enter(self, connection: Connection) -> bool:
        """Let one more in, in the place of the one that has been idle for longest if there is no other; or not."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        if len(self._open) >= self._limits.connections and not self._make_room():
            self._closed("connections")
            connection.transport.write(FULL)
            connection.transport.close()
            return False
        self._open[connection.transport] = connection
        self._rests(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """Forget one."""
        self._open.pop(connection.transport, None)
        self._idle.pop(connection, None)

    def reads(self, connection: Connection) -> None:
        """Start the time that a header may take."""
        connection.reading = True
        connection.deadline = self._now() + self._limits.header

    def begin(self, transport: Any) -> None:
        """Note that a request's header is complete: from here on the times for body and answer count.

        They are kept elsewhere; the deadline here is for an answer that the client does not read.
        """
        connection = self._open.get(transport)
        if connection:
            self._idle.pop(connection, None)
            connection.deadline = self._now() + self._limits.receive + self._limits.answer + self._limits.idle

    def end(self, transport: Any) -> None:
        """Note that a request has its answer."""
        connection = self._open.get(transport)
        if connection:
            self._rests(connection)

    async def empty(self) -> None:
        """Wait until no request is in progress, or for as long as the end may take."""
        until = self._now() + self._limits.stop
        while len(self._open) > len(self._idle) and self._now() < until:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Stop watching."""
        if self._sweeper:
            self._sweeper.cancel()

    def _rests(self, connection: Connection) -> None:
        connection.reading = False
        connection.deadline = self._now() + self._limits.idle
        self._idle[connection] = None

    def _make_room(self) -> bool:
        for connection in self._idle:
            self._cut(connection, "idle")
            return True
        return False

    def _cut(self, connection: Connection, reason: str) -> None:
        self._closed(reason)
        self.leave(connection)
        connection.transport.abort()  # close() would first wait for a client that does not read its answer

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._limits.header / 4, self._limits.idle / 4))
            now = self._now()
            for connection in [late for late in self._open.values() if late.deadline < now]:
                idle = connection in self._idle
                self._cut(connection, "slow reader" if not idle else "slow header" if connection.reading else "idle")
