"""What `doctor` reads of heat, clock and libraries, from planted files and a library built for it, and what it advises."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from edgecnn import host
from edgecnn.device import accelerators, advice, probe
from edgecnn.device.clock import Clock, read_clock
from edgecnn.device.heat import Heat, read_heat
from edgecnn.device.libraries import Missing, library_folders, missing, needed
from edgecnn.host import Host

COOL = Heat(hottest="cpu", celsius=40.0, mhz=1500.0, max_mhz=1500.0, throttle_count=0, throttled=())


def plant(root: Path, **files: str) -> Path:
    """Write files whose names have `__` for `/`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


# Libraries.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build libneedy.so.1, which needs libgone.so.7, and take libgone away; libgone.so.6 is there."""
    compiler = shutil.which("gcc")
    if compiler is None:
        assert "CI" not in os.environ, "gcc is missing"
        pytest.skip("gcc is not installed: apt-get install gcc")
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "gone.c").write_text("int gone(void) { return 7; }\n")
    (folder / "needy.c").write_text("int gone(void);\nint needy(void) { return gone(); }\n")
    share = [compiler, "-shared", "-fPIC"]
    subprocess.run([*share, "-Wl,-soname,libgone.so.7", "-o", "libgone.so", "gone.c"], cwd=folder, check=True)
    subprocess.run([*share, "-o", "libneedy.so.1", "needy.c", "-L.", "-lgone", "-lm"], cwd=folder, check=True)
    (folder / "libgone.so").rename(folder / "libgone.so.6")
    return folder


def by_readelf(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text)


def test_needed_libraries_are_those_that_readelf_lists(built: Path) -> None:
    """For a small library, for ONNX Runtime's and for Python itself, the names and their order are readelf's."""
    capi = Path(onnxruntime.__file__).parent / "capi"
    files = [built / "libneedy.so.1", *capi.glob("*.so*"), Path(sys.executable).resolve()]
    assert len(files) > 3
    for file in files:
        assert list(needed(file)) == by_readelf(file)


def test_a_missing_library_is_named_with_the_version_that_is_there(built: Path) -> None:
    """Of what libneedy needs only libgone.so.7 is missing, and libgone.so.6 is shown; found, nothing is."""
    (lost,) = missing(built / "libneedy.so.1", [built])
    assert (lost.name, lost.others) == ("libgone.so.7", ("libgone.so.6",))
    assert "cannot open shared object file" in lost.reason
    assert str(lost) == "libgone.so.7 (here is libgone.so.6)"
    assert str(msgspec.structs.replace(lost, others=())) == "libgone.so.7"
    assert missing(built / "libgone.so.6", [built]) == ()


@pytest.mark.parametrize("content", [b"", b"not ELF", b"\x7fELF\x01\x01" + bytes(100)])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """An empty file, a text and a 32-bit library are said to be none that can be read."""
    (tmp_path / "lib.so").write_bytes(content)
    with pytest.raises(ValueError, match=r"lib\.so: no 64-bit"):
        needed(tmp_path / "lib.so")


def test_folders_of_libraries_are_there() -> None:
    """Every folder that other versions are looked for in exists, and the C library's is among them."""
    folders = library_folders()
    assert all(folder.is_dir() for folder in folders)
    assert any(list(folder.glob("libc.so.6")) for folder in folders)


# Accelerators.


def test_the_probes_model_is_one_convolution() -> None:
    """The bytes that the box carries are a model that ONNX accepts, and that runs."""
    model = onnx.load_model_from_string(accelerators.MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    session = onnxruntime.InferenceSession(accelerators.MODEL)
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(session.run(None, {"x": image})[0], image)


def test_missing_libraries_are_told_with_what_brings_them() -> None:
    """Libraries of packages and the driver's are two reasons, since they are mended in two ways."""
    lost = (Missing(name="libcudnn.so.9", reason="No such file", others=("libcudnn.so.8",)), Missing(name="libcuda.so.1", reason="No such file"))  # fmt: skip
    text = accelerators.told("cuda", lost)
    assert "libcudnn.so.9 (here is libcudnn.so.8); pip install 'onnxruntime-gpu[cuda,cudnn]'" in text
    assert text.endswith("libcuda.so.1, which comes with NVIDIA's driver and with no package of Python")
    assert "pip install tensorrt" in accelerators.told("tensorrt", (Missing(name="libnvinfer.so.10", reason="No such file"),))  # fmt: skip


@pytest.mark.parametrize(
    ("child", "told"),
    [
        ("print('no such thing'); raise SystemExit(2)", "no such thing"),
        ("import os; os.abort()", "it ended the process (-6)"),
        ("import time; time.sleep(60)", "it did not answer within 1 s"),
        ("pass", None),
    ],
)
def test_a_device_is_tried_in_a_process_of_its_own(
    child: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason is passed on; a driver that crashes or hangs costs no more than a line; silence is success."""
    monkeypatch.setattr(accelerators, "_CHILD", child)
    monkeypatch.setattr(accelerators, "SECONDS", 1 if "sleep" in child else 60)
    assert accelerators.problem("cuda:0") == told


def test_a_machine_without_nvidia_says_so() -> None:
    """Where there is no device, that is the reason, before any library is blamed that this wheel does not have."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("an NVIDIA device is here")
    assert "no NVIDIA device here" in (accelerators.problem("cuda:0") or "")


# Heat.


def test_heat_is_read_from_what_linux_shows(tmp_path: Path) -> None:
    """The warmest zone, the rate and the sum of the cores' counts are read; threads of one core count once."""
    cpu = "devices__system__cpu__"
    plant(
        tmp_path,
        class__thermal__thermal_zone0__temp="41500", class__thermal__thermal_zone0__type="acpitz",
        class__thermal__thermal_zone1__temp="63250", class__thermal__thermal_zone1__type="x86_pkg_temp",
        class__thermal__thermal_zone2__temp="-274000", class__thermal__thermal_zone2__type="absent",
        **{f"{cpu}cpu0__cpufreq__scaling_cur_freq": "1800000", f"{cpu}cpu0__cpufreq__cpuinfo_max_freq": "2400000"},
        **{f"{cpu}cpu{n}__thermal_throttle__core_throttle_count": count for n, count in enumerate(("3", "4", "3"))},
        **{f"{cpu}cpu{n}__topology__core_id": core for n, core in enumerate(("0", "1", "0"))},
        **{f"{cpu}cpu{n}__topology__physical_package_id": "0" for n in range(3)},
    )  # fmt: skip
    assert read_heat(tmp_path) == Heat(
        hottest="x86_pkg_temp", celsius=63.25, mhz=1800.0, max_mhz=2400.0, throttle_count=7,
        throttled=("7 times for heat since the start",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("0", ()),
        ("50000", ("under-voltage before", "throttled before")),
        ("50005", ("under-voltage now", "throttled now")),
        ("20002", ("frequency capped now",)),
        ("nonsense", ()),
    ],
)
def test_the_raspberry_pis_flags_are_words(flags: str, told: tuple[str, ...], tmp_path: Path) -> None:
    """Its firmware's bits say what slows it down now, and what did before."""
    plant(tmp_path, **{"devices__platform__soc__soc:firmware__get_throttled": flags})
    assert read_heat(tmp_path).throttled == told


def test_nothing_readable_is_nothing_claimed(tmp_path: Path) -> None:
    """Without any of the files every field is empty, and no advice is made of it."""
    heat = read_heat(tmp_path)
    assert heat == Heat(hottest=None, celsius=None, mhz=None, max_mhz=None, throttle_count=None, throttled=())
    assert advice.on_state(heat, 10_000, 10_000) == []


# The clock.


class Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>, up to the status."""

    _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_char * 256)]  # fmt: skip


def test_the_clocks_state_is_the_kernels() -> None:
    """Synchronized or not is bit 0x40 of the kernel's status, the source is what sysfs names, and a step takes time."""
    state = Timex()
    assert ctypes.CDLL(None).adjtimex(ctypes.byref(state)) >= 0
    clock = read_clock()
    assert clock.synchronized is not bool(state.status & 0x40)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", clock.utc)
    assert clock.resolution_ns > 0


def test_the_source_of_time_is_read(tmp_path: Path) -> None:
    """The clock source is the file's one word, and unknown without the file."""
    (tmp_path / "source").write_text("hpet\n")
    assert read_clock(tmp_path / "source").source == "hpet"
    assert read_clock(tmp_path / "none").source is None


# Advice.


def clock(**changes: Any) -> Clock:
    return msgspec.structs.replace(Clock(utc="2030-01-01T00:00:00Z", synchronized=True, source="tsc", resolution_ns=50), **changes)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "now", "told"),
    [
        ({}, 1e9, None),
        ({"synchronized": None, "source": None}, 1e9, None),
        ({"synchronized": False}, 1e9, "not synchronized"),
        ({"synchronized": False}, 1e9 - 1e6, "before edgecnn was installed"),
        ({"source": "hpet"}, 1e9, "counted by hpet"),
        ({"source": "arch_sys_counter"}, 1e9, None),
    ],
)
def test_a_wrong_clock_is_told(changes: dict[str, Any], now: float, told: str | None) -> None:
    """A clock from before the installation, one that nobody sets and a slow one are each one line."""
    lines = advice.on_clock(clock(**changes), installed=1e9, now=now)
    assert len(lines) == (told is not None)
    assert (told or "") in " ".join(lines)


@pytest.mark.parametrize(
    ("heat", "memory", "disk", "told"),
    [
        (COOL, 4000, 4000, None),
        (msgspec.structs.replace(COOL, throttled=("throttled now",)), 4000, 4000, "slowed down: throttled now"),
        (COOL, 120, 4000, "120 MB of memory"),
        (COOL, 4000, 12, "12 MB are free"),
    ],
)
def test_heat_and_want_are_told(heat: Heat, memory: int, disk: int, told: str | None) -> None:
    """A slowed CPU, little memory and a full disk are each one line."""
    lines = advice.on_state(heat, memory, disk)
    assert len(lines) == (told is not None)
    assert (told or "") in " ".join(lines)


@pytest.mark.parametrize(
    ("packages", "device", "told"),
    [
        (("onnxruntime",), True, "this onnxruntime has no CUDA"),
        (("onnxruntime",), False, None),
        (("onnxruntime-gpu",), True, None),
        (("onnxruntime-gpu", "onnxruntime"), True, "overwrite each other"),
    ],
)
def test_a_gpu_that_the_wheel_cannot_use_is_told(
    packages: tuple[str, ...], device: bool, told: str | None, tmp_path: Path
) -> None:
    """With NVIDIA's driver and the CPU's wheel, doctor says which wheel to install; with the GPU's it says nothing."""
    (tmp_path / "mark").write_text("")
    lines = advice.on_machine(
        machine(packages=dict.fromkeys(packages, "1.0")), "any", (str(tmp_path / "mark"),) * device
    )
    assert len(lines) == (told is not None)
    assert (told or "") in " ".join(lines)


def test_an_arm_cpu_without_dot_product_is_told() -> None:
    """A Cortex-A72 (Raspberry Pi 4) has no asimddp, a Cortex-A76 has; one whose features are unknown is not judged."""
    assert "no dot product" in " ".join(advice.on_machine(machine(features=("asimd",)), "arm64", ()))
    assert advice.on_machine(machine(features=("asimd", "asimddp")), "arm64", ()) == []
    assert advice.on_machine(machine(features=()), "arm64", ()) == []


ADVICE: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "any", None),
    ({}, "x86-64-vnni", None),
    ({"features": ("asimddp",)}, "arm64", None),
    ({}, "x86-64", "no VNNI"),
    ({"governor": "powersave"}, "any", "the CPU governor is powersave"),
    ({"governor": "ondemand"}, "any", "the CPU governor is ondemand"),
    ({"governor": None}, "any", None),
    ({"cgroup_cpus": 1.5}, "any", "the cgroup allows 1.5 of 4 cores"),
    ({"cgroup_cpus": 4.0}, "any", None),
    ({"packages": {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}}, "any", "uninstall both, then install one"),
    ({"packages": {"onnxruntime-gpu": "1.0"}}, "any", None),
]


@pytest.mark.parametrize(("changes", "target", "told"), ADVICE)
def test_advice_is_given_where_there_is_reason(changes: dict[str, Any], target: Any, told: str | None) -> None:
    """Each thing that will disturb a measurement or an answer is said once, and a good machine gets no advice."""
    lines = advice.on_machine(machine(**changes), target, ())
    assert len(lines) == (told is not None)
    assert (told or "") in " ".join(lines)


def machine(**changes: Any) -> Host:
    """Make a machine about which there is nothing to say, but for the changes."""
    plain = Host(
        system="Linux", machine="x86_64", cpu="a CPU", features=("avx_vnni",), cores=4, usable_threads=4, governor="performance",
        cgroup_cpus=None, python="3.12", packages={"onnxruntime": "1.0"},
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


# The whole.


def test_a_folder_that_was_removed_is_no_crash(tmp_path: Path) -> None:
    """In a folder that somebody has removed meanwhile, doctor still tells the space on its disk."""
    code = """
import os, sys
from edgecnn.device import probe
os.rmdir(os.getcwd())
probe.registry.statuses = lambda group: []  # torch's own libraries end a process without a folder
sys.exit(probe.diagnose().disk_free_mb < 0)
"""
    folder = tmp_path / "gone"
    folder.mkdir()
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": root})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_what_spoils_answers_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ONNX Runtimes that overwrite each other are told before what could be installed besides."""
    packages = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    both = msgspec.structs.replace(host.fingerprint(), packages=packages)
    monkeypatch.setattr(host, "fingerprint", lambda: both)
    lacking = probe.BackendState("lacking", "somebody's", (), "lacking needs a package")
    monkeypatch.setattr(probe, "_backend", lambda status: lacking)
    told = probe.diagnose().advice
    assert told[0].startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert told[-1] == "lacking: lacking needs a package"
