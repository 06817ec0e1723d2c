"""What `edgecnn tune` gains over the default settings on three nets, and the time it takes.

The gain is that of the final heats, in sessions loaded afresh after the races; beside it the default against a copy of itself,
which is what chance makes. From outside, the same is measured once more: `Predictor` in a loop, with what `chosen` gives with
and without the profile, each in fresh processes, turn and turn about. Profiles go to a folder that is thrown away. RUNS and
BUNDLES name folders of runs and of bundles that are there already, MODELS_WANTED some of the nets, SECONDS what a tuning may
take, PURPOSES which kinds are measured, ROUNDS how many processes a loop has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import demo_bundle, print_machine
from fashion import bundle_of, bundles_folder

from edgecnn.bundle import Bundle

SECONDS = os.environ.get("SECONDS", "20")
PURPOSES = os.environ.get("PURPOSES", "latency,throughput").split(",")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
NETS = ("resnet8", "edge_s", "digits")
LOOP = """
import sys, time
from pathlib import Path
import numpy as np
from edgecnn.bundle import Bundle
from edgecnn.device.profile import chosen
from edgecnn.predict import Predictor
bundle = Bundle.open(Path(sys.argv[1]))
choice = chosen(bundle, None, None)
batch = choice.batch or 1
pixels = np.resize(bundle.goldens().pixels, (batch, *bundle.manifest.preprocess.shape))
with Predictor(bundle, choice.ref, choice.options) as predictor:
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        predictor.probabilities(pixels)
    taken, end = [], time.perf_counter() + 1
    while time.perf_counter() < end:
        start = time.perf_counter()
        predictor.probabilities(pixels)
        taken.append((time.perf_counter() - start) / batch)
print(float(np.median(taken)) * 1e6)
"""


def main() -> None:
    """Print a row for each net and purpose."""
    print_machine()
    wanted = os.environ.get("MODELS_WANTED", ",".join(NETS)).split(",")
    print(
        f"\ntune --seconds {SECONDS}; time an image over the default's, 95 % interval; loops are medians of {ROUNDS} processes each"
    )
    print(
        "| net | for | chosen | of default's time | default's copy | loop: default us | tuned us | ratio | tried | failed parity | took s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with bundles_folder() as folder, tempfile.TemporaryDirectory() as settings:
        for name in wanted:
            bundle = open_bundle(name, folder)
            if bundle is None:
                print(f"| {name} | skipped: the data are not there; set DATA |")
                continue
            for purpose in PURPOSES:
                print(row(name, purpose, bundle.root, Path(settings) / purpose), flush=True)


def open_bundle(name: str, folder: Path) -> Bundle | None:
    """Open a net's bundle, which may have to be trained first."""
    if (folder / name / "manifest.json").is_file():
        return Bundle.open(folder / name)
    if name == "digits":
        return Bundle.open(demo_bundle())
    found = bundle_of(name, folder)
    return found[0] if found is not None else None


def row(name: str, purpose: str, bundle: Path, settings: Path) -> str:
    """Tune, then time both settings in loops of their own."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(settings)}
    command = [sys.executable, "-m", "edgecnn", "tune", str(bundle), "--for", purpose, "--seconds", SECONDS, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    loops: dict[str, list[float]] = {"default": [], "tuned": []}
    for _ in range(ROUNDS if found["settings"] else 0):
        for side, home in (("default", settings / "none"), ("tuned", settings)):
            loops[side].append(loop(bundle, home))
    chosen = found["settings"]
    written = "the default"
    if chosen:
        level = "" if chosen["optimization"] == "all" else f", {chosen['optimization']}"
        spinning = ", spinning" if chosen["spinning"] else ""
        written = f"{chosen['backend'].partition(':')[2]}, {chosen['threads']} thread(s){spinning}{level}, batch {chosen['batch']}"
    default, tuned = (f"{statistics.median(times):.1f}" if times else "" for times in loops.values())
    ratios = [after / before for before, after in zip(loops["default"], loops["tuned"], strict=True)]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else ""
    failed = sum(entry["verdict"] != "PASS" for entry in found["rows"])
    cells = [name, purpose, written, interval(found["gain"]), interval(found["noise"]), default, tuned, ratio]
    return f"| {' | '.join([*cells, str(len(found['rows'])), str(failed), format(found['taken_seconds'], '.1f')])} |"


def loop(bundle: Path, settings: Path) -> float:
    """Give the median microseconds an image of predictions in a fresh process that finds its profile in `settings`."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(settings), "XDG_CONFIG_DIRS": str(settings)}
    command = [sys.executable, "-c", LOOP, str(bundle)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def interval(found: dict[str, float] | None) -> str:
    """Write an interval, or nothing."""
    return "" if found is None else f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    main()
