"""A box that is this machine: OpenSSH's own server on loopback, as the current user, with keys of its own."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

WRAPPER = '. {folder}/hook\nexec ${{SHELL_OF_BOX:-/bin/sh}} -c "$SSH_ORIGINAL_COMMAND"\n'


def sshd() -> str:
    """Find the server; without it a test skips, but not in continuous integration."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("ssh-keygen") is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("sshd is not installed: apt-get install openssh-server")
    return str(found)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Loopback:
    """One server; `config` is a client's configuration that knows it as `box`, and `home` where commands start there."""

    def __init__(self, folder: Path) -> None:
        server = sshd()
        self.folder = self.home = folder
        self.port = free_port()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
            )
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
        (folder / "wrapper").write_text(WRAPPER.format(folder=folder))
        (folder / "sshd").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nMaxStartups 100\nForceCommand /bin/sh {folder}/wrapper\n"
            "SetEnv SHLVL=1\n"  # or a bash would read its user's .bashrc, which may take longer than the test
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "sshd")], stderr=log)
        self.config = self.write_config("config", self.port)
        self._wait()

    def begin(self, home: Path) -> None:
        """Give it an empty home folder."""
        self.home = home
        home.mkdir()
        self.plant("")

    def plant(self, hook: str) -> None:
        """Have the shell there run something before each command: how a test makes a box what boxes may be like."""
        path = f'export PATH="{self.folder}/bin:$PATH"\nunset PYTHONPATH\n'
        (self.folder / "hook").write_text(f'cd "{self.home}"\n{path}{hook}\n')

    def write_config(self, name: str, port: int, key: str = "user") -> Path:
        """Write a client's configuration by which `box` is reached through a port, with a key."""
        known = self.folder / f"known.{port}"
        known.write_text(f"[127.0.0.1]:{port} {(self.folder / 'host.pub').read_text()}")
        path = self.folder / name
        path.write_text(
            f"Host box\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n"
            f" IdentityFile {self.folder}/{key}\n IdentitiesOnly yes\n IdentityAgent none\n"
            f" UserKnownHostsFile {known}\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n"
            " KexAlgorithms curve25519-sha256\n"  # the default, hybrid one takes 0.2 s
        )
        return path

    def _wait(self) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        pytest.fail(f"sshd does not listen: {self.log.read_text()}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Relay:
    """A network between: it carries `most` bytes to the server, then both ends are cut at once."""

    def __init__(self, port: int, most: int) -> None:
        self._target, self._left = port, most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.carried = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._back, args=(far, near), daemon=True).start()
        with contextlib.suppress(OSError):
            while self.carried < self._left and (data := near.recv(min(65536, self._left - self.carried))):
                far.sendall(data)
                self.carried += len(data)
        for one in (near, far):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)

    def close(self) -> None:
        self._listener.close()


def pretend_edgecnn(folder: Path, code: int = 0, report: object = None, errors: str = "") -> str:
    """Write packages called edgecnn and onnxruntime whose `verify` says what a test wants; return the hook that plants them."""
    for name in ("edgecnn", "onnxruntime"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text("")
    text = json.dumps(report if report is not None else {"from": "the box"})
    (folder / "edgecnn" / "__main__.py").write_text(
        "import sys\n"
        f"open({str(folder / 'asked')!r}, 'w').write(repr(sys.argv[1:]))\n"
        f"print({text!r})\nprint({errors!r}, file=sys.stderr)\nsys.exit({code})\n"
    )
    return f"export PYTHONPATH={folder}\n"


def whole_bundle(folder: Path) -> str:
    """Hash every file of a bundle against its manifest, by nothing of edgecnn's; return the manifest's SHA-256."""
    data = (folder / "manifest.json").read_bytes()
    manifest = json.loads(data)
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert here - {"manifest.json.sig"} == {*manifest["files"], "manifest.json"}
    for name, record in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == record["sha256"], name
    return hashlib.sha256(data).hexdigest()
