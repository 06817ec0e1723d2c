"""A long-lived Node process that answers messages over its standard streams."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO

from edgecnn import pipes
from edgecnn.backends.web_wire import PREFIX
from edgecnn.errors import BackendError

SCRIPT = Path(__file__).parent / "web" / "node.mjs"


class NodeLink:
    """One Node process; it ends with `close`, with this object, and when this process dies, as its input ends then."""

    def __init__(self, node: str, package: Path) -> None:
        self._lock = threading.Lock()
        # A pipe that nobody reads would fill up and stop the process.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- it is open as long as the process runs
        self._process = subprocess.Popen(
            [node, str(SCRIPT), str(package)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
        )  # fmt: skip
        self.close = weakref.finalize(self, _end, self._process, self._log)
        self._in, self._out = _descriptor(self._process.stdin), _descriptor(self._process.stdout)
        os.set_blocking(self._in, False)

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Send a message and wait for its answer.

        Raises:
            BackendError: the process is closed, has died, or gave no answer in time; it is ended then.
        """
        with self._lock:
            if not self.close.alive:
                raise BackendError("the session is closed")
            try:
                deadline = time.monotonic() + timeout_s
                pipes.write(self._in, message, lambda: deadline)
                prefix = pipes.read(self._out, PREFIX.size, deadline)
                return prefix + pipes.read(self._out, sum(PREFIX.unpack(prefix)), deadline)
            except TimeoutError:
                self.close()
                raise BackendError(f"node gave no answer in {timeout_s:g} s") from None
            except (BrokenPipeError, EOFError):
                reason = self._last_words()
                self.close()
                raise BackendError(f"node ended: {reason}") from None
            except BaseException:  # half a message may be under way, and no later answer could be trusted
                self.close()
                raise

    def _last_words(self) -> str:
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return last_line(self._log) or f"exit status {status}"


def last_line(log: IO[bytes]) -> str:
    """Return the last line of a log that says something."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]


def _descriptor(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise BackendError("node was started without its streams")
    return stream.fileno()


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Kill it: a process that only computes has nothing to put in order."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            stream.close()
