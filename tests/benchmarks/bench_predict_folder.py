"""A folder of 2,000 JPEGs of 640x480: images a second of whole commands, against a plain loop and the decoder's limit."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import demo_bundle, environment, print_machine
from PIL import Image

from edgecnn.bundle import Bundle

COUNT = 2000
ROUNDS = 5

# What anybody would write: one image after the other; argv: model, folder, width, height, mode, threads (0: as it comes).
PLAIN = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
from PIL import Image
model, folder, width, height, mode, threads = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = int(threads)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
for path in sorted(Path(folder).glob("*.jpg")):
    image = Image.open(path).convert(mode).resize((int(width), int(height)), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(1, int(height), int(width), -1)
    probabilities = session.run(["probabilities"], {"image": pixels})[0][0]
    best = np.argsort(-probabilities)[:3]
    print(path, *((index, probabilities[index]) for index in best))
"""

# Pillow alone: decode, and nothing else, in as many threads as may run; argv: folder, threads.
DECODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
def decode(path):
    with Image.open(path) as image:
        image.load()
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(decode, sorted(Path(sys.argv[1]).glob("*.jpg"))))
"""


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs of 640x480 with soft shapes, texture and the noise of a sensor, about 65 kB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        soft, fine = (
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (*cells, 3), dtype=np.uint8)).resize(
                    (640, 480), Image.Resampling.BICUBIC
                ),
                dtype=np.float32,
            )
            for cells in ((12, 16), (120, 160))
        )
        picture = 0.8 * soft + 0.15 * fine + rng.normal(0, 4, (480, 640, 1))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=85)


def sides(bundle: Path, folder: Path, scripts: Path) -> dict[str, list[str]]:
    """Give the commands to compare; arguments after `--` on the command line are added to edgecnn's."""
    opened = Bundle.open(bundle)
    model, cut = opened.artifact(opened.manifest.default_artifact).path, opened.manifest.preprocess
    (scripts / "plain.py").write_text(PLAIN)
    (scripts / "decode.py").write_text(DECODE)
    plain = [sys.executable, str(scripts / "plain.py"), str(model), str(folder), str(cut.width), str(cut.height)]
    mode = "L" if cut.channels == 1 else "RGB"
    predict = [str(Path(sys.executable).with_name("edgecnn")), "predict", str(bundle), str(folder), "--json"]
    threads = len(os.sched_getaffinity(0))
    return {
        "edgecnn": predict,
        "edgecnn --threads 1": [*predict, "--threads", "1"],
        "edgecnn --threads 1 --batch 8": [*predict, "--threads", "1", "--batch", "8"],
        "edgecnn --threads 1 --decode-threads 0": [*predict, "--threads", "1", "--decode-threads", "0"],
        "plain loop": [*plain, mode, "0"],
        "plain loop, one thread": [*plain, mode, "1"],
        "Pillow's decoding alone, 1 thread": [sys.executable, str(scripts / "decode.py"), str(folder), "1"],
        f"Pillow's decoding alone, {threads} threads": [
            sys.executable,
            str(scripts / "decode.py"),
            str(folder),
            str(threads),
        ],
    }


def main() -> None:
    """Time the commands turn and turn about, and print images a second and the ratios of each round to edgecnn's."""
    print_machine()
    bundle = Path(os.environ["EDGECNN_BENCH_BUNDLE"]) if "EDGECNN_BENCH_BUNDLE" in os.environ else demo_bundle()
    count, rounds = (
        int(os.environ.get("EDGECNN_BENCH_IMAGES", COUNT)),
        int(os.environ.get("EDGECNN_BENCH_ROUNDS", ROUNDS)),
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scripts:
        write_photos(Path(folder), count)
        commands = sides(bundle, Path(folder), Path(scripts))
        rates: dict[str, list[float]] = {name: [] for name in commands}
        order = list(commands)
        for _ in range(rounds):
            for name in order:
                start = time.perf_counter()
                subprocess.run(commands[name], check=True, stdout=subprocess.DEVNULL, env=environment())
                rates[name].append(count / (time.perf_counter() - start))
            order.reverse()
    for name, found in rates.items():
        ratio = statistics.median(own / other for own, other in zip(rates["edgecnn"], found, strict=True))
        print(
            f"{name}: {statistics.median(found):.0f} images/s ({min(found):.0f} to {max(found):.0f}), "
            f"edgecnn is {ratio:.2f} times that, over {rounds} rounds of {count} images"
        )


if __name__ == "__main__":
    main()
