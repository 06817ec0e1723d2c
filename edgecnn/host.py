"""What this machine is: its CPU features, the threads it may use, and its state while something is measured."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from pathlib import Path

from edgecnn.spec import Frozen, Target

# The features that decide how int8 convolutions compute, by the names Linux gives them.
INT8_FEATURES = (
    "sse4_1", "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


class Host(Frozen, frozen=True):
    """The machine's fingerprint: what a measurement or an int8 answer depends on."""

    system: str
    machine: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    usable_threads: int
    governor: str | None
    cgroup_cpus: float | None
    python: str
    packages: dict[str, str]


def fingerprint() -> Host:
    """Read this machine's fingerprint; what cannot be read is None or 'unknown'."""
    model, features = cpu()
    return Host(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=model,
        features=features,
        cores=os.cpu_count() or 1,
        usable_threads=usable_threads(),
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        cgroup_cpus=cgroup_cpus(),
        python=platform.python_version(),
        packages=package_versions(),
    )


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """Return the CPU's model name and those of its features that matter to int8."""
    found = _first_cpu(cpuinfo)
    flags = _flags(found)
    arm = (
        f"Arm implementer {found['cpu implementer']} part {found.get('cpu part', '?')}"
        if "cpu implementer" in found
        else ""
    )
    name = found.get("model name") or arm or platform.processor() or "unknown"
    return name, tuple(feature for feature in INT8_FEATURES if feature in flags)


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Say whether the CPU multiplies bfloat16 matrices, by AVX512-BF16, AMX-BF16 or Arm's BF16; None is not known."""
    flags = _flags(_first_cpu(cpuinfo))
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) if flags else None


def _first_cpu(cpuinfo: Path) -> dict[str, str]:
    """Read what Linux says of the first CPU, names in lower case."""
    lines = (line.partition(":") for line in reversed((_read(cpuinfo) or "").splitlines()))
    return {key.strip().lower(): value.strip() for key, _, value in lines}


def _flags(found: dict[str, str]) -> set[str]:
    return set(found.get("flags", found.get("features", "")).split())


def target_of_host() -> Target:
    """Name the export target that this machine is; a machine edgecnn has no recipe for is `any`."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "arm64"
    if machine in ("x86_64", "amd64"):
        _, features = cpu()
        return "x86-64-vnni" if {"avx_vnni", "avx512_vnni"} & set(features) else "x86-64"
    return "any"


def usable_threads() -> int:
    """Count the CPUs this process may use: its affinity mask, capped by the cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpus()
    return max(1, min(affinity, math.ceil(quota)) if quota is not None else affinity)


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the tightest CPU quota of this process's cgroups (v2, then v1) in CPUs, or None without one."""
    quotas = []
    line = next((line for line in (_read(membership) or "").splitlines() if line.startswith("0::")), "0::/")
    folder = root / line[3:].lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        limit, _, period = (_read(group / "cpu.max") or "max").partition(" ")
        if limit.isdigit() and period.isdigit():
            quotas.append(int(limit) / int(period))
    limit, period = (_read(root / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    if limit.isdigit() and period.isdigit():
        quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    status: Path = Path("/proc/self/status"),
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Count the bytes this process may still take: the least that machine, cgroups and its own limits leave.

    The machine leaves Linux's MemAvailable, a cgroup (v2 and v1) its limit less what is in use and cannot be
    dropped, RLIMIT_AS and RLIMIT_DATA themselves less what this process has mapped.
    """
    left = [_kilobytes(meminfo, "MemAvailable"), *_left_by_cgroups(root, membership), *_left_by_limits(status)]
    known = [count for count in left if count is not None]
    return max(0, min(known)) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_by_limits(status: Path) -> list[int | None]:
    import resource

    left: list[int | None] = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        allowed, taken = resource.getrlimit(limit)[0], _kilobytes(status, used)
        left.append(None if allowed == resource.RLIM_INFINITY or taken is None else allowed - taken)
    return left


def _left_by_cgroups(root: Path, membership: Path) -> list[int | None]:
    """Ask every group this process is in, from its own up to the root, in both hierarchies."""
    left: list[int | None] = []
    for line in (_read(membership) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, limit, used, stems = root, "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            stems = ("total_inactive_file", "total_active_file")
        else:
            continue
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            allowed, taken = _read(group / limit) or "", _read(group / used) or ""
            if allowed.isdigit() and taken.isdigit():
                stat = dict(
                    line.split()[:2] for line in (_read(group / "memory.stat") or "").splitlines() if " " in line
                )
                cache = sum(int(stat.get(stem, "0")) for stem in stems)  # the kernel drops it when memory is wanted
                left.append(int(allowed) - int(taken) + cache)
    return left


def _kilobytes(path: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(path) or "", re.M)
    return int(found.group(1)) * 1024 if found else None


def package_versions() -> dict[str, str]:
    """Return the versions of the packages an answer can depend on, of those that are installed."""
    from importlib import metadata

    versions = {}
    for name in ("edgecnn", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnx", "onnxscript", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class Load(Frozen, frozen=True):
    """How busy the machine was at one moment."""

    load_average: float
    throttled_periods: int
    stolen_ticks: int
    memory_available_mb: int


def load() -> Load:
    """Read the load average, the cgroup's throttling count, stolen CPU time and available memory."""
    throttled = re.search(r"^nr_throttled (\d+)", _read(Path("/sys/fs/cgroup/cpu.stat")) or "", re.M)
    ticks = _ticks()
    available = re.search(r"^MemAvailable: +(\d+) kB", _read(Path("/proc/meminfo")) or "", re.M)
    return Load(
        load_average=os.getloadavg()[0],
        throttled_periods=int(throttled.group(1)) if throttled else 0,
        stolen_ticks=ticks[7] if len(ticks) > 7 else 0,
        memory_available_mb=int(available.group(1)) // 1024 if available else 0,
    )


def busy_cores(seconds: float = 0.3) -> float:
    """Watch for a moment how many cores the machine keeps busy; the load average remembers what has ended."""
    first = _ticks()
    time.sleep(seconds)
    spent = [after - before for before, after in zip(first, _ticks(), strict=False)]
    idle = sum(spent[3:5])  # idle, and waiting for a disk
    return (os.cpu_count() or 1) * (1 - idle / sum(spent)) if sum(spent) else 0.0


def _ticks() -> list[int]:
    line = re.search(r"^cpu +(.*)$", _read(Path("/proc/stat")) or "", re.M)
    return [int(field) for field in line.group(1).split()[:8]] if line else []


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
