"""Runs ONNX Runtime on an x86 CPU that this machine is not, by qemu's user-mode emulation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, MissingPackageError

QEMU = "qemu-x86_64-static"
INSTALL = "apt-get install qemu-user-static"


def run_emulated(
    cpu: str,
    model: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    config: Mapping[str, str] | None = None,
    timeout_s: float = 600.0,
) -> dict[str, npt.NDArray[Any]]:
    """Run a model once on an emulated CPU, by ONNX Runtime's CPU provider on one thread, and return its outputs.

    The interpreter is this one, with the packages it has; a start takes seconds. What the emulated CPU lacks decides
    which kernels ONNX Runtime takes, and they compute what they compute on the real one. No time measured here means
    anything.

    Args:
        cpu: a name that qemu knows: `Haswell` has AVX2 and no VNNI, `Nehalem` SSE4.2 alone. No CPU has AVX-512 here.
        model: an ONNX file.
        feeds: the model's inputs by name.
        config: session config entries, such as `session.x64quantprecision`.
        timeout_s: when to give up, in seconds.

    Raises:
        MissingPackageError: qemu is not installed.
        BackendError: the emulated process failed or took too long.
    """
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise MissingPackageError(f"{QEMU} is not on the PATH, and an emulated {cpu} needs it: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="edgecnn-emulated-") as folder:
        # npz keys name the fields of a zip file and np.savez's own arguments; tensors may have any name.
        np.savez(Path(folder) / "feeds.npz", *feeds.values())
        request = {"model": str(model), "folder": folder, "inputs": list(feeds), "config": dict(config or {})}
        command = [qemu, "-cpu", cpu, sys.executable, "-m", "edgecnn.device.emulated_child", json.dumps(request)]
        names = json.loads(_output_of(command, f"{model} on an emulated {cpu}", timeout_s))
        with np.load(Path(folder) / "outputs.npz") as arrays:
            return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}


def _output_of(command: list[str], what: str, timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{what} gave no answer in {timeout_s:g} s: feed fewer images or raise timeout_s") from error
    if done.returncode:
        raise BackendError(f"{what} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout
