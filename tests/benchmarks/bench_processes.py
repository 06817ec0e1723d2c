"""Time training in one process against two: seconds an epoch and accuracy, interleaved; run it by hand.

`python tests/benchmarks/bench_processes.py [ROUNDS] [EPOCHS]` prints, on MNIST (a folder of IDX files, from the
variable MNIST or ../shared/data/mnist), the median over the rounds for each number of processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = os.environ.get("MNIST", str(Path(__file__).parents[3] / "shared" / "data" / "mnist"))


def train(processes: int, epochs: int, out: Path) -> dict[str, Any]:
    """Train the default network and return its metrics."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = [*launch, "-m", "edgecnn", "train", DATA, "-o", str(out), "--epochs", str(epochs), "--json"]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, check=True)
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


def main() -> None:
    """Print the medians."""
    rounds, epochs = (int(word) for word in (sys.argv[1:] + ["3", "2"][len(sys.argv) - 1 :])[:2])
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for processes, runs in found.items():
                runs.append(train(processes, epochs, Path(folder) / f"{number}-{processes}"))
    print(f"{DATA}, {epochs} epochs, {rounds} rounds, {os.cpu_count()} cores")
    for processes, runs in found.items():
        seconds = statistics.median(row["seconds"] for run in runs for row in run["history"])
        accuracy = statistics.median(run["test_accuracy"]["value"] for run in runs)
        print(f"{processes} process(es): {seconds:.2f} s an epoch, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
