"""Two processes that train together without torchrun: forked from one that has imported torch, which takes seconds.

As under torchrun, when one fails the other is sent SIGTERM.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

PARENT = """
import json, os, signal, sys, traceback
import edgecnn.cli.train, edgecnn.training.evaluate, edgecnn.training.run, torch.distributed
for line in sys.stdin:
    job = json.loads(line)
    running, codes = {}, ["", ""]
    for rank in "01":
        if child := os.fork():
            running[child] = int(rank)
            continue
        signal.alarm(180)
        os.environ.update(job["variables"], RANK=rank, LOCAL_RANK=rank)
        for number in (1, 2):
            os.dup2(os.open(f"{job['said']}.{rank}.{number}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = job["words"]
        try:
            exec(job["driver"])
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    print(json.dumps(list(running)), flush=True)
    while running:
        child, status = os.wait()
        codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        for other in running if status else ():
            os.kill(other, signal.SIGTERM)
    print(json.dumps(codes), flush=True)
"""


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Ranks:
    """Runs a driver in two processes at a time, as torchrun would, and gives what a finished process has."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent

    def start(self, driver: str, words: Sequence[str], variables: Mapping[str, str], said: Path) -> list[int]:
        """Start both and return their ids, by rank; what they say is written beside `said`."""
        assert self._parent.stdin
        assert self._parent.stdout
        group = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        job = {"driver": driver, "words": list(words), "variables": {**variables, **group}, "said": str(said)}
        print(json.dumps(job), file=self._parent.stdin, flush=True)
        self._said = said
        ids: list[int] = json.loads(self._parent.stdout.readline())
        return ids

    def wait(self) -> SimpleNamespace:
        """Wait for both; the exit code is that of the first that failed."""
        assert self._parent.stdout
        codes, said = json.loads(self._parent.stdout.readline()), self._said
        texts = ["".join(Path(f"{said}.{rank}.{number}").read_text() for rank in range(2)) for number in (1, 2)]
        return SimpleNamespace(returncode=next(filter(None, codes), 0), stdout=texts[0], stderr=texts[1])


@contextmanager
def parent() -> Iterator[Ranks]:
    """Start the process that others are forked from; it ends with the block."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
    ) as process:
        yield Ranks(process)
        process.communicate()
