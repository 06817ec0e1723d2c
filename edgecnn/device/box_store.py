"""The folder on a box that holds deployed bundles: what is current, what was before it, and what is still being copied.

    FOLDER/current -> releases/0002-1a2b3c4d      one rename of this link puts everything in place at once
    FOLDER/releases/0002-1a2b3c4d/bundle/         a bundle, as `edgecnn export` wrote it
    FOLDER/releases/0002-1a2b3c4d/venv            a link to the environment that it was verified with, if there is one
    FOLDER/releases/0002-1a2b3c4d/signer.pub      the key that the bundle has to be signed by, if one was given
    FOLDER/releases/0002-1a2b3c4d/release.json    the release before it, the interpreter, and every file's SHA-256
    FOLDER/venvs/KEY/                             environments, each in the place where it was made, as they cannot be moved
    FOLDER/partial/                               files by their SHA-256, whole, or with `.part` as far as they came

It is sent over ssh and run there by a Python that may have nothing but its standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgecnn.device.box_channel import RefusalError

RELEASE = "release.json"
KEY = "signer.pub"
WAIT_S = 5.0
_CHUNK = 1 << 20


class Store:
    """One such folder, held by one process at a time."""

    def __init__(self, folder: str, make: bool = True) -> None:
        """Take hold of the folder, which is made if it is not there and `make` says so.

        Raises:
            RefusalError: another process holds it, something else is in its place, or it cannot be made.
        """
        # A relative one begins at the home folder, where ssh starts its commands.
        self.root = Path(os.path.abspath(os.path.expanduser(folder)))  # noqa: PTH100, PTH111 -- links stay as they are
        self.current, self.releases = self.root / "current", self.root / "releases"
        self.partial, self.venvs = self.root / "partial", self.root / "venvs"
        if os.path.lexists(self.current) and not self.current.is_symlink():
            raise RefusalError(f"{self.current} is not a link that deploy made: move it away, or name another folder")
        if not make and not self.releases.is_dir():
            raise RefusalError(f"nothing is deployed in {self.root}")
        try:
            for place in (self.releases, self.partial):
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RefusalError(
                f"{error.filename}: {error.strerror}: name a folder that may be written there, as user@host:path"
            ) from None
        self._lock = _lock(self.root / ".lock")
        self.found: dict[str, Path] = {}

    def release(self, name: str | None = None) -> dict[str, Any] | None:
        """Read what is recorded of a release, by default the current one; None where there is none."""
        if name is None:
            name = self.current.readlink().name if self.current.is_symlink() else None
        try:
            recorded: dict[str, Any] = json.loads((self.releases / name / RELEASE).read_bytes()) if name else {}
        except (OSError, ValueError):
            return None
        return recorded or None

    def have(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Find files by SHA-256, `wanted` with their sizes: how many bytes of each are here; a whole one is hashed."""
        sizes = set(wanted.values())
        for path in (*self.partial.iterdir(), *self.releases.glob("*/bundle/**/*")):
            if path.suffix != ".part" and path.is_file() and not path.is_symlink() and path.stat().st_size in sizes:
                self.found.setdefault(sha256_of(path), path)
        parts = {digest: self.partial / f"{digest}.part" for digest in wanted if digest not in self.found}
        begun = {digest: part.stat().st_size for digest, part in parts.items() if part.is_file()}
        for digest in [digest for digest, size in begun.items() if size == wanted[digest]]:
            self._finish(parts[digest], digest)  # it was broken off after the last byte
        left = {digest: begun.get(digest, 0) if part.is_file() else 0 for digest, part in parts.items()}
        return {digest: size if digest in self.found else left[digest] for digest, size in wanted.items()}

    def put(self, files: Iterable[tuple[str, int, int]], some: Callable[[int], bytes]) -> list[str]:
        """Take files from a stream, each (SHA-256, size, bytes that are here already); name those that came out damaged."""
        damaged = []
        for digest, size, offset in files:
            part = self.partial / f"{digest}.part"
            with part.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.truncate()
                left = size - offset
                while left:
                    data = some(left)
                    file.write(data)
                    file.flush()
                    left -= len(data)
            if not self._finish(part, digest):
                damaged.append(digest)
        return damaged

    def _finish(self, part: Path, digest: str) -> bool:
        """Take a file that has all its bytes, or remove it where they are other ones."""
        if sha256_of(part) == digest:
            self.found[digest] = part.replace(self.partial / digest)
        else:
            part.unlink()
        return digest in self.found

    def stage(self, files: Mapping[str, str], name: str, python: str, venv: str | None, key: str | None) -> str:
        """Put a new release together, which is not current yet, and return what it is called.

        Args:
            files: SHA-256s by name; what a kept release holds already is linked, not copied.
            name: what it is called behind its number.
            python: the interpreter that it is verified with.
            venv: the environment that this belongs to, None where it is the box's own.
            key: SHA-256 of the public key that the bundle has to be signed by, None for none.
        """
        numbers = [int(one.name.partition("-")[0]) for one in self.releases.iterdir() if one.name[:4].isdigit()]
        name = f"{max(numbers, default=0) + 1:04d}-{name}"
        folder = self.releases / name
        for file, digest in files.items():
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise RefusalError(f"{file!r} leaves the bundle")
            target = folder / "bundle" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            place(self.found[digest], target)
        if key is not None:
            place(self.found[key], folder / KEY)
        if venv is not None:
            (folder / "venv").symlink_to(os.path.relpath(self.venvs / venv, folder))
        before = self.release()
        # Deployed a second time, the same must not take the place of what was before it.
        again = before is not None and (before["files"], before["python"]) == (dict(files), python)
        previous = None if before is None else before["previous"] if again else before["release"]
        record = {"release": name, "previous": previous, "python": python, "venv": venv, "files": dict(files)}
        (folder / RELEASE).write_text(json.dumps({**record, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}))
        os.sync()  # dozens of small files: to flush each takes far longer on a card
        return name

    def swap(self, name: str) -> None:
        """Make a release the current one, by one rename."""
        link = self.root / f".current.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("releases") / name)
        link.replace(self.current)
        flush(self.root)

    def rollback(self) -> tuple[str, str]:
        """Make the previous release the current one, after hashing it; returns both names, the new one first.

        Raises:
            RefusalError: there is none, or it is damaged.
        """
        now = self.release()
        if now is None:
            raise RefusalError(f"nothing is deployed in {self.root}")
        before = self.release(now["previous"]) if now["previous"] else None
        if before is None:
            raise RefusalError(f"{self.root} holds no release before {now['release']}: deploy the bundle wanted")
        bundle = self.releases / before["release"] / "bundle"
        bad = [name for name, digest in before["files"].items() if not _is(bundle / name, digest)]
        if bad:
            raise RefusalError(f"{bundle / bad[0]} is damaged or missing: deploy that bundle again")
        if before["venv"] is not None and not os.access(before["python"], os.X_OK):
            raise RefusalError(f"{before['python']} is gone: deploy that bundle again, with --install")
        self.swap(before["release"])
        return before["release"], now["release"]

    def sweep(self) -> None:
        """Remove all but the current release, the one before it, and their environments."""
        now = self.release()
        if now is None:
            return
        before = self.release(now["previous"]) if now["previous"] else None
        kept = [one for one in (now, before) if one is not None]
        _keep(self.releases, {one["release"] for one in kept})
        _keep(self.venvs, {one["venv"] for one in kept})
        _keep(self.partial, set())
        for left in self.root.glob(".current.*"):
            left.unlink(missing_ok=True)

    def free(self) -> int:
        """Count the bytes that may still be written here."""
        return shutil.disk_usage(self.root).free


def place(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system has none of these, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def flush(path: Path) -> None:
    """Have a folder's or file's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hash a file without holding it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def _keep(folder: Path, names: set[str]) -> None:
    for one in folder.iterdir() if folder.is_dir() else ():
        if one.name not in names:
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one, ignore_errors=True)
            else:
                one.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    """Take a lock that goes with this process; one that has lost its connection may need a moment to end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RefusalError(
                    f"another deployment into {path.parent} is under way; one whose connection was cut ends in 2 minutes"
                ) from None
            time.sleep(0.1)
        else:
            return descriptor
