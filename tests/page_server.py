"""A server of the page for its tests, and what they need of onnxruntime-web."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiohttp import web
from web_models import need


class Served:
    """An application at an address of this machine, until `stop`."""

    def __init__(self, app: web.Application) -> None:
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)
        self.url = f"http://127.0.0.1:{self.port}/"

    async def _start(self) -> int:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    def stop(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, dict(answer.headers)


@contextmanager
def serving(app: web.Application) -> Iterator[Served]:
    served = Served(app)
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def with_package(needed: str) -> Iterator[None]:
    """Hold onnxruntime-web and Node or Chromium ready, or skip."""
    with pytest.MonkeyPatch.context() as patch:
        need(needed, patch)
        yield
