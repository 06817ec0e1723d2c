"""Probe this machine for `doctor`: nothing is installed or changed, and nothing found is hidden."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import msgspec

import edgecnn
from edgecnn import host, registry
from edgecnn.backends import providers
from edgecnn.device import accelerators, advice
from edgecnn.device.clock import Clock, read_clock
from edgecnn.device.heat import Heat, read_heat
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
    """All that `doctor` found; `advice` is what to do about it.

    `affinity` is the number of CPUs that the scheduler may use for this process, `memory_free_mb` what machine, cgroup
    and limits leave to it.
    """

    host: Host
    load: Load
    target: Target
    affinity: int
    memory_free_mb: int
    executable: str
    disk_free_mb: int
    heat: Heat
    clock: Clock
    backends: tuple[BackendState, ...]
    exporters: tuple[registry.Status, ...]
    providers: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at CPU, threads, memory, disk, heat, clock, backends, exporters and ONNX Runtime's providers."""
    machine = host.fingerprint()
    target = host.target_of_host()
    backends, idle = _without_idle_devices(tuple(_backend(status) for status in registry.statuses(registry.BACKENDS)))
    heat, clock = read_heat(), read_clock()
    free = shutil.disk_usage(".").free // 1_000_000  # "." is there even where the folder was removed, unlike its name
    memory = host.available_memory() // 1_000_000
    installed = Path(edgecnn.__file__).stat().st_mtime
    return Diagnosis(
        host=machine,
        load=host.load(),
        target=target,
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine.cores,
        memory_free_mb=memory,
        executable=sys.executable,
        disk_free_mb=free,
        heat=heat,
        clock=clock,
        backends=backends,
        exporters=tuple(registry.statuses(registry.EXPORTERS)),
        providers=_providers(backends),
        advice=(
            *advice.on_machine(machine, target),  # what spoils answers or times stands before what could be had besides
            *advice.on_state(heat, memory, free),
            *idle,
            *advice.on_clock(clock, installed),
            *_mending(backends),
        ),
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


def _without_idle_devices(backends: tuple[BackendState, ...]) -> tuple[tuple[BackendState, ...], list[str]]:
    """Take away the devices of ONNX Runtime that cannot be obtained here, and say why.

    A provider that the wheel holds, or a plugin that is installed, is a promise only: its library must load and find its
    hardware.
    """
    state = next((backend for backend in backends if backend.name == "onnxruntime"), None)
    if state is None or not state.usable:
        return backends, []
    reasons: dict[str, list[str]] = {}
    for name in state.usable:
        device = name.partition("@")[2]
        problem = _problem_of(device) if device else None
        if problem:
            reasons.setdefault(problem.removeprefix(f"{device}: "), []).append(name)
    idle = {name for names in reasons.values() for name in names}
    kept = tuple(
        msgspec.structs.replace(backend, usable=tuple(name for name in backend.usable if name not in idle))
        for backend in backends
    )
    return kept, [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _problem_of(device: str) -> str | None:
    return accelerators.problem(device) if device in providers.WHEEL else providers.problem(device)


def _providers(backends: tuple[BackendState, ...]) -> tuple[str, ...]:
    if not any(backend.name == "onnxruntime" and backend.usable for backend in backends):
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _mending(backends: tuple[BackendState, ...]) -> list[str]:
    """Say what each backend and each of its devices lacks."""
    told = [f"{backend.name}: {backend.problem}" for backend in backends if backend.problem]
    return told + [
        f"{backend.name}@{device}: {reason}"
        for backend in backends
        if not backend.problem
        for device, reason in backend.missing.items()
    ]
