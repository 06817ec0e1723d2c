"""A bundle onto a box over one ssh connection: copied, verified there, and only then put in place by one rename.

Whatever happens before that rename leaves alone what runs there: `edgecnn.device.box_store` says what lies where.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgecnn.bundle import Bundle
from edgecnn.device.box_store import sha256_of
from edgecnn.device.wheel import chosen_extras, pack_wheel
from edgecnn.errors import DeviceError, UsageError, VerdictError
from edgecnn.manifest import MANIFEST
from edgecnn.spec import Frozen
from edgecnn.ssh import Connection, Destination, sources

AGENT = ("edgecnn.device.box_channel", "edgecnn.device.box_store", "edgecnn.device.box_agent")
REFUSED = 3  # the exit code of `edgecnn verify` where the verdict is no
INSTALL_S, VERIFY_S = 3600.0, 900.0
# What `edgecnn[cpu]` takes with its dependencies where they come from an index; a folder of wheels is counted instead.
_INSTALLED_BYTES, _UNPACKED = 300 << 20, 4
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Reach:
    """How to get to a box: arguments and a configuration file for ssh, and an interpreter there that is not `python3`."""

    options: tuple[str, ...] = ()
    python: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Installation:
    """What to install there: `wheel` None packs the edgecnn that runs here, `wheelhouse` None asks the box's own index.

    With a key, what checks signatures is installed besides `extras`.
    """

    wheel: Path | None = None
    wheelhouse: Path | None = None
    extras: str = "cpu"


class Copied(Frozen, frozen=True):
    """What was copied, `files` and `bytes`, and how many bytes were there already, wholly or in part."""

    files: int
    bytes: int
    there: int


class Deployed(Frozen, frozen=True):
    """What came of a deployment. `report` is what `edgecnn verify` found there, and `reason` why it refused, if it did.

    `bundle` is the path there by which the current bundle is read, whichever that is; `release` and `previous` name what
    is current now and what was before. `installed` is the environment made or used, None where none was asked for.
    """

    box: str
    root: str
    bundle: str
    release: str
    previous: str | None
    python: str
    installed: str | None
    copied: Copied
    swapped: bool
    reason: str | None
    report: dict[str, Any]


class RolledBack(Frozen, frozen=True):
    """What is current after a rollback, and what was before it."""

    box: str
    release: str
    left: str


def deploy(
    path: Path,
    destination: Destination,
    reach: Reach | None = None,
    installation: Installation | None = None,
    *,
    key: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Deployed:
    """Copy a bundle to a box, verify it there, and put it in place.

    Args:
        path: the bundle, a folder or a zip.
        destination: the box and the folder there.
        reach: how to connect.
        installation: what to install there first; None installs nothing.
        key: a public key that the bundle has to be signed by, here and there.
        force: put it in place although `edgecnn verify` says no.
        say: is told what is going on.

    Raises:
        BundleError: the bundle is damaged here.
        VerdictError: the bundle is not signed as it has to be, there.
        DeviceError: the box cannot be reached, has no room, no Python or no edgecnn, or the connection was lost. Only one
            that is lost during the rename itself leaves open whether the new bundle is in place; it is whole then.
    """
    bundle = Bundle.open(path, key)
    bundle.verify()
    reach = reach or Reach()
    with tempfile.TemporaryDirectory(prefix="edgecnn-deploy-") as folder:
        wheels = _wheels(installation, Path(folder)) if installation else {}
        if installation:
            extras = chosen_extras(next(iter(wheels.values())), installation.extras, key is not None)
            installation = replace(installation, extras=extras)
        with closing(_connect(destination, reach)) as connection:
            under_way = _Deployment(connection, destination, bundle, key, wheels, installation, say)
            return under_way.run(reach.python is not None, force)


def roll_back(destination: Destination, reach: Reach | None = None) -> RolledBack:
    """Put back what was in place before, after its files were hashed there.

    Raises:
        DeviceError: the box cannot be reached, or there is nothing whole to go back to.
    """
    reach = reach or Reach()
    with closing(_connect(destination, reach)) as connection:
        connection.request({"do": "hold", "folder": destination.path, "make": False})
        found = connection.request({"do": "rollback"})
    return RolledBack(box=destination.host, release=found["release"], left=found["left"])


def _connect(destination: Destination, reach: Reach) -> Connection:
    return Connection(destination, sources(*AGENT), reach.options, reach.python, reach.config)


@dataclass(frozen=True)
class _Deployment:
    """One deployment under way; `wheels` are files by name, the first of them edgecnn's own."""

    connection: Connection
    destination: Destination
    bundle: Bundle
    key: Path | None
    wheels: Mapping[str, Path]
    installation: Installation | None
    say: Callable[[str], None]

    def run(self, named: bool, force: bool) -> Deployed:
        files = {path.relative_to(self.bundle.root).as_posix(): path for path in _files(self.bundle.root)}
        keys = [self.key] if self.key is not None else []
        digests = {path: sha256_of(path) for path in (*files.values(), *keys, *self.wheels.values())}
        environment = self._environment(digests)
        self._ask("hold", folder=self.destination.path)
        box = self._ask("begin", named=named, key=environment, signed=self.key is not None)
        wheels = {} if box["installed"] else self.wheels
        copied = self._copy({digests[path]: path for path in (*files.values(), *keys, *wheels.values())}, bool(wheels))
        python, venv = box["python"], box["venv"]
        if self.installation is not None:
            names = {name: digests[path] for name, path in self.wheels.items()}
            made = self._install(environment, names)
            python, venv = made["python"], made["venv"]
        listed = {name: digests[path] for name, path in files.items()}
        signer = digests[self.key] if self.key is not None else None
        staged = self._ask("stage", files=listed, name=listed[MANIFEST][:8], python=python, venv=venv, key=signer)
        self.say(f"{self.destination}: verifying with {python}")
        report, reason = self._verify(python, staged["release"])
        swapped = reason is None or force
        previous = self._swap(staged["release"]) if swapped else box["current"]
        return Deployed(
            box=self.destination.host,
            root=box["root"],
            bundle=f"{box['root']}/current/bundle",
            release=staged["release"],
            previous=previous,
            python=python,
            installed=venv if self.installation is not None else None,
            copied=copied,
            swapped=swapped,
            reason=reason,
            report=report,
        )

    def _ask(self, step: str, **asked: object) -> dict[str, Any]:
        return self.connection.request({"do": step, **asked}, heard=self._heard)

    def _heard(self, line: str) -> None:
        self.say(f"{self.destination}: {line}")

    def _environment(self, digests: Mapping[Path, str]) -> str | None:
        """Name an environment by all that goes into it."""
        if self.installation is None:
            return None
        parts = [self.installation.extras, *sorted(digests[path] for path in self.wheels.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _copy(self, wanted: Mapping[str, Path], installs: bool) -> Copied:
        """Send what is not there, going on where a file was broken off."""
        sizes = {digest: path.stat().st_size for digest, path in wanted.items()}
        found = self._ask("have", wanted=sizes)
        there: dict[str, int] = {digest: min(found["bytes"][digest], size) for digest, size in sizes.items()}
        missing = [digest for digest, size in sizes.items() if there[digest] < size or found["bytes"][digest] > size]
        self._check_room(found["free"], sum(sizes[digest] - there[digest] for digest in missing), installs)
        again = self._put(wanted, {digest: there[digest] for digest in missing})
        if again:  # what had come before was not the beginning of it
            again = self._put(wanted, dict.fromkeys(again, 0))
        if again:
            raise DeviceError(f"{self.destination}: {wanted[again[0]].name} arrives damaged: check the disk there")
        sent = sum(sizes[digest] - there[digest] for digest in missing)
        copied = Copied(files=len(missing), bytes=sent, there=sum(sizes.values()) - sent)
        self.say(
            f"{self.destination}: {len(missing)} of {len(wanted)} files copied, {sent} bytes; {copied.there} were there"
        )
        return copied

    def _put(self, wanted: Mapping[str, Path], begun: Mapping[str, int]) -> list[str]:
        if not begun:
            return []
        sizes = {digest: wanted[digest].stat().st_size for digest in begun}
        listed = [(digest, sizes[digest], offset) for digest, offset in begun.items()]
        parts = (part for digest, offset in begun.items() for part in _parts(wanted[digest], sizes[digest], offset))
        size = sum(sizes.values()) - sum(begun.values())
        try:
            damaged: list[str] = self.connection.request({"do": "put", "files": listed}, parts, size)["damaged"]
        except DeviceError as error:
            raise DeviceError(f"{error}; what runs there is as before, and the same command goes on") from error
        return damaged

    def _check_room(self, free: int, size: int, installs: bool) -> None:
        house = self.installation.wheelhouse if self.installation else None
        taken = sum(path.stat().st_size for path in self.wheels.values()) * _UNPACKED if house else _INSTALLED_BYTES
        needed = size + (taken if installs else 0)
        if needed > free:
            raise DeviceError(
                f"{self.destination}: {_mega(needed)} MB are needed in {self.destination.path}, and {_mega(free)} MB are "
                "free: make room, or name another folder"
            )

    def _install(self, key: str | None, names: Mapping[str, str]) -> dict[str, Any]:
        assert self.installation is not None  # noqa: S101 -- it is asked for where there is one
        header = {
            "do": "install", "key": key, "wheel": next(iter(names)), "wheels": names,
            "extras": self.installation.extras, "index": self.installation.wheelhouse is None,
        }  # fmt: skip
        return self.connection.request(header, timeout_s=INSTALL_S, heard=self._heard)

    def _verify(self, python: str, release: str) -> tuple[dict[str, Any], str | None]:
        """Return what `edgecnn verify` found there, and why it refused."""
        asked = {"do": "verify", "python": python, "release": release}
        done = self.connection.request(asked, timeout_s=VERIFY_S)
        lines = [line.strip() for line in done["errors"].splitlines() if line.strip()]
        last = lines[-1].removeprefix("edgecnn: ") if lines else f"exit code {done['code']}"
        try:
            report = msgspec.json.decode(done["out"], type=dict[str, Any]) if done["code"] in (0, REFUSED) else None
        except msgspec.MsgspecError:
            report = None
        if report is None and done["code"] == REFUSED:  # a signature that is not good there, for example
            raise VerdictError(f"{self.destination}: not put in place: {last}")
        if report is None:
            raise DeviceError(f"{self.destination}: `edgecnn verify` did not come to a verdict there: {last[:300]}")
        return report, last if done["code"] == REFUSED else None

    def _swap(self, release: str) -> str | None:
        try:
            previous: str | None = self._ask("swap", release=release)["previous"]
        except DeviceError as error:
            raise DeviceError(
                f"{error}; that was while {release} was put in place, so that it may be: the same command again tells"
            ) from error
        return previous


def _mega(size: int) -> str:
    """Write bytes as megabytes, two of them apart even where both are small."""
    return f"{size / 1e6:.{1 if size >= 10e6 else 3}f}"


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _parts(path: Path, size: int, offset: int) -> Iterator[bytes]:
    """Read a file from an offset to the size it had; one that has changed meanwhile is not sent on."""
    with path.open("rb") as file:
        file.seek(offset)
        while offset < size:
            part = file.read(min(_CHUNK, size - offset))
            if not part:
                raise UsageError(f"{path}: has changed while it was copied: deploy again")
            offset += len(part)
            yield part


def _wheels(installation: Installation, folder: Path) -> dict[str, Path]:
    """Find what is to be installed by file name, edgecnn's own wheel first.

    Raises:
        UsageError: there is no such file or folder, or it is no wheel.
    """
    own = installation.wheel or pack_wheel(folder)
    if not own.is_file() or own.suffix != ".whl":
        raise UsageError(f"{own}: is no wheel; give a file that ends in .whl")
    house = installation.wheelhouse
    if house is not None and not house.is_dir():
        raise UsageError(f"{house}: is no folder; give one of wheels, as `pip download` fills it")
    others = sorted(house.glob("*.whl")) if house is not None else []
    return {own.name: own} | {path.name: path for path in others if path.name != own.name}
