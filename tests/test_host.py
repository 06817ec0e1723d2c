"""What this machine is: read from made-up files of other machines, and compared with the operating system's word."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgecnn import host

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu sse4_1 avx2 avx512f avx512_vnni amx_int8_not
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
PI5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
PI3_32BIT = """processor\t: 0
model name\t: ARMv7 Processor rev 4 (v7l)
Features\t: half thumb fastmult vfp neon
CPU implementer\t: 0x41
CPU part\t: 0xd03
"""
HASWELL = "model name\t: Intel(R) Core(TM) i5-4590\nflags\t\t: sse4_1 avx2 fma\n"
ALDER_LAKE = "model name\t: 12th Gen Intel(R) Core(TM) i5\nflags\t\t: sse4_1 avx2 avx_vnni\n"


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (INTEL, "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", ("sse4_1", "avx2", "avx512f", "avx512_vnni")),
        (PI5, "Arm implementer 0x41 part 0xd0b", ("asimd", "asimddp")),
        (PI3_32BIT, "ARMv7 Processor rev 4 (v7l)", ()),
        (ALDER_LAKE, "12th Gen Intel(R) Core(TM) i5", ("sse4_1", "avx2", "avx_vnni")),
    ],
    ids=["xeon", "pi5", "pi3", "alder lake"],
)
def test_cpuinfo_of_other_machines_is_read(text: str, name: str, features: tuple[str, ...], tmp_path: Path) -> None:
    """The first CPU's name and its int8 features, as whole words, come from the text that Linux gives."""
    (tmp_path / "cpuinfo").write_text(text)
    assert host.cpu(tmp_path / "cpuinfo") == (name, features)


def test_a_machine_without_cpuinfo_is_still_named(tmp_path: Path) -> None:
    """Where nothing can be read there is a name, if only 'unknown', and no features."""
    name, features = host.cpu(tmp_path / "absent")
    assert name == (platform.processor() or "unknown")
    assert features == ()


def test_this_machine_is_read_as_linux_tells_it() -> None:
    """On this machine the features are among the words of the kernel's own list."""
    _, features = host.cpu()
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert set(features) <= words
    assert set(features) == words & set(host.INT8_FEATURES)


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        ("flags\t: fpu avx512f avx512_bf16", True),
        ("flags\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd svebf16", False),
        ("flags\t: fpu avx512f avx512_bf16_not", False),
        (INTEL, False),
        ("bogomips: 2", None),
        ("", None),
    ],
)
def test_bfloat16_is_read_from_the_flags(flags: str, known: bool | None, tmp_path: Path) -> None:
    """The CPU's instructions for bfloat16 are looked for by whole words; without a list of flags nothing is claimed."""
    (tmp_path / "cpuinfo").write_text(flags)
    assert host.has_bfloat16(tmp_path / "cpuinfo") is known


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "target"),
    [
        ("x86_64", INTEL, "x86-64-vnni"),
        ("AMD64", ALDER_LAKE, "x86-64-vnni"),
        ("x86_64", HASWELL, "x86-64"),
        ("x86_64", "", "x86-64"),
        ("aarch64", PI5, "arm64"),
        ("arm64", "", "arm64"),
        ("armv7l", PI3_32BIT, "any"),
        ("riscv64", "", "any"),
    ],
)
def test_the_target_follows_machine_and_features(
    machine: str, cpuinfo: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VNNI is what tells two x86 targets apart, and a machine that no recipe is for is `any`."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    found = host.cpu(tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "cpu", lambda: found)
    assert host.target_of_host() == target


def _cgroups(root: Path, files: dict[str, str], membership: str | None) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    path = root.parent / "membership"
    if membership is not None:
        path.write_text(membership)
    return root, path


@pytest.mark.parametrize(
    ("files", "membership", "cpus"),
    [
        ({}, None, None),
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/b/cpu.max": "200000 100000\n"}, "0::/a/b\n", 2.0),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "400000 100000\n"}, "0::/a/b\n", 0.5),
        ({"other/cpu.max": "1000 100000\n", "cpu.max": "300000 100000"}, "0::/a\n", 3.0),
        ({"cpu.max": "nonsense"}, "0::/\n", None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", 2.5),
    ],
)
def test_the_tightest_quota_of_all_cgroups_counts(
    files: dict[str, str], membership: str | None, cpus: float | None, tmp_path: Path
) -> None:
    """Quotas of the process's own cgroup and of those above it count, of version 2 and 1, and no others."""
    (tmp_path / "cgroup").mkdir()
    root, path = _cgroups(tmp_path / "cgroup", files, membership)
    assert host.cgroup_cpus(root, path) == cpus


def test_a_quota_outside_the_tree_is_not_read(tmp_path: Path) -> None:
    """A quota in the folder above the cgroups' root is no cgroup's."""
    (tmp_path / "cpu.max").write_text("1000 100000")
    root, path = _cgroups(tmp_path / "cgroup", {"a/cpu.max": "max 100000"}, "0::/a\n")
    assert host.cgroup_cpus(root, path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"), [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (1, None, 1)]
)
def test_threads_are_affinity_capped_by_quota(
    affinity: int, quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread count is the affinity mask's, at most the quota rounded up, and at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
    monkeypatch.setattr(host, "cgroup_cpus", lambda: quota)
    assert host.usable_threads() == threads


def test_a_narrowed_affinity_narrows_the_threads() -> None:
    """A process pinned to one CPU may use one thread, whatever the machine has."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_fingerprint_is_this_machines() -> None:
    """The fingerprint says what Python's own modules say, and is the same when asked again."""
    found = host.fingerprint()
    assert found.machine == platform.machine()
    assert found.python == platform.python_version()
    assert found.cores == os.cpu_count()
    assert 1 <= found.usable_threads <= found.cores
    assert (found.cpu, found.features) == host.cpu()
    assert found == host.fingerprint()


def test_package_versions_are_those_installed() -> None:
    """Versions are the installed distributions', and what is not installed is left out."""
    found = host.package_versions()
    assert {"edgecnn", "numpy", "pillow"} <= set(found)
    assert all(metadata.version(name) == version for name, version in found.items())
    installed = {(entry.metadata["Name"] or "").lower() for entry in metadata.distributions()}
    assert set(found) <= installed


def test_load_is_read_from_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load, throttling, stolen ticks and memory are taken from the fields that the kernel documents."""
    texts = {
        "/sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 10\nnr_throttled 7\nthrottled_usec 9",
        "/proc/stat": "cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10",
        "/proc/meminfo": "MemTotal:  4096000 kB\nMemFree:   1 kB\nMemAvailable:  2048000 kB",
    }
    monkeypatch.setattr(host, "_read", lambda path: texts[str(path)])
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 9.0, 9.0))
    assert host.load() == host.Load(load_average=1.25, throttled_periods=7, stolen_ticks=80, memory_available_mb=2000)


def test_load_of_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files are absent the counts are zero and nothing is raised."""
    monkeypatch.setattr(host, "_read", lambda path: None)
    found = host.load()
    assert (found.throttled_periods, found.stolen_ticks, found.memory_available_mb) == (0, 0, 0)


def test_busy_cores_are_what_the_kernel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 ticks on 4 cores 100 idle and 20 waiting for a disk leave 2.8 cores busy; an unreadable count none."""
    counts = iter([[10, 0, 0, 100, 5, 0, 0, 0, 0, 0], [200, 0, 60, 200, 25, 10, 10, 10, 0, 0]])
    monkeypatch.setattr(host, "_read", lambda path: "cpu  " + " ".join(map(str, next(counts))))
    monkeypatch.setattr(host.os, "cpu_count", lambda: 4)
    assert host.busy_cores(0.0) == pytest.approx(4 * (1 - 120 / 400))
    monkeypatch.setattr(host, "_read", lambda path: None)
    assert host.busy_cores(0.0) == 0.0


def _memory(tmp_path: Path, files: dict[str, str], membership: str) -> dict[str, Path]:
    """Lay out a machine with 8,000,000 kB available on which this process has mapped 100,000 kB, 60,000 of data."""
    root, path = _cgroups(tmp_path / "cgroup", files, membership)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n")
    (tmp_path / "status").write_text("Name:\tx\nVmSize:\t  100000 kB\nVmData:\t   60000 kB\n")
    return {"meminfo": tmp_path / "meminfo", "status": tmp_path / "status", "root": root, "membership": path}


V1 = "memory/a/memory.limit_in_bytes", "memory/a/memory.usage_in_bytes", "memory/a/memory.stat"


@pytest.mark.parametrize(
    ("files", "membership", "left"),
    [
        ({}, "0::/\n", 8000000 * 1024),
        ({"a/memory.max": "max", "a/memory.current": "5"}, "0::/a\n", 8000000 * 1024),
        ({"a/memory.max": "5000", "a/memory.current": "4000"}, "0::/a\n", 1000),
        (
            {
                "a/memory.max": "5000",
                "a/memory.current": "4000",
                "a/memory.stat": "anon 9\ninactive_file 300\nactive_file 20\n",
            },
            "0::/a\n",
            1320,
        ),
        ({"a/b/memory.max": "max", "a/memory.max": "700", "a/memory.current": "100"}, "0::/a/b\n", 600),
        ({"a/memory.max": "100", "a/memory.current": "400"}, "0::/a\n", 0),
        ({V1[0]: "9000", V1[1]: "2000"}, "7:memory:/a\n0::/\n", 7000),
        ({V1[0]: "9000", V1[1]: "2000", V1[2]: "cache 1\ntotal_inactive_file 50\n"}, "4:cpu,memory:/a\n", 7050),
        ({V1[0]: "9223372036854771712", V1[1]: "2000"}, "7:memory:/a\n", 8000000 * 1024),
        ({V1[0]: "9000", V1[1]: "2000"}, "7:cpu:/a\n", 8000000 * 1024),
    ],
)
def test_memory_is_what_machine_and_cgroups_leave(
    files: dict[str, str], membership: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least counts: MemAvailable, or what a cgroup above this process, v2 or v1, has not used or can drop."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert host.available_memory(**_memory(tmp_path, files, membership)) == left


@pytest.mark.parametrize(("which", "mapped"), [(resource.RLIMIT_AS, 100000), (resource.RLIMIT_DATA, 60000)])
def test_memory_is_what_the_process_limits_leave(
    which: int, mapped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on address space or data leaves itself less what is mapped already."""
    allowed = 200000 * 1024
    monkeypatch.setattr(
        resource, "getrlimit", lambda asked: (allowed if asked == which else resource.RLIM_INFINITY, allowed)
    )
    assert host.available_memory(**_memory(tmp_path, {}, "0::/\n")) == allowed - mapped * 1024


def test_a_real_limit_is_seen() -> None:
    """A process under `ulimit -v` of 2 GB sees less than that, and more than half of it."""
    script = "from edgecnn.host import available_memory; print(available_memory())"
    command = ["bash", "-c", 'ulimit -v 2000000; exec "$@"', "bash", sys.executable, "-c", script]
    left = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1_000_000_000 < left < 2_048_000_000


def test_memory_of_a_machine_that_tells_nothing_is_its_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither /proc nor cgroups say anything the physical memory counts."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    nothing = tmp_path / "nothing"
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host.available_memory(nothing, nothing, nothing, nothing) == ram
