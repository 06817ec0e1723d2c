"""Probe this machine for `doctor`: nothing is installed or changed, and nothing found is hidden."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec

from edgecnn import host, registry
from edgecnn.errors import EdgecnnError
from edgecnn.host import Host, Load
from edgecnn.spec import Frozen, Target


class BackendState(Frozen, frozen=True):
    """One backend: the names to use it by on this machine, or what is wrong and how to mend it.

    `missing` maps devices that it could have here to what they need.
    """

    name: str
    distribution: str
    usable: tuple[str, ...]
    problem: str | None
    missing: dict[str, str] = msgspec.field(default_factory=dict)


class Diagnosis(Frozen, frozen=True):
    """All that `doctor` found; `advice` is what to do about it."""

    host: Host
    load: Load
    target: Target
    executable: str
    disk_free_mb: int
    backends: tuple[BackendState, ...]
    exporters: tuple[registry.Status, ...]
    providers: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at CPU, threads, memory, disk, backends, exporters and ONNX Runtime's providers."""
    machine = host.fingerprint()
    target = host.target_of_host()
    backends, idle = _without_idle_plugins(tuple(_backend(status) for status in registry.statuses(registry.BACKENDS)))
    exporters = tuple(registry.statuses(registry.EXPORTERS))
    return Diagnosis(
        host=machine,
        load=host.load(),
        target=target,
        executable=sys.executable,
        disk_free_mb=shutil.disk_usage(Path.cwd()).free // 1_000_000,
        backends=backends,
        exporters=exporters,
        providers=_providers(backends),
        advice=(*_advice(machine, target, backends), *idle),
    )


def _backend(status: registry.Status) -> BackendState:
    usable: tuple[str, ...] = ()
    missing: dict[str, str] = {}
    problem = status.problem
    if problem is None:
        try:
            backend = registry.get(registry.BACKENDS, status.name)
            usable = tuple(
                status.name if device == "cpu" else f"{status.name}@{device}" for device in backend.devices()
            )
            missing = getattr(backend, "missing", dict)()
        except EdgecnnError as error:
            problem = str(error)
        except Exception as error:  # a third party's probe may raise anything; the others must still be shown
            problem = f"its devices cannot be listed: {type(error).__name__}: {error}"
    return BackendState(
        name=status.name, distribution=status.distribution, usable=usable, problem=problem, missing=missing
    )


def _without_idle_plugins(backends: tuple[BackendState, ...]) -> tuple[tuple[BackendState, ...], list[str]]:
    """Take away the devices of ONNX Runtime's plugins that cannot be obtained here, and say why.

    A plugin that is installed is a promise only: its library must load and find its hardware.
    """
    if not any(backend.name == "onnxruntime" and backend.usable for backend in backends):
        return backends, []
    reasons: dict[str, list[str]] = {}
    for device, reason in _plugin_problems().items():
        reasons.setdefault(reason.removeprefix(f"{device}: "), []).append(f"onnxruntime@{device}")
    idle = {name for names in reasons.values() for name in names}
    kept = tuple(
        msgspec.structs.replace(backend, usable=tuple(name for name in backend.usable if name not in idle))
        for backend in backends
    )
    return kept, [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _plugin_problems() -> dict[str, str]:
    from edgecnn.backends import providers

    found = {device: providers.problem(device) for device in providers.plugins()}
    return {device: problem for device, problem in found.items() if problem}


def _providers(backends: tuple[BackendState, ...]) -> tuple[str, ...]:
    if not any(backend.name == "onnxruntime" and backend.usable for backend in backends):
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _advice(machine: Host, target: Target, backends: tuple[BackendState, ...]) -> list[str]:
    advice = [f"{backend.name}: {backend.problem}" for backend in backends if backend.problem]
    advice += [
        f"{backend.name}@{device}: {told}"
        for backend in backends
        if not backend.problem
        for device, told in backend.missing.items()
    ]
    if {"onnxruntime", "onnxruntime-gpu"} <= set(machine.packages):
        advice.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then install one"
        )
    if machine.cgroup_cpus is not None and machine.cgroup_cpus < machine.cores:
        advice.append(
            f"the cgroup allows {machine.cgroup_cpus:g} of {machine.cores} cores; edgecnn sizes its threads by that"
        )
    if machine.governor in ("powersave", "ondemand", "conservative"):
        advice.append(f"the CPU governor is {machine.governor}: latencies will wander; `performance` is steadier")
    if target == "x86-64":
        advice.append(
            "this x86 CPU has no VNNI: int8 of full weight range saturates here; use bundles exported with --target any or x86-64"
        )
    return advice
