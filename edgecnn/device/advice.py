"""What `doctor` advises about a machine: each thing that disturbs an answer or a measurement, with what to do."""

from __future__ import annotations

import time
from pathlib import Path

from edgecnn.device.clock import Clock
from edgecnn.device.heat import Heat
from edgecnn.host import Host
from edgecnn.spec import Target

_MEMORY_MB = 300  # what `predict` takes with ONNX Runtime, and a little
_DISK_MB = 200  # a bundle twice, the previous one and the new one, and a wheel
_COUNTERS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")  # read without entering the kernel
_NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvhost-gpu")


def on_machine(machine: Host, target: Target, marks: tuple[str, ...] = _NVIDIA) -> list[str]:
    """Look at the packages, threads, governor and CPU; `marks` are files that tell of an NVIDIA GPU."""
    told = []
    wheels = {"onnxruntime", "onnxruntime-gpu"} & set(machine.packages)
    if len(wheels) == 2:
        told.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then install one"
        )
    if wheels == {"onnxruntime"} and any(Path(mark).exists() for mark in marks):
        told.append(
            "an NVIDIA GPU is here, and this onnxruntime has no CUDA: pip uninstall onnxruntime, then pip install 'edgecnn[gpu]'"
        )
    if machine.cgroup_cpus is not None and machine.cgroup_cpus < machine.cores:
        told.append(
            f"the cgroup allows {machine.cgroup_cpus:g} of {machine.cores} cores; edgecnn sizes its threads by that"
        )
    if machine.governor in ("powersave", "ondemand", "conservative"):
        told.append(f"the CPU governor is {machine.governor}: latencies will wander; `performance` is steadier")
    if target == "x86-64":
        told.append(
            "this x86 CPU has no VNNI: int8 of full weight range saturates here; use bundles exported with --target any or x86-64"
        )
    if target == "arm64" and machine.features and "asimddp" not in machine.features:
        told.append(
            "this Arm CPU has no dot product (asimddp): int8 may be no faster than fp32; `edgecnn verify` measures it"
        )
    return told


def on_state(heat: Heat, memory_mb: int, disk_mb: int) -> list[str]:
    """Look at what can change from minute to minute."""
    told = []
    if heat.throttled:
        told.append(
            f"the CPU has been slowed down: {', '.join(heat.throttled)}; latencies of now are not those of a cool box"
        )
    if memory_mb < _MEMORY_MB:
        told.append(f"{memory_mb} MB of memory are left to this process; `edgecnn predict` takes up to {_MEMORY_MB}")
    if disk_mb < _DISK_MB:
        told.append(f"{disk_mb} MB are free on this disk: too few for a deployment beside the one before")
    return told


def on_clock(clock: Clock, installed: float, now: float | None = None) -> list[str]:
    """Look at the clock; `installed` is when edgecnn's own files were written, in seconds since 1970 as `now` is."""
    told = []
    if (time.time() if now is None else now) < installed - 86_400:
        told.append(f"the clock says {clock.utc}, before edgecnn was installed: set it, or every report lies")
    elif clock.synchronized is False:
        told.append(
            f"the clock ({clock.utc}) is not synchronized: dates in reports may be wrong; `timedatectl` tells more"
        )
    if clock.source is not None and clock.source not in _COUNTERS:
        told.append(f"time is counted by {clock.source}, which is slow to read: short latencies come out too long")
    return told
