"""Peak memory of image files as their number grows, streamed and not: taken once, and in a whole training.

The largest set is also given a limit that its pixels do not fit into: of address space where the files are only taken, of
data (`ulimit -d`: heap and private memory) where torch trains on them, which maps gigabytes that it never touches.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import print_machine
from PIL import Image

COUNTS = (5_000, 10_000, 20_000)
SIDE, CLASSES, BATCH = 96, 10, 64
TRAIN_LIMIT_KB = 900_000  # of data, for a training: as much again would be needed for the pixels
LIMIT_KB = 700_000  # of address space: enough for any number of streamed files, too little for 20,000 in memory


def make_files(root: Path, count: int) -> None:
    """Write `count` different colour JPEGs into class folders: soft noise, so that they compress like photographs."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = root / f"class{index % CLASSES}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=85)


def peak_kb() -> int:
    """Read this process's peak memory; what getrusage says may be the parent's, from before exec."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) if found else 0


def child(root: str, stream: bool) -> None:
    """Open one set, take every training image once in batches of a shuffled order, and print what it took."""
    from edgecnn.data import DataOptions, open_data

    before = peak_kb()
    start = time.perf_counter()
    train = open_data(root, DataOptions(stream=stream)).train
    opened = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(train))
    total = sum(int(train.take(order[at : at + BATCH]).sum()) for at in range(0, len(order), BATCH))
    done = time.perf_counter()
    peak = peak_kb()
    print(
        json.dumps(
            {
                "before": before,
                "peak": peak,
                "open": opened - start,
                "epoch": (done - opened) / len(train),
                "sum": total,
            }
        )
    )


def train_child(root: str, stream: bool) -> None:
    """Train for an epoch as a user does, and print the peak of that process, which is far above this one's."""
    with tempfile.TemporaryDirectory() as out:
        words = ["-o", f"{out}/run", "--size", "n", "--epochs", "1", "--stream" if stream else "--no-stream"]
        subprocess.run([sys.executable, "-m", "edgecnn", "train", root, *words], check=True, stdout=sys.stderr)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))


def measure_training(root: Path, stream: bool, limit_kb: int | None = None) -> float | None:
    """Run `train_child` in a process of its own and give its peak in MB; None where it did not survive its limit."""
    command = [sys.executable, __file__, str(root), "stream" if stream else "memory", "train"]
    if limit_kb:
        command = ["bash", "-c", f'ulimit -d {limit_kb}; exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1][:200]}")
        return None
    return float(json.loads(done.stdout.splitlines()[-1])["peak"]) / 1024


def measure(root: Path, stream: bool, limit_kb: int | None = None) -> dict[str, float] | None:
    """Run `child` in a process of its own; None where it did not survive its limit."""
    command = [sys.executable, __file__, str(root), "stream" if stream else "memory"]
    if limit_kb:
        command = ["bash", "-c", f'ulimit -v {limit_kb}; exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, float] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def main() -> None:
    """Measure growing sets both ways, and the largest under a limit that its pixels do not fit into."""
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            root = Path(folder) / str(count)
            make_files(root, count)
            ways = {name: measure(root, name == "streamed") for name in ("streamed", "in memory")}
            sums = {found["sum"] for found in ways.values() if found}
            for name, found in ways.items():
                if found:
                    print(
                        f"{count} files of {SIDE}x{SIDE}x3, {name}: peak {found['peak'] / 1024:.0f} MB "
                        f"({found['before'] / 1024:.0f} before opening), opened in {found['open']:.1f} s, "
                        f"then {found['epoch'] * 1e6:.0f} us an image"
                    )
            print(f"  the same pixels both ways: {len(sums) == 1}")
        for name in ("streamed", "in memory"):
            found = measure(Path(folder) / str(COUNTS[-1]), name == "streamed", LIMIT_KB)
            what = f"finished, peak {found['peak'] / 1024:.0f} MB" if found else "did not survive"
            print(f"{COUNTS[-1]} files under ulimit -v {LIMIT_KB // 1000} MB, {name}: {what}")
        peaks = {count: measure_training(Path(folder) / str(count), True) for count in COUNTS}
        for count, peak in peaks.items():
            print(f"training on {count} files, streamed: peak {peak or 0:.0f} MB", flush=True)
        held = measure_training(Path(folder) / str(COUNTS[-1]), False)
        print(f"training on {COUNTS[-1]} files, in memory: peak {held or 0:.0f} MB", flush=True)
        limit = int(os.environ.get("TRAIN_LIMIT_KB", TRAIN_LIMIT_KB))
        for name in ("streamed", "in memory"):
            peak = measure_training(Path(folder) / str(COUNTS[-1]), name == "streamed", limit)
            what = f"finished, peak {peak:.0f} MB" if peak else "did not survive"
            print(f"training on {COUNTS[-1]} files under ulimit -d {limit // 1000} MB, {name}: {what}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        (train_child if sys.argv[3:] else child)(sys.argv[1], sys.argv[2] == "stream")
    else:
        main()
