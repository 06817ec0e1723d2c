"""ONNX Runtime on devices that are not here yet, by qemu: what their CPU lacks decides what int8 answers."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.backends.onnxruntime import FULL_RANGE_TARGETS, _spec
from edgecnn.backends.onnxruntime import INSTALL as INSTALL_ONNXRUNTIME
from edgecnn.errors import DeviceError, MissingPackageError
from edgecnn.spec import Artifact

if TYPE_CHECKING:  # device lies above backends, and doctor need not pay for it where it is not asked
    from edgecnn.device.emulate import EmulatedCpu, EmulatedProcess


class EmulatedBackend:
    """Runs ONNX files under qemu's user-mode emulation, on one thread whatever `options.threads` says.

    Devices: `arm64` is a Cortex-A72, which has no dot product (Raspberry Pi 4); `arm64-dotprod` a Neoverse N1, which has
    one as the Cortex-A76 has (Raspberry Pi 5); `haswell` has AVX2 and no VNNI; `nehalem` has no AVX. Answers are those
    of the real CPU, but for denormals and NaN payloads; no time measured here means anything.
    """

    name = "emulated"
    formats = ("onnx",)
    timed = False
    timeout_s = 600.0

    def devices(self) -> tuple[str, ...]:
        """List what can be imitated here.

        Raises:
            MissingPackageError: nothing can, and why.
        """
        from edgecnn.device.emulate import CPUS

        missing = self.missing()
        found = tuple(device for device in CPUS if device not in missing)
        if not found:
            raise MissingPackageError("; ".join(dict.fromkeys(missing.values())))
        return found

    def missing(self) -> dict[str, str]:
        """Say of every device that cannot be imitated here what it takes."""
        from edgecnn.device.emulate import CPUS

        obstacles = {device: _obstacle(cpu) for device, cpu in CPUS.items()}
        return {device: obstacle for device, obstacle in obstacles.items() if obstacle is not None}

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> EmulatedSession:
        """Start qemu and load an ONNX file from its verified bytes; takes seconds.

        Raises:
            DeviceError: the device cannot be imitated here.
            BackendError: ONNX Runtime refused the model, or qemu failed.
        """
        from edgecnn.device.emulate import CPUS, EmulatedProcess
        from edgecnn.device.sysroot import sysroot_folder

        cpu = CPUS.get(device)
        obstacle = f"there is no such device; there are {', '.join(CPUS)}" if cpu is None else _obstacle(cpu)
        if cpu is None or obstacle is not None:
            raise DeviceError(f"{self.name}@{device}: {obstacle}")
        # What our onnxruntime backend would ask for on that CPU: it repairs full-range int8 weights without VNNI.
        precise = artifact.target in FULL_RANGE_TARGETS and cpu.target == "x86-64"
        config = {"session.x64quantprecision": "1"} if precise else {}
        with tempfile.TemporaryDirectory(prefix="edgecnn-emulated-") as folder:
            model = Path(folder) / "model.onnx"
            model.write_bytes(artifact.read_bytes())
            process = EmulatedProcess(
                cpu, model, config, sysroot=sysroot_folder(), timeout_s=self.timeout_s, label=str(artifact.path)
            )
        return EmulatedSession(process, device)


class EmulatedSession:
    """A model in a process under qemu."""

    def __init__(self, process: EmulatedProcess, device: str) -> None:
        self._process = process
        self.device = device
        try:
            self.inputs = tuple(_spec(value) for value in process.inputs)
            self.outputs = tuple(_spec(value) for value in process.outputs)
        except BaseException:
            process.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays; a process that has ended or does not answer is a BackendError."""
        return self._process.run(feeds)

    def __enter__(self) -> EmulatedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()


def _obstacle(cpu: EmulatedCpu) -> str | None:
    """Say what keeps this machine from imitating a CPU, and what to do about it."""
    from edgecnn.device.emulate import INSTALL, guest_python
    from edgecnn.device.sysroot import SIZE, sysroot_folder

    qemu = shutil.which(cpu.qemu)
    if qemu is None:
        return f"{cpu.qemu} is not on the PATH: {INSTALL}"
    if cpu.name not in _known_cpus(qemu):
        return f"{qemu} does not know {cpu.name}: it takes qemu 7.2 or newer"
    if cpu.target == "x86-64":
        if platform.machine() != "x86_64":
            return "it runs this machine's own Python, which is not for x86-64"
        return None if find_spec("onnxruntime") else f"onnxruntime is not installed here: {INSTALL_ONNXRUNTIME}"
    folder = sysroot_folder()
    if folder is None or guest_python(folder) is None:
        return f"`edgecnn sysroot arm64` gets the programs that it runs ({SIZE})"
    return None


@functools.cache
def _known_cpus(qemu: str) -> frozenset[str]:
    """Ask qemu which CPUs it can imitate; an x86 one is the second word of its line, an Arm one the first."""
    done = subprocess.run([qemu, "-cpu", "help"], capture_output=True, text=True, errors="replace", check=False)
    return frozenset(word for line in done.stdout.splitlines() for word in line.split()[:2])
