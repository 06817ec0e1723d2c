"""From names to backends and exporters, through entry points; looking one up imports nothing else."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecnn.errors import MissingPackageError, RegistryError
from edgecnn.spec import Frozen

BACKENDS = "edgecnn.backends"
EXPORTERS = "edgecnn.exporters"


class Status(Frozen, frozen=True):
    """One registered name as `doctor` shows it; `problem` is None when it is ready to use."""

    name: str
    distribution: str
    problem: str | None


def names(group: str) -> list[str]:
    """List the registered names, sorted, each once."""
    return sorted({point.name for point in _points(group)})


def get(group: str, name: str) -> Any:
    """Import and make the one backend or exporter of this name.

    A class may state `requires`, a mapping from a module's name to the way to install it; a module that is
    absent is reported before anything tries to import it.

    Raises:
        RegistryError: the name is unknown, has two owners, or its plugin is broken.
        MissingPackageError: the package it needs is not installed.
    """
    point = _entry_point(group, name)
    try:
        plugin = point.load()
        for module, remedy in getattr(plugin, "requires", {}).items():
            if not _installed(module):
                raise MissingPackageError(f"{name} needs the package {module}, which is not installed here: {remedy}")
        return plugin()
    except MissingPackageError:
        raise
    except (Exception, SystemExit) as error:  # whatever a third party's module does must not take the others along
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RegistryError(f"{name} (from {_owner(point)}) is broken and cannot be loaded: {reason}") from error


def statuses(group: str) -> list[Status]:
    """Try every registered name and say what is wrong with each, dropping none."""
    found = []
    for point in sorted(_points(group), key=lambda point: point.name):
        try:
            get(group, point.name)
            problem = None
        except RegistryError as error:
            problem = str(error)
        found.append(Status(name=point.name, distribution=_owner(point), problem=problem))
    return found


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is absent
        return False


@dataclass(frozen=True)
class _Point:
    """One line of a distribution's entry points."""

    name: str
    value: str
    folder: Path

    def load(self) -> Any:
        module, _, attributes = self.value.partition("[")[0].strip().partition(":")
        return functools.reduce(getattr, filter(None, attributes.split(".")), import_module(module))


def _entry_point(group: str, name: str) -> _Point:
    points = [point for point in _points(group) if point.name == name]
    if not points:
        known = ", ".join(names(group)) or "none; is edgecnn installed?"
        raise RegistryError(f"no {group.split('.')[1].rstrip('s')} is called {name!r}; known: {known}")
    if len(points) > 1:
        owners = " and ".join(sorted(f"{_owner(point)} ({point.value})" for point in points))
        raise RegistryError(f"{name!r} is claimed by {owners}; uninstall one of them")
    return points[0]


def _points(group: str) -> Iterator[_Point]:
    """Read the entry points of every distribution on the path, the first of each name, as importlib.metadata does.

    That module is not used because importing it takes 45 ms, a fifth of a whole `edgecnn predict`.
    """
    seen = set()
    for place in sys.path:
        for folder in _distributions(Path(place)):
            name = folder.name.rpartition(".")[0].partition("-")[0].lower().replace("_", "-").replace(".", "-")
            if name not in seen:
                seen.add(name)
                yield from _parse(folder, group)


def _distributions(place: Path) -> list[Path]:
    try:
        return sorted(entry for entry in place.iterdir() if entry.suffix in (".dist-info", ".egg-info"))
    except OSError:
        return []


def _parse(folder: Path, group: str) -> Iterator[_Point]:
    try:
        lines = (folder / "entry_points.txt").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == group and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield _Point(name.strip(), value.strip(), folder)


def _owner(point: _Point) -> str:
    """Return a distribution's name as its metadata writes it."""
    for file in ("METADATA", "PKG-INFO"):
        try:
            lines = (point.folder / file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        return next((line[5:].strip() for line in lines if line.startswith("Name:")), point.folder.name)
    return point.folder.name
