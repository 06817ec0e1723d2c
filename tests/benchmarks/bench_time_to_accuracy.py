"""Time to 99.1 % on MNIST: PyTorch's own `examples/mnist/main.py`, unchanged, against `edgecnn train`, turn and turn about.

The script is looked for in `$PYTORCH_EXAMPLES/mnist/main.py` (a checkout of github.com/pytorch/examples), the four IDX
files in `../shared/data/mnist`, or where the environment variable MNIST says. Wall clock from the start of the process to
the first validation at 99.1 %: the script's is of the test images, edgecnn's of images split off from training.
`OPTIONS=--amp` trains in bfloat16, which pays on CPUs that have its instructions.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, print_machine

GOAL = 0.991
ROUNDS = int(os.environ.get("ROUNDS", "1"))
OURS = ("--size", "n", "--epochs", "2", "--batch-size", "64", "--json", *os.environ.get("OPTIONS", "").split())

# What the script needs of torchvision, over the IDX files: the same normalised images, in a data set of tensors.
STAND_IN = """
import gzip, os, sys, types
import numpy as np, torch

def read(name, offset):
    with gzip.open(os.path.join(os.environ["MNIST"], name)) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)

class MNIST(torch.utils.data.Dataset):
    def __init__(self, root, train=True, download=False, transform=None):
        prefix = "train" if train else "t10k"
        self.pixels = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        self.labels = read(f"{prefix}-labels-idx1-ubyte.gz", 8)
        self.transform = transform
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, index):
        return self.transform(self.pixels[index]), int(self.labels[index])

def to_tensor():
    return lambda pixels: torch.from_numpy(pixels.copy())[None].float().div_(255)

def normalise(mean, deviation):
    return lambda image: image.sub_(mean[0]).div_(deviation[0])

def compose(steps):
    def apply(value):
        for step in steps:
            value = step(value)
        return value
    return apply

datasets, transforms = types.ModuleType("datasets"), types.ModuleType("transforms")
datasets.MNIST = MNIST
transforms.ToTensor, transforms.Normalize, transforms.Compose = to_tensor, normalise, compose
sys.modules["torchvision.datasets"], sys.modules["torchvision.transforms"] = datasets, transforms
"""


def main() -> None:
    """Time both sides in each round and print every figure and the ratio."""
    data = Path(os.environ.get("MNIST", ROOT.parent / "shared" / "data" / "mnist")).resolve()
    script = Path(os.environ.get("PYTORCH_EXAMPLES", ROOT.parent / "examples")) / "mnist" / "main.py"
    if not data.is_dir() or not script.is_file():
        print(f"skipped: needs MNIST in {data} and {script} (set MNIST and PYTORCH_EXAMPLES)")
        return
    print_machine()
    times: list[tuple[float, float]] = []
    for number in range(1, ROUNDS + 1):
        theirs, ours = time_script(script, data), time_edgecnn(data)
        times.append((theirs, ours))
        print(
            f"round {number}: examples/mnist {theirs:.0f} s, edgecnn {ours:.0f} s, ratio {theirs / ours:.1f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(a / b for a, b in times):.1f} over {ROUNDS} rounds")


def time_script(script: Path, data: Path) -> float:
    """Run the script until it prints an accuracy of the goal, and return the seconds since its start."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "torchvision").mkdir()
        (Path(folder) / "torchvision" / "__init__.py").write_text(STAND_IN)
        environment = os.environ | {"PYTHONPATH": folder, "MNIST": str(data)}
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-u", str(script), "--no-accel"] if "--no-accel" in script.read_text() else [sys.executable, "-u", str(script)],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        ) as process:  # fmt: skip
            assert process.stdout is not None  # as asked for with PIPE
            for line in process.stdout:
                found = re.search(r"Accuracy: (\d+)/(\d+)", line)
                if found:
                    share, seconds = int(found[1]) / int(found[2]), time.perf_counter() - start
                    print(f"  examples/mnist {share:.4f} after {seconds:.0f} s", flush=True)
                    if share >= GOAL:
                        process.kill()
                        return seconds
    raise SystemExit("the script never reached the goal")


def time_edgecnn(data: Path) -> float:
    """Train, and return the seconds from the start of the process to the end of the first epoch at the goal."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "edgecnn", "train", str(data), "-o", f"{folder}/run", *OURS]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        whole = time.perf_counter() - start
        metrics = json.loads(done.stdout)
        # What is not training, imports and data before it and evaluation after it, is counted before the first epoch.
        spent = whole - metrics["seconds"]
        for row in metrics["history"]:
            spent += row["seconds"]
            print(f"  edgecnn {row['val_accuracy']:.4f} after {spent:.0f} s", flush=True)
            if row["val_accuracy"] >= GOAL:
                return float(spent)
    raise SystemExit("edgecnn never reached the goal")


if __name__ == "__main__":
    main()
