"""Cold start and memory, measured in child processes: what an import here has cached cannot flatter them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgecnn.errors import BackendError
from edgecnn.spec import BackendRef, Frozen


class ColdStart(Frozen, frozen=True):
    """Medians over `runs` fresh processes, in milliseconds from the moment the process was asked for.

    `peak_mb` is the process's largest resident memory (VmHWM) in units of 1,000,000 bytes.
    """

    runs: int
    total_ms: float
    interpreter_ms: float
    import_ms: float
    load_ms: float
    first_run_ms: float
    peak_mb: float


def measure_cold_start(bundle: Path, refs: Sequence[BackendRef], threads: int, runs: int = 5) -> dict[str, ColdStart]:
    """Start each candidate `runs` times, in turn, after one start that is not counted.

    Raises:
        BackendError: a child failed; its last line says why.
    """
    stamps: dict[str, list[dict[str, float]]] = {str(ref): [] for ref in refs}
    for number in range(runs + 1):
        for ref in refs:
            measured = start_child(bundle, ref, threads)
            if number:
                stamps[str(ref)].append(measured)
    return {name: _summarise(rows) for name, rows in stamps.items()}


def start_child(bundle: Path, ref: BackendRef, threads: int) -> dict[str, float]:
    """Start one process that loads, answers once and ends: milliseconds by phase, and `peak_mb`.

    Raises:
        BackendError: it failed; its last line says why.
    """
    asked = time.monotonic_ns()
    command = [sys.executable, "-m", "edgecnn.bench.child", str(bundle), str(ref), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(
            f"{ref} failed in a fresh process: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    stamps = json.loads(done.stdout)
    return {
        "total_ms": (stamps["answered"] - asked) / 1e6,
        "interpreter_ms": (stamps["started"] - asked) / 1e6,
        "import_ms": (stamps["imported"] - stamps["started"]) / 1e6,
        "load_ms": (stamps["loaded"] - stamps["imported"]) / 1e6,
        "first_run_ms": (stamps["answered"] - stamps["loaded"]) / 1e6,
        "peak_mb": stamps["peak_kb"] * 1024 / 1e6,
    }


def _summarise(rows: list[dict[str, float]]) -> ColdStart:
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return ColdStart(runs=len(rows), **medians)
