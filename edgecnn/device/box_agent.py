"""What `edgecnn deploy` runs on the box, while it is connected: it takes files, installs, verifies and swaps.

It is sent over ssh and run there by a Python that may have nothing but its standard library. Whatever goes wrong is
answered with one line and ends it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgecnn.device.box_channel import Channel, Done, RefusalError
from edgecnn.device.box_store import KEY, RELEASE, Store, place

INSTALLED = "edgecnn-installed.json"
_PROBE = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Answer requests, each by the step that it names, until the other side goes away."""
    channel = Channel()
    box = Box(channel)
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        "hold": box.hold, "begin": box.begin, "have": box.have, "put": box.put, "install": box.install,
        "stage": box.stage, "verify": box.verify, "swap": box.swap, "rollback": box.rollback,
    }  # fmt: skip
    while True:
        asked, _ = channel.header()
        try:
            if asked["do"] == "become":
                become(channel, asked["folder"], asked["python"])
            answer = steps[asked.pop("do")](**asked)
        except RefusalError as error:
            answer = {"error": str(error)}
        except OSError as error:
            answer = {"error": box.reason(error)}
        channel.answer(answer)
        if "error" in answer:
            return  # what was sent behind the request has not been read


class Box:
    """The steps of a deployment; `hold` comes first."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The folder that was begun with."""
        if self._store is None:
            raise RefusalError("no folder was named yet")
        return self._store

    def reason(self, error: OSError) -> str:
        """Say what the file system refused, where, and what to do where that is known."""
        where = error.filename or (self._store.root if self._store else None)
        said = f"{where}: {error.strerror or error}" if where else str(error.strerror or error)
        return f"{said}: make room there, or name another folder" if error.errno in _FULL else said

    def hold(self, folder: str, make: bool = True) -> dict[str, Any]:
        """Take hold of the folder."""
        self._store = Store(folder, make)
        return {"root": str(self._store.root)}

    def begin(self, named: bool, key: str | None, signed: bool = False) -> dict[str, Any]:
        """Say what there is to run a bundle with.

        Args:
            named: whether the person chose this interpreter, which then runs the bundle too.
            key: of the environment that is to be installed; None where none is.
            signed: whether a signature will be checked, which takes a package more.
        """
        store = self.store
        before = store.release()
        python, venv = _own(store)
        if before is not None and not named and os.access(before["python"], os.X_OK):
            python, venv = before["python"], before["venv"]
        installed = False
        if key is None:
            self._probe(python, signed)
        else:
            missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
            installed = (store.venvs / _full(key) / INSTALLED).is_file()
            if missing and not installed:
                raise RefusalError(
                    f"{sys.executable} has no module {missing[0]}: apt-get install python3-venv there, or --python"
                )
        return {
            "root": str(store.root), "free": store.free(), "python": python, "venv": venv, "installed": installed,
            "version": platform.python_version(), "machine": platform.machine(),
            "current": before["release"] if before else None,
        }  # fmt: skip

    def have(self, wanted: dict[str, int]) -> dict[str, Any]:
        """Say how many bytes of files are here."""
        return {"bytes": self.store.have(wanted), "free": self.store.free()}

    def put(self, files: list[tuple[str, int, int]]) -> dict[str, Any]:
        """Take the bytes that follow."""
        return {"damaged": self.store.put(files, self._channel.some)}

    def install(self, key: str, wheel: str, wheels: dict[str, str], extras: str, index: bool) -> dict[str, Any]:
        """Make an environment and install a wheel with its extras; `wheels` are SHA-256s by file name, of the folder of wheels."""
        store, name = self.store, _full(key)
        folder = store.venvs / name
        python = folder / "bin" / "python"
        if not (folder / INSTALLED).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            house = store.root / ".wheels"
            shutil.rmtree(house, ignore_errors=True)
            house.mkdir()
            for file, digest in wheels.items():
                place(store.found[digest], house / Path(file).name)
            self._say(f"making an environment with Python {platform.python_version()}")
            self._run("an environment could not be made", [sys.executable, "-m", "venv", str(folder)])
            self._say("installing edgecnn" + (f"[{extras}]" if extras else ""))
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
            source = [] if index else ["--no-index", "--find-links", str(house)]
            wanted = f"edgecnn{f'[{extras}]' if extras else ''} @ {(house / Path(wheel).name).as_uri()}"
            self._run("edgecnn could not be installed", [*pip, *source, wanted])
            os.sync()
            (folder / INSTALLED).write_text(json.dumps({"key": key, "extras": extras}))
            shutil.rmtree(house, ignore_errors=True)
        self._probe(str(python))
        return {"python": str(python), "venv": name}

    def stage(self, **release: Any) -> dict[str, Any]:
        """Put the release together."""
        return {"release": self.store.stage(**release)}

    def verify(self, python: str, release: str) -> dict[str, Any]:
        """Run `edgecnn verify` on a release, current or not; one that came with a public key has to be signed by it."""
        folder = self.store.releases / release
        key = ["--key", str(folder / KEY)] if (folder / KEY).is_file() else []
        done = self._channel.run([python, "-m", "edgecnn", "verify", str(folder / "bundle"), "--json", *key])
        return {"code": done.code, "out": done.out, "errors": done.errors}

    def swap(self, release: str) -> dict[str, Any]:
        """Make a release the current one, and remove what is neither that nor the one before it."""
        self.store.swap(release)
        with contextlib.suppress(OSError):  # it is in place, and the next deployment sweeps too
            self.store.sweep()
        now = self.store.release()
        return {"previous": now["previous"] if now else None}

    def rollback(self) -> dict[str, Any]:
        """Put the previous release back."""
        now, before = self.store.rollback()
        return {"release": now, "left": before}

    def _probe(self, python: str, signed: bool = False) -> None:
        needed = ["edgecnn", "onnxruntime", *(["cryptography"] if signed else [])]
        done = self._channel.run([python, "-c", _PROBE, *needed])
        if done.code or done.out.strip():
            what = " and ".join(done.out.split()) or f"a Python that starts ({_last(done)})"
            raise RefusalError(
                f"{python} has no {what}: `edgecnn deploy --install` puts it there, or name another by --python"
            )

    def _run(self, what: str, command: list[str]) -> None:
        done = self._channel.run(command)
        if done.code:
            raise RefusalError(f"{what}: {_last(done)}")

    def _say(self, line: str) -> None:
        self._channel.answer({"say": line})


def become(channel: Channel, folder: str, python: str | None) -> None:
    """Let the interpreter of what is deployed take this connection, or the named one; this one where there is neither.

    Raises:
        RefusalError: it is not there.
    """
    root = Path(folder).expanduser().absolute()
    if python is None:
        try:
            python = json.loads((root / "current" / RELEASE).read_bytes())["python"]
        except (OSError, ValueError, KeyError):
            python = sys.executable
    if not (Path(python).is_file() and os.access(python, os.X_OK)):
        raise RefusalError(f"{python} is not there any more: `edgecnn deploy --install` makes it anew")
    channel.answer({"python": python, "bundle": str(root / "current" / "bundle")})
    channel.become(python)


def _own(store: Store) -> tuple[str, str | None]:
    """Name this interpreter and the folder's environment that it is of, by a path that holds after the next swap too."""
    venv = Path(sys.prefix).resolve()
    if venv.parent != store.venvs.resolve():
        return sys.executable, None
    return str(store.venvs / venv.name / "bin" / "python"), venv.name


def _full(key: str) -> str:
    """Name an environment by what is in it and the Python that made it, which it needs."""
    return f"{key}-{sys.implementation.name}{platform.python_version()}"


def _last(done: Done) -> str:
    lines = [line.strip() for line in (done.errors + "\n" + done.out).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR:")] or lines
    return told[-1][:300] if told else f"exit code {done.code}"
