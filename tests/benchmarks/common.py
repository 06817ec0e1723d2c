"""What the benchmarks share: a bundle to measure, and interleaved timing of two sides."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgecnn import host

ROOT = Path(__file__).resolve().parents[2]


def demo_bundle() -> Path:
    """Return the demo's bundle of the digits, made first if it is not there."""
    bundle = ROOT / "demo" / "bundles" / "digits"
    if not bundle.exists():
        subprocess.run([sys.executable, "-m", "edgecnn", "demo", "-o", str(ROOT / "demo")], check=True)
    return bundle


def interleave(sides: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Time `calls` calls of each side in each round, turn and turn about; seconds a call, after one untimed round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(rounds + 1):
        for name in order:
            start = time.perf_counter()
            for _ in range(calls):
                sides[name]()
            if number:
                times[name].append((time.perf_counter() - start) / calls)
        order.reverse()
    return times


def print_ratio(what: str, times: dict[str, list[float]], unit: float, name: str, limit: float | None = None) -> None:
    """Print both medians and the median of the rounds' ratios, first side over second, with its quartiles."""
    (first, a), (second, b) = times.items()
    low, middle, high = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    goal = f", at most {limit} wanted" if limit else ""
    print(
        f"{what}: {first} {statistics.median(a) * unit:.1f} {name}, {second} {statistics.median(b) * unit:.1f} {name}, "
        f"ratio {middle:.3f} ({low:.3f} to {high:.3f}) over {len(a)} rounds{goal}"
    )


def environment() -> dict[str, str]:
    """Give commands an environment without this shell's own settings of Python, such as one that keeps it from caching byte code."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def print_machine() -> None:
    """Print what the figures were measured on."""
    machine, load = host.fingerprint(), host.load()
    packages = ", ".join(f"{package} {version}" for package, version in machine.packages.items())
    print(
        f"{machine.cpu}, {' '.join(machine.features)}, {machine.usable_threads} threads, load {load.load_average:.2f}"
    )
    print(packages)
