"""MNIST with default settings: accuracy, training time, parity and latency, by the commands a user types.

The four IDX files are looked for in `../shared/data/mnist`, or where the environment variable MNIST says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import ROOT, print_machine


def main() -> None:
    """Train, export, compare and bench; each command's own output is the result."""
    data = Path(os.environ.get("MNIST", ROOT.parent / "shared" / "data" / "mnist"))
    if not data.is_dir():
        print(f"skipped: no MNIST in {data}; set MNIST to the folder of its four IDX files")
        return
    print_machine()
    run, bundle = str(ROOT / "demo/runs/mnist"), str(ROOT / "demo/bundles/mnist")
    commands = (
        ("train", os.path.relpath(data), "-o", run),
        ("export", run, "-o", bundle),
        ("parity", bundle),
        ("bench", bundle),
    )
    for command in commands:
        print(f"\n$ edgecnn {' '.join(command)}", flush=True)
        subprocess.run([sys.executable, "-m", "edgecnn", *command], check=True)


if __name__ == "__main__":
    main()
