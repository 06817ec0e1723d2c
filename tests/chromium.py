"""One page in a headless Chromium, driven by its own debugging protocol (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from edgecnn.backends.web_chromium import FLAGS

PATIENCE_S = 60.0


class Page:
    """The only tab of a browser of its own; `console` and `failures` collect what the page logs and throws."""

    def __init__(self, browser: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edgecnn-page-", dir="/tmp"))
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [
            browser,
            *FLAGS,
            *sandbox,
            "--remote-debugging-port=0",
            f"--user-data-dir={self._folder}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.console: list[str] = []
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    async def _connect(self) -> None:
        port, deadline = self._folder / "DevToolsActivePort", time.monotonic() + PATIENCE_S
        while not (port.exists() and port.read_text().count("\n")):
            assert time.monotonic() < deadline, "chromium opened no debugging port"
            assert self._process.poll() is None, "chromium ended"
            await asyncio.sleep(0.05)
        number = port.read_text().splitlines()[0]
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://127.0.0.1:{number}/json/list") as answer:
            targets = await answer.json(content_type=None)
        url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        self._socket = await self._http.ws_connect(url, max_msg_size=0)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come before it are noted."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), PATIENCE_S))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        event, details = message.get("method"), message.get("params", {})
        if event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(part.get("value", part.get("description"))) for part in details["args"]))
        elif event == "Runtime.exceptionThrown":
            self.console.append(str(details["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.console.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """Give the value of a JavaScript expression, awaited."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true and give its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, (
                f"never true: {condition}; {self.run('document.body.innerText')}; {self.console}"
            )
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Load an address and wait until it has loaded."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, selector: str, *files: Path) -> None:
        """Drag files over an element and let them go there."""
        x, y = self.center(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def center(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and give the middle of it, in CSS pixels."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return x, y

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y = self.center(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def stroke(self, points: list[tuple[float, float]], touch: bool = False) -> None:
        """Draw along points, in CSS pixels, with the mouse or a finger."""
        kinds = [
            "touchStart" if touch else "mousePressed",
            *["touchMove" if touch else "mouseMoved"] * (len(points) - 1),
        ]
        for kind, (x, y) in zip(kinds, points, strict=True):
            if touch:
                self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            else:
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        if touch:
            self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            self.call("Input.dispatchMouseEvent", type="mouseReleased", x=points[-1][0], y=points[-1][1], button="left")

    def key(self, key: str, shift: bool = False) -> None:
        """Press and let go a key, with Shift held if asked for."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 if shift else 0)

    def view(self, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        """Set the size in CSS pixels and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self) -> bytes:
        """Give the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._http.close())
        self._loop.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
