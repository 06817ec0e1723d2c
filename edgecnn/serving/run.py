"""The running server: its socket, its signals, and the end, at which what is in flight is still answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from edgecnn.errors import UsageError
from edgecnn.serving.app import DOOR, SERVICE
from edgecnn.serving.door import Door

BACKLOG = 1024  # connections that the system keeps until they are taken
SPARE = 64  # file descriptors that are not connections
LINGER = 2.0  # seconds for which the rest of a refused body is read, so that the client sees the refusal
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(app: web.Application, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Args:
        app: from `make_app`.
        host: a name or address of this machine.
        port: 0 for one that the system chooses.
        ready: is told the URL once requests are answered.

    Raises:
        UsageError: nothing can listen there.
    """

    async def until_signal() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop.set)
        serving = asyncio.ensure_future(serve(app, host, port, ready, stop))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        await serving

    asyncio.run(until_signal())


async def serve(app: web.Application, host: str, port: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then answer what is in flight and refuse what is new.

    Raises:
        UsageError: nothing can listen there.
    """
    service = app[SERVICE]
    limits = replace(service.limits, connections=_file_limit(service.limits.connections))
    with contextlib.closing(_listen(host, port)) as listening:
        door = app[DOOR] = Door(limits, lambda reason: service.metrics.reject(reason)())
        service.metrics.watch("edgecnn_connections", "Connections that are open.", door.count)
        runner = web.AppRunner(
            app, access_log=None, logger=_silent(), auto_decompress=False, keepalive_timeout=limits.idle + 5,
            lingering_time=LINGER, shutdown_timeout=limits.stop,
        )  # fmt: skip
        await runner.setup()
        server = await asyncio.get_running_loop().create_server(
            lambda: door.connection(runner), sock=listening, backlog=BACKLOG
        )
        gc.freeze()  # what was loaded stays: no later collection has to look at it
        ready(_url(host, listening))
        await stop.wait()
        service.stopping = True
        server.close()
        await door.empty()  # for aiohttp reads nothing more of a body once it is told to clean up
        await runner.cleanup()
        door.close()


def _listen(host: str, port: int) -> socket.socket:
    """Make the socket by hand, so that there is one and its port is known."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host} port {port} ({reason}); choose another --host or --port") from None
    return listening


def _url(host: str, listening: socket.socket) -> str:
    """Write where it is reached; every address of this machine by the machine's name, which others can open."""
    address, port = listening.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _file_limit(connections: int) -> int:
    """Allow this process as many open files as it takes, and return how many connections that leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(connections, soft - SPARE))
    return connections


def _silent() -> logging.Logger:
    """Make a log that nobody reads: what clients send wrong must not fill the disk, and our own faults are printed."""
    log = logging.getLogger("edgecnn.serving")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
