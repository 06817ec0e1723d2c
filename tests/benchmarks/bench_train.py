"""Accuracy, parameters and training time on digits, MNIST and Fashion-MNIST, by the commands a user types, three seeds each.

The IDX files are looked for in `../shared/data`, or where the environment variable DATA says. SETS and SEEDS choose some, as
in `SETS=fashion SEEDS=0`; by themselves it is digits and MNIST, as Fashion-MNIST takes most of an hour a seed on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import ROOT, print_machine

# What each figure is wanted of: parameters at most, test accuracy at least, minutes on two cores; and the options.
SETS: dict[str, tuple[str, int, float, float, tuple[str, ...]]] = {
    "digits": ("digits", 30_000, 0.990, 1, ("--size", "n", "--epochs", "60")),
    "mnist": ("mnist", 50_000, 0.9965, 5, ("--size", "s", "--epochs", "15", "--optimizer", "sgd", "--lr", "0.1", "--batch-size", "64", "--amp", "--val", "0.05")),
    "fashion": ("fashion-mnist", 100_000, 0.940, 45, ("--size", "m", "--epochs", "60", "--optimizer", "sgd", "--label-smoothing", "0.1", "--amp", "--val", "0.05", "--augment", "light,no-turn,no-zoom,shift=0.07,cutout=0.22")),
}  # fmt: skip


def main() -> None:
    """Train every set with every seed, and export and compare those of MNIST's kind."""
    root = Path(os.environ.get("DATA", ROOT.parent / "shared" / "data"))
    seeds = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
    print_machine()
    for name in os.environ.get("SETS", "digits,mnist").split(","):
        folder, parameters, accuracy, minutes, options = SETS[name]
        source = folder if name == "digits" else os.path.relpath(root / folder)
        if name != "digits" and not Path(source).is_dir():
            print(f"{name}: skipped, no {source}; set DATA")
            continue
        print(f"\n{name}: wanted {accuracy:.2%} with at most {parameters:,} parameters in {minutes:g} min")
        found = [train(name, source, seed, options) for seed in seeds]
        print(f"{name}: median {statistics.median(found):.2%}, least {min(found):.2%} of {len(found)} seeds")
        if name != "digits":
            for seed in seeds:
                compare(name, seed)


def train(name: str, source: str, seed: int, options: tuple[str, ...]) -> float:
    """Train once, print one line, and return the test accuracy."""
    command = ["train", source, "-o", run_of(name, seed), "--seed", str(seed), *options]
    print(f"$ edgecnn {' '.join(command)}", flush=True)
    metrics = json.loads(edgecnn(*command, "--json"))
    accuracy = metrics["test_accuracy"]
    print(
        f"  test {accuracy['value']:.2%} ({accuracy['low']:.2%} to {accuracy['high']:.2%}), {metrics['parameters']:,} "
        f"parameters, {metrics['macs']:,} MACs, {metrics['seconds']:.0f} s",
        flush=True,
    )
    return float(accuracy["value"])


def compare(name: str, seed: int) -> None:
    """Export, and print what parity says of the int8 model, and its latency."""
    bundle = str(ROOT / "demo" / "bundles" / f"{name}-{seed}")
    edgecnn("export", run_of(name, seed), "-o", bundle)
    for command in ("parity", "bench"):
        print(f"$ edgecnn {command} {os.path.relpath(bundle)}\n{edgecnn(command, bundle)}", flush=True)


def run_of(name: str, seed: int) -> str:
    """Name the run folder."""
    return str(ROOT / "demo" / "runs" / f"{name}-{seed}")


def edgecnn(*arguments: str) -> str:
    """Run one command as a user would, and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "edgecnn", *arguments], check=False, capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr.splitlines()[-1] if done.stderr else f"ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
