"""Who gets in: bytes of bodies and requests in flight are counted, and one too many is refused at once."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass

from aiohttp import StreamReader, web

from edgecnn.serving.limits import Limits, RefusedError

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass
class Admission:
    """The counts of one server; used on the event loop's thread only."""

    limits: Limits
    held: int = 0  # bytes of bodies
    inside: int = 0  # requests that are being decoded, waiting or computed


class Ticket:
    """One request's share of the counts, given back once: by the handler, or by whoever it was handed on to."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._bytes = self._inside = 0

    def hold(self, size: int) -> None:
        """Count bytes of a body that are in memory now.

        Raises:
            RefusedError: the body is over its limit (413), or all bodies together are (503).
        """
        limits = self.admission.limits
        if self._bytes + size > limits.body:
            raise too_large(limits)
        if self.admission.held + size > limits.bodies:
            raise RefusedError(503, "too many bodies at once; try again")
        self._bytes += size
        self.admission.held += size

    def enter(self) -> None:
        """Count the request as one in flight.

        Raises:
            RefusedError: the queue is full (503).
        """
        if self.admission.inside >= self.admission.limits.queue:
            raise RefusedError(503, "the queue is full; try again")
        self.admission.inside += 1
        self._inside = 1

    def close(self) -> None:
        """Give back what was counted."""
        self.admission.held -= self._bytes
        self.admission.inside -= self._inside
        self._bytes = self._inside = 0


async def read_body(request: web.Request, ticket: Ticket) -> bytes:
    """Read a request's body, inflated where it says so.

    Raises:
        RefusedError: too large (413), too slow (408), too many at once (503), of an unknown coding (415) or damaged (400).
    """
    limits = ticket.admission.limits
    if (request.content_length or 0) > limits.body:
        raise too_large(limits)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in (*_WINDOW, "identity"):
        raise RefusedError(415, f"a body of the coding {coding[:40]!r} is not read here; gzip, deflate or none is")
    try:
        body = await _receive(request, ticket)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"the body did not come within {limits.receive:g} seconds") from None
    if coding == "identity":
        return body
    inflated = await asyncio.get_running_loop().run_in_executor(None, inflate, body, coding, limits)
    ticket.hold(max(0, len(inflated) - len(body)))
    return inflated


def inflate(data: bytes, coding: str, limits: Limits) -> bytes:
    """Decompress a body and stop at the limit.

    Raises:
        RefusedError: it grows over the limit (413), or is damaged or cut short (400).
    """
    stream = zlib.decompressobj(_WINDOW[coding])
    try:
        inflated = stream.decompress(data, limits.body + 1)
    except zlib.error as error:
        raise RefusedError(400, f"the body is no {coding} ({error})") from None
    if len(inflated) > limits.body:
        raise too_large(limits)
    if not stream.eof or stream.unused_data:
        raise RefusedError(400, f"the body is no whole {coding} stream")
    return inflated


def too_large(limits: Limits) -> RefusedError:
    """Make the refusal of a body over the limit."""
    return RefusedError(413, f"the body is over the limit of {limits.body} bytes")


async def _receive(request: web.Request, ticket: Ticket) -> bytes:
    content = request.content
    if content.is_eof():  # all of it came with the header, as it mostly does
        body = content.read_nowait()
        ticket.hold(len(body))
        return body
    return await asyncio.wait_for(_collect(content, ticket), ticket.admission.limits.receive)


async def _collect(content: StreamReader, ticket: Ticket) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        ticket.hold(len(chunk))
        body += chunk
    return bytes(body)
