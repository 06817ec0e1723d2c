"""Writing files so that a reader sees either the old content or the new; and where the cache lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path | None:
    """Name edgecnn's cache folder: `EDGECNN_CACHE`, or `edgecnn` in `XDG_CACHE_HOME` or `~/.cache`; None without a home.

    `EDGECNN_CACHE=/dev/null` keeps nothing. A relative `XDG_CACHE_HOME` is ignored (XDG Base Directory 0.8).
    """
    own, base = os.environ.get("EDGECNN_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if own:
        return Path(own)
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "edgecnn"
    except RuntimeError:
        return None


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to the disk, and rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk does not say which file it has no room for
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep_file(path: Path) -> None:
    """Remove what processes that were killed while writing `path` have left beside it."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if pid.isdigit() and not _is_running(int(pid)):
            left.unlink(missing_ok=True)


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; when the block ends well it takes `path`'s place, else it goes.

    A folder already at `path` is moved aside, replaced, and only then removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    previous = path.with_name(f".{path.name}.{os.getpid()}.old")
    _sweep(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        if path.exists() or path.is_symlink():
            path.rename(previous)
        temporary.rename(path)
        _flush(path.parent)
    except BaseException:
        if os.path.lexists(previous) and not os.path.lexists(path):
            previous.rename(path)
        raise
    finally:
        _remove(temporary)
        if previous.is_symlink():
            previous.unlink()
        _remove(previous)


def _remove(folder: Path) -> None:
    import shutil  # with all its compressors it takes 3 ms, and who only reads a bundle removes nothing

    shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Clear up after processes that were killed while writing `path`: restore what they had moved aside."""
    for left in path.parent.glob(f".{path.name}.*"):
        pid, _, kind = left.name.removeprefix(f".{path.name}.").partition(".")
        if kind not in ("tmp", "old") or not pid.isdigit() or (int(pid) != os.getpid() and _is_running(int(pid))):
            continue
        if kind == "old" and not os.path.lexists(path):
            left.rename(path)
        elif left.is_symlink() or left.is_file():
            left.unlink()
        else:
            _remove(left)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
