"""Runs ONNX Runtime on a CPU that this machine is not, by qemu's user-mode emulation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, MissingPackageError
from edgecnn.spec import Target

QEMU = "qemu-x86_64-static"
QEMU_ARM = "qemu-aarch64-static"
INSTALL = "apt-get install qemu-user-static"
TIMEOUT_S = 600.0
CHILD = Path(__file__).with_name("emulated_child.py")
SITE = "opt/site"  # where a sysroot keeps numpy and onnxruntime


@dataclass(frozen=True)
class EmulatedCpu:
    """A CPU by the name that qemu has for it; what Linux says of one on Arm is `part` and `features`."""

    name: str
    qemu: str = QEMU
    target: Target = "x86-64"
    part: str = ""
    features: str = ""

    @property
    def cpuinfo(self) -> str:
        """Write /proc/cpuinfo as Linux would on this Arm CPU (Documentation/arch/arm64/cpu-feature-registers.rst)."""
        return (
            f"processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 1\n\n"
        )


class Value(NamedTuple):
    """An input or output as ONNX Runtime describes it: `type` such as `tensor(float)`, a free dimension by its name."""

    name: str
    type: str
    shape: list[int | str | None]


_A72 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
# The devices by the names they are asked for. qemu imitates no AVX-512, and so no VNNI.
CPUS = {
    "arm64": EmulatedCpu("cortex-a72", QEMU_ARM, "arm64", "0xd08", _A72),
    "arm64-dotprod": EmulatedCpu(
        "neoverse-n1", QEMU_ARM, "arm64", "0xd0c", f"{_A72} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
    ),
    "haswell": EmulatedCpu("Haswell"),
    "nehalem": EmulatedCpu("Nehalem"),
}


def run_emulated(
    cpu: str,
    model: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    config: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, npt.NDArray[Any]]:
    """Run a model once on an emulated x86 CPU and return its outputs; a start takes seconds.

    Args:
        cpu: a name that qemu knows: `Haswell` has AVX2 and no VNNI, `Nehalem` SSE4.2 alone. No CPU has AVX-512 here.
        model: an ONNX file.
        feeds: the model's inputs by name.
        config: session config entries, such as `session.x64quantprecision`.
        timeout_s: how long to wait for the model to load, and then for the answer, in seconds.

    Raises:
        MissingPackageError: qemu is not installed.
        BackendError: the emulated process failed or took too long.
    """
    process = EmulatedProcess(EmulatedCpu(cpu), model, config, timeout_s=timeout_s)
    try:
        return process.run(feeds)
    finally:
        process.close()


class EmulatedProcess:
    """A process under qemu that holds one model, run by ONNX Runtime's CPU provider on one thread, until it is closed.

    On x86 the interpreter is this one, with the packages it has; on Arm it is that of a sysroot. What the emulated CPU
    lacks decides which kernels ONNX Runtime takes, and they compute what they compute on the real one. No time measured
    here means anything.

    Attributes:
        inputs: what the model takes.
        outputs: what it gives.
    """

    def __init__(
        self,
        cpu: EmulatedCpu,
        model: Path,
        config: Mapping[str, str] | None = None,
        sysroot: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        label: str | None = None,
    ) -> None:
        """Start qemu and load the model, which errors call by `label` where it is given.

        Raises:
            MissingPackageError: qemu is not installed.
            BackendError: the process ended, took longer than `timeout_s`, or ONNX Runtime refused the model.
        """
        self._model, self._label = str(model.resolve()), label or str(model)
        self._what = f"{self._label} on an emulated {cpu.name}"
        self._timeout_s = timeout_s
        # Its finalizer removes it where nobody closes this.
        self._folder = tempfile.TemporaryDirectory(prefix="edgecnn-emulated-")
        folder = Path(self._folder.name)
        request = {"model": self._model, "folder": str(folder), "config": dict(config or {})}
        command, environment = _start(cpu, sysroot, folder)
        self._errors = folder / "stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, str(CHILD), json.dumps(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                bufsize=0,
            )
        self._end = weakref.finalize(self, _end, self._process)
        try:
            signature = self._answer()
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = ([Value(*value) for value in signature[side]] for side in ("inputs", "outputs"))

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run on arrays by the inputs' names and return those of the outputs.

        Raises:
            BackendError: the process has ended or took too long, after which it is gone; or ONNX Runtime refused the
                arrays, after which it can be asked again.
        """
        if not self._end.alive:
            raise BackendError(f"{self._what}: it was closed, or ended before")
        folder = Path(self._folder.name)
        np.savez(folder / "feeds.npz", *feeds.values())
        _send(self._process, list(feeds))
        names = self._answer()["outputs"]
        with np.load(folder / "outputs.npz") as arrays:
            return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}

    def close(self) -> None:
        """End the process and remove what it left; a second time does nothing."""
        self._end()
        self._folder.cleanup()

    def _answer(self) -> Any:
        line = self._line()
        if line is None:
            reason = self._last_words()
            self.close()
            raise BackendError(f"{self._what} failed: {reason}")
        answer = json.loads(line)
        if "error" in answer:
            reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", answer["error"].strip())
            raise BackendError(f"{self._what} failed: {' '.join(reason.replace(self._model, self._label).split())}")
        return answer

    def _line(self) -> bytes | None:
        """Wait for a line of the process; None where it ended instead."""
        assert self._process.stdout is not None  # noqa: S101 -- it was asked for
        pipe, line, until = self._process.stdout, b"", time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not ready.select(max(0.0, until - time.monotonic())):
                    self.close()
                    raise BackendError(
                        f"{self._what} gave no answer in {self._timeout_s:g} s: feed fewer images at a time"
                    )
                part = pipe.read(65536)
                if not part:
                    return None
                line += part
        return line

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        code = self._process.wait()
        ended = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        return lines[-1] if lines else ended


def _start(cpu: EmulatedCpu, sysroot: Path | None, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that a script's name completes, and its environment."""
    qemu = shutil.which(cpu.qemu)
    if qemu is None:
        raise MissingPackageError(f"{cpu.qemu} is not on the PATH, and an emulated {cpu.name} needs it: {INSTALL}")
    alike = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}  # numpy would start a thread a core
    if cpu.qemu == QEMU:
        return [qemu, "-cpu", cpu.name, sys.executable], {**os.environ, **alike}
    sysroot = sysroot.resolve() if sysroot is not None else None
    python = guest_python(sysroot) if sysroot is not None else None
    if sysroot is None or python is None:
        raise MissingPackageError(f"an emulated {cpu.name} needs a sysroot: `edgecnn sysroot arm64` makes one")
    # Nothing of the environment goes along: libraries and modules of this machine are of another architecture.
    home, site = str(sysroot / "usr"), str(sysroot / SITE)
    own = {"PYTHONHOME": home, "PYTHONPATH": site, "PYTHONNOUSERSITE": "1", "LC_ALL": "C.UTF-8"}
    return [qemu, "-cpu", cpu.name, "-L", str(_prefix(cpu, sysroot, folder)), str(python)], {**own, **alike}


def _prefix(cpu: EmulatedCpu, sysroot: Path, folder: Path) -> Path:
    """Make the folder in which qemu looks for a file before it looks in this machine's root.

    qemu 7.2 shows an Arm program the /proc/cpuinfo of x86, and ONNX Runtime's search for the CPU's features then
    crashes: it gets one that belongs to the CPU.
    """
    prefix = folder / "root"
    (prefix / "proc").mkdir(parents=True)
    (prefix / "proc" / "cpuinfo").write_text(cpu.cpuinfo)
    for part in ("usr", "lib"):
        (prefix / part).symlink_to(sysroot / part)
    return prefix


def guest_python(sysroot: Path) -> Path | None:
    """Find the sysroot's interpreter, None where it has none."""
    return next(iter(sorted((sysroot / "usr" / "bin").glob("python3.*[0-9]"))), None)


def _send(process: subprocess.Popen[bytes], inputs: list[str]) -> None:
    assert process.stdin is not None  # noqa: S101 -- it was asked for
    with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer will tell
        process.stdin.write(json.dumps(inputs).encode() + b"\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill at once: the process has nothing that it would have to put in order."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
