"""One connection over the system's own ssh to a Python on another machine, which answers messages.

The user's configuration, agent, keys and jump hosts work as they do for `ssh HOST`. Nothing has to be installed there but
Python: what it is to run is sent first. Neither scp nor sftp is used, so that a box without an sftp server will do.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from edgecnn import pipes
from edgecnn.errors import DeviceError, MissingPackageError, UsageError

Result = TypeVar("Result")

# Bytes of the header, which is JSON, and of what follows it, little-endian: as in edgecnn.backends.web_wire.
PREFIX = struct.Struct("<IQ")
PYTHON = "python3"
FOLDER = "edgecnn"
OPTIONS = "EDGECNN_SSH"  # further arguments of ssh, as a shell would read them
OLDEST = (3, 10)
START_S, PROMPT_S, WAIT_S, END_S = 60.0, 600.0, 120.0, 2.0
# The login shell there may be any: no quote, newline or exclamation mark that one of them would take for its own.
_BOOTSTRAP = (
    'import sys;v=sys.version_info[:2];sys.stdout.write("edgecnn-box %d.%d\\n"%v);sys.stdout.flush();'
    f"v<{OLDEST} and sys.exit(0);b=sys.stdin.buffer;exec(b.read(int(b.readline())))"
)
_HELLO = re.compile(rb"edgecnn-box (\d+)\.(\d+)\n")
# A file of the home folder, in which this starts, is not to be taken for a module.
_LOADER = """import sys
sys.path[:] = filter(None, sys.path)
import types
sources = {sources!r}
for name, text in sources.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""
_NOISE = 1 << 20  # bytes that a login shell may print before Python speaks
# What scp passes too: a command of the user's configuration, or a forwarding, would be in the way of ours.
_OURS = ("RemoteCommand=none", "RequestTTY=no", "ClearAllForwardings=yes", "PermitLocalCommand=no")
_DEFAULTS = ("ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4")
# What ssh says on its last lines, and what it means; the first that fits counts.
_REASONS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one recorded here: find out why before you go on"),
    ("Bad configuration option", "ssh knows no such option: see --ssh-option, EDGECNN_SSH and its configuration"),
    ("Can't open user config file", "ssh cannot read its configuration: see -F and EDGECNN_SSH"),
    ("are too open", "others may read the key, so that ssh passes it over: chmod 600 it"),
    ("Host key verification failed", "its host key is not known here: connect once by `ssh {host}` and compare it"),
    ("Permission denied (", "it refuses the login: `ssh {host}` has to work without a password, or in a terminal"),
    ("Too many authentication failures", "it refuses the login: name the key by `IdentityFile` in ssh's configuration"),
    ("Could not resolve hostname", "there is no host of this name"),
    ("Connection refused", "nothing listens for ssh there: is sshd running, and the port right?"),
    ("timed out", "it does not answer: is it switched on, and this network the right one?"),
    ("No route to host", "it cannot be reached: is it switched on, and this network the right one?"),
    ("Network is unreachable", "it cannot be reached from this network"),
)  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """`[user@]host[:path]` as scp writes it: `host` is what ssh is given, `path` a folder there, from the home folder on."""

    host: str
    path: str = FOLDER

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read the written form; an IPv6 address stands in brackets.

        Raises:
            UsageError: there is no host, or it holds what ssh or a shell could take for something else.
        """
        found = re.fullmatch(r"(?:([^:]*)@)?(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:@]*))(?::(.*))?", text, re.DOTALL)
        user, address, name, path = found.groups() if found else (None, None, None, None)
        host = address or name or ""
        if (path or "").startswith("//") or not _is_plain(host) or (user is not None and not _is_plain(user)):
            raise UsageError(f"{text!r} is not user@host[:path], for example pi@192.168.1.7:edgecnn")
        if path is not None and "\0" in path:
            raise UsageError(f"{text!r}: the path holds a zero byte")
        return cls(host=host if user is None else f"{user}@{host}", path=path or FOLDER)

    def __str__(self) -> str:
        return self.host


def _is_plain(word: str) -> bool:
    """Say whether a user or host is free of what OpenSSH 10 refuses in it, and cannot be an option."""
    return bool(re.fullmatch(r"[^\s'\"`$\\;&<>|(){}*?!#\x00-\x1f\x7f-][^\s'\"`$\\;&<>|(){}*?!#\x00-\x1f\x7f]*", word))


class Connection:
    """One ssh process, and one Python there; it ends with `close`, with this object, and when this process dies.

    Messages are those of `edgecnn.device.box_channel`: a header in JSON and bytes behind it. Each is answered by one, before
    which there may be some that only say what is going on.
    """

    def __init__(
        self,
        destination: Destination,
        sources: Mapping[str, str],
        options: Sequence[str] = (),
        python: str | None = None,
        config: str | None = None,
    ) -> None:
        """Connect and start the modules `sources`, by name and text, of which the last has a `main`.

        Args:
            destination: whom to connect to.
            sources: what to run there.
            options: arguments for ssh, before those of the variable EDGECNN_SSH.
            python: the interpreter there, by a path or a name on its PATH; by default `python3`.
            config: a configuration file for ssh instead of the user's.

        Raises:
            MissingPackageError: ssh is not installed here.
            UsageError: the interpreter's name, or the variable EDGECNN_SSH, cannot be meant.
            DeviceError: the host cannot be reached, refuses the login, or has no Python that is new enough.
        """
        self.host, self._python = destination.host, PYTHON if python is None else python
        self._lock = threading.Lock()
        # A pipe would stay open, and be waited for, where ssh leaves a master connection behind (ControlPersist).
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- it is open as long as the process runs
        prompts = sys.stdin is not None and sys.stdin.isatty()
        self._process = subprocess.Popen(
            _command(destination.host, self._python, options, config, prompts),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
        )  # fmt: skip
        self.close = weakref.finalize(self, _end, self._process, self._log)
        self._in, self._out = _descriptor(self._process.stdin), _descriptor(self._process.stdout)
        os.set_blocking(self._in, False)
        self.start(sources, PROMPT_S if prompts else START_S)

    def start(self, sources: Mapping[str, str], timeout_s: float = START_S) -> None:
        """Wait for an interpreter to say hello and hand it what it is to run."""
        script = _LOADER.format(sources=dict(sources)).encode()
        self._exchange(lambda: self._greet(script, timeout_s), timeout_s)

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Send a whole message and wait for the one that answers it, whole too.

        Raises:
            DeviceError: the connection is closed or lost, or there was no answer in time; it is closed then.
        """

        def exchange() -> bytes:
            self._write(message, timeout_s)
            prefix, header, body = self._message(timeout_s)
            return prefix + header + body

        with self._lock:
            return self._exchange(exchange, timeout_s)

    def request(
        self,
        header: Mapping[str, Any],
        parts: Iterable[bytes] = (),
        size: int = 0,
        timeout_s: float = WAIT_S,
        heard: Callable[[str], None] = lambda line: None,
    ) -> dict[str, Any]:
        """Send a header and the `size` bytes of `parts`, and return the answer's header.

        Args:
            header: what to do, as JSON.
            parts: bytes behind it, which are asked for as they can be sent.
            size: how many bytes these are.
            timeout_s: how long to wait for each answer, and for each part to be taken, in seconds.
            heard: is called with what the other side says meanwhile.

        Raises:
            DeviceError: the other side refuses, the connection is lost, or there was no answer in time.
        """

        def exchange() -> dict[str, Any]:
            text = json.dumps(header).encode()
            try:
                self._write(PREFIX.pack(len(text), size) + text, timeout_s)
                for part in parts:
                    self._write(part, timeout_s)
            except BrokenPipeError:
                pass  # it may have said why before it ended
            while True:
                answer: dict[str, Any] = json.loads(self._message(timeout_s)[1])
                if "say" not in answer:
                    return answer
                heard(answer["say"])

        with self._lock:
            answer = self._exchange(exchange, timeout_s)
        if "error" in answer:
            raise DeviceError(f"{self.host}: {answer['error']}")
        return answer

    def _exchange(self, work: Callable[[], Result], timeout_s: float) -> Result:
        """Do one exchange; whatever interrupts it ends the connection, as half a message may be under way."""
        if not self.close.alive:
            raise DeviceError(f"{self.host}: the connection is closed")
        try:
            return work()
        except TimeoutError:
            self.close()
            raise DeviceError(f"{self.host}: no answer in {timeout_s:g} s") from None
        except (BrokenPipeError, EOFError):
            reason = self._reason()
            self.close()
            raise DeviceError(f"{self.host}: {reason}") from None
        except BaseException:
            self.close()
            raise

    def _greet(self, script: bytes, timeout_s: float) -> None:
        """Read over what a login shell prints, up to the hello; from then on nobody speaks before being asked."""
        until, heard = time.monotonic() + timeout_s, b""
        while not (hello := _HELLO.search(heard)):
            pipes.wait(self._out, select.POLLIN, until)
            part = os.read(self._out, 4096)
            if not part or len(heard) > _NOISE:
                raise EOFError
            heard += part
        version = int(hello[1]), int(hello[2])
        if version < OLDEST:
            raise DeviceError(
                f"{self.host}: {self._python} there is {version[0]}.{version[1]}, and edgecnn takes "
                f"{OLDEST[0]}.{OLDEST[1]} or newer: name another by `edgecnn deploy --python`"
            )
        self._write(b"%d\n" % len(script) + script, timeout_s)
        self._message(timeout_s)

    def _message(self, timeout_s: float) -> tuple[bytes, bytes, bytes]:
        until = time.monotonic() + timeout_s
        prefix = pipes.read(self._out, PREFIX.size, until)
        length, size = PREFIX.unpack(prefix)
        return prefix, pipes.read(self._out, length, until), pipes.read(self._out, size, until)

    def _write(self, data: bytes, timeout_s: float) -> None:
        """Write; the time is that of a standstill, as what is sent may be long and the line slow."""
        pipes.write(self._in, data, lambda: time.monotonic() + timeout_s)

    def _reason(self) -> str:
        """Say why ssh, or what it ran there, has ended."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "ssh closed its output"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        if code < 0:
            return f"ssh was ended by {signal.Signals(-code).name}"
        if code in (126, 127):
            told = lines[-1] if lines else f"exit code {code}"
            return f"{self._python} cannot be run there ({told}): install Python 3.10 or newer, or name one by --python"
        return _meaning(lines, self.host, code)


def _meaning(lines: Sequence[str], host: str, code: int) -> str:
    if code != 255:
        return f"what ran there has ended with exit code {code}" + (f": {lines[-1][:300]}" if lines else "")
    for words, meaning in _REASONS:
        line = next((line for line in lines if words in line), None)
        if line is not None:
            return f"{meaning.format(host=host)} ({line.strip('@ ')[:200]})"
    return f"the connection was lost ({lines[-1][:300] if lines else 'ssh says nothing'})"


def environment_options() -> list[str]:
    """Read the arguments for ssh in the variable EDGECNN_SSH.

    Raises:
        UsageError: a quote in it is not closed.
    """
    try:
        return shlex.split(os.environ.get(OPTIONS, ""))
    except ValueError as error:
        raise UsageError(f"{OPTIONS} cannot be read as arguments of ssh ({error})") from None


def sources(*modules: str) -> dict[str, str]:
    """Read the text of edgecnn's own modules, by their names, to be sent."""
    root = Path(__file__).parent.parent
    return {name: (root / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") for name in modules}


def find_ssh() -> str:
    """Find ssh on the PATH.

    Raises:
        MissingPackageError: it is not there.
    """
    ssh = shutil.which("ssh")
    if ssh is None:
        raise MissingPackageError("ssh is not on the PATH: apt-get install openssh-client")
    return ssh


def _command(host: str, python: str, options: Sequence[str], config: str | None, prompts: bool) -> list[str]:
    """Write the command; of an option given twice ssh takes the first, of a configuration file the last."""
    if python.startswith("-") or not python or "\0" in python or "\n" in python:
        raise UsageError(f"{python!r} is no interpreter: give its path there, or a name on the PATH")
    # A shell there would not expand a quoted ~; the commands of ssh start in the home folder.
    quoted = shlex.quote(python[2:] if python.startswith("~/") and len(python) > 2 else python)
    batch = () if prompts else ("BatchMode=yes",)  # without a terminal a question would wait for ever
    pairs = [word for option in (*_OURS, *batch, *_DEFAULTS) for word in ("-o", option)]
    theirs = [*options, *environment_options(), *(["-F", config] if config is not None else [])]
    return [find_ssh(), *theirs, *pairs, "-T", "--", host, f"exec {quoted} -c '{_BOOTSTRAP}'"]


def _descriptor(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise DeviceError("ssh was started without its streams")
    return stream.fileno()


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Close its input, which ends what runs there; an ssh that does not follow at once is killed."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
