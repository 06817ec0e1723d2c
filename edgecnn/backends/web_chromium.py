"""A headless Chromium with a profile of its own, whose one page answers messages."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path

from edgecnn.backends.web_bridge import Bridge
from edgecnn.backends.web_node import last_line
from edgecnn.errors import BackendError

FLAGS = (
    "--headless", "--no-first-run", "--no-default-browser-check", "--disable-gpu", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-breakpad", "--disable-dev-shm-usage",
    # It has nothing to look for outside this machine.
    "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
QUIT_S = 10.0
# Chromium listens on a Unix socket in a folder of its own below TMPDIR; `scoped_dir.` is in the names of some versions.
SOCKET = "org.chromium.Chromium.scoped_dir.XXXXXX/SingletonSocket"
LONGEST = 107  # bytes of a socket's path: sun_path has 108 with its end (unix(7))
_NAME = "edgecnn-chromium-"


class ChromiumLink:
    """One browser; it ends with `close` and with this object, and when this process dies, as its page closes then."""

    def __init__(self, browser: str, package: Path) -> None:
        self._lock = threading.Lock()
        self._folder = _make_folder()
        self._log = self._folder / "stderr"
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._bridge = Bridge(package)
            undo.callback(self._bridge.close)
            self._process = _start(browser, self._bridge.url, self._folder, self._log)
            undo.pop_all()
        self.close = weakref.finalize(self, _end, self._process, self._bridge, self._folder)

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Send a message and wait for its answer.

        Raises:
            BackendError: the browser is closed, has ended, or gave no answer in time; it is ended then.
        """
        with self._lock:
            if not self.close.alive:
                raise BackendError("the session is closed")
            try:
                self._look()  # a page may live on for a moment without its browser
                self._bridge.messages.put(message)
                return self._wait(timeout_s)
            except BaseException:  # the answer may still come, and would pass for the next message's
                self.close()
                raise

    def _wait(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return self._bridge.answers.get(timeout=min(0.2, timeout_s))
            self._look()
        raise BackendError(f"chromium gave no answer in {timeout_s:g} s")

    def _look(self) -> None:
        if self._process.poll() is not None:
            with self._log.open("rb") as log:
                raise BackendError(f"chromium ended: {last_line(log) or f'exit status {self._process.returncode}'}")
        if self._bridge.missing:
            raise BackendError(f"the page needs {self._bridge.missing}, which is not there: install it again")


def _make_folder() -> Path:
    """Make a folder of the browser's own, where there may be files and the path of its socket is not too long.

    Raises:
        BackendError: there is no such place.
    """
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    for place in places:
        if len(os.fsencode(place / f"{_NAME}{8 * 'x'}" / SOCKET)) > LONGEST:
            continue
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=_NAME, dir=place))
    tried = ", ".join(map(str, dict.fromkeys(places)))
    raise BackendError(
        f"chromium needs a folder for temporary files with a short path that can be written to, and none of {tried} is one: set TMPDIR"
    )


def _start(browser: str, url: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    # Chromium's own sandbox refuses to work for root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [browser, *FLAGS, *sandbox, f"--user-data-dir={folder / 'profile'}", url]
    outside = {name: str(folder) for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR")}
    with log.open("wb") as errors:
        return subprocess.Popen(
            command, env={**os.environ, **outside}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors, start_new_session=True,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes], bridge: Bridge, folder: Path) -> None:
    """Let the browser put itself away, then kill what is left of its processes and remove its folder."""
    bridge.close()
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(QUIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
