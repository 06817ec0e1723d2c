"""The box's end of a connection that `edgecnn.ssh` opened: messages on standard input, answers on standard output.

It is sent over ssh and run there by a Python that may have nothing but its standard library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

PREFIX = struct.Struct("<IQ")  # bytes of the header, which is JSON, and of what follows it
IDLE_S = 120.0  # a connection that was cut without a word holds the lock no longer
CHUNK = 1 << 18


class RefusalError(Exception):
    """What cannot be done here, in one line."""


class Done(NamedTuple):
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    errors: str


class Channel:
    """Standard input and output of this process; what else is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self.answer({"ready": True})

    def header(self) -> tuple[dict[str, Any], int]:
        """Read the next message's header, and how many bytes follow it; ends this process where there is none."""
        length, size = PREFIX.unpack(self.take(PREFIX.size))
        header: dict[str, Any] = json.loads(self.take(length))
        return header, size

    def message(self) -> bytes:
        """Read the next message whole."""
        prefix = self.take(PREFIX.size)
        return prefix + self.take(sum(PREFIX.unpack(prefix)))

    def take(self, count: int) -> bytes:
        """Read exactly so many bytes; ends this process where the other side is gone."""
        parts = []
        while count:
            part = self.some(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def some(self, most: int) -> bytes:
        """Read what there is, at least one byte."""
        if not select.select([0], [], [], IDLE_S)[0]:
            _leave()
        return os.read(0, min(most, CHUNK)) or _leave()

    def answer(self, header: dict[str, Any]) -> None:
        """Send an answer, or what is going on."""
        text = json.dumps(header).encode()
        self.send(PREFIX.pack(len(text), 0) + text)

    def send(self, message: bytes) -> None:
        """Send a message as it is."""
        rest = memoryview(message)
        try:
            while rest:
                rest = rest[os.write(self._out, rest) :]
        except BrokenPipeError:
            _leave()

    def run(self, command: Sequence[str]) -> Done:
        """Run a command to its end, or kill it where the other side goes away meanwhile."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            # Not in the home folder: Python looks for modules where it starts, and `edgecnn` may be a folder there.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd="/", start_new_session=True
            )
            while process.poll() is None:
                # Nobody sends before the answer is there: what can be read is the end.
                if select.select([0], [], [], 0.05)[0]:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    _leave()
            out.seek(0)
            errors.seek(0)
            return Done(process.returncode, out.read().decode(errors="replace"), errors.read().decode(errors="replace"))

    def become(self, python: str) -> None:
        """Let another interpreter take this connection, which then speaks first, as this one did."""
        os.dup2(self._out, 1)
        os.execv(python, [python, *sys.orig_argv[1:]])


def _leave() -> NoReturn:
    raise SystemExit(0)
