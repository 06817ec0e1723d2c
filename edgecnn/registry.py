"""From names to backends and exporters, through entry points; looking one up imports nothing else."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
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
    return sorted({point.name for point in metadata.entry_points(group=group)})


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
    for point in sorted(metadata.entry_points(group=group), key=lambda point: point.name):
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


def _entry_point(group: str, name: str) -> metadata.EntryPoint:
    points = list(metadata.entry_points(group=group, name=name))
    if not points:
        known = ", ".join(names(group)) or "none; is edgecnn installed?"
        raise RegistryError(f"no {group.split('.')[1].rstrip('s')} is called {name!r}; known: {known}")
    if len({(_owner(point), point.value) for point in points}) > 1:
        owners = " and ".join(sorted(f"{_owner(point)} ({point.value})" for point in points))
        raise RegistryError(f"{name!r} is claimed by {owners}; uninstall one of them")
    return points[0]


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
