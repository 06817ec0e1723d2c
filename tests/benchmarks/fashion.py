"""Bundles of nets trained on Fashion-MNIST, exported where there is none yet: what parity is measured on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench_quantization import DATA, NETS, RUNS, TRAINING

from edgecnn.bundle import Bundle
from edgecnn.data.dataset import LabelledImages
from edgecnn.data.of_bundle import find_test_images


@contextmanager
def bundles_folder() -> Iterator[Path]:
    """Give the folder that BUNDLES names, where bundles are kept for the next run, else one that goes away."""
    if "BUNDLES" in os.environ:
        folder = Path(os.environ["BUNDLES"])
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def bundle_of(name: str, folder: Path) -> tuple[Bundle, LabelledImages] | None:
    """Open the bundle of a net and its 10,000 test images; trained and exported first, None without the data."""
    if not DATA.is_dir():
        return None
    run, out, edgecnn = RUNS / f"q-{name}", folder / name, [sys.executable, "-m", "edgecnn"]
    if not (run / "metrics.json").exists():
        _quietly([*edgecnn, "train", str(DATA), "-o", str(run), *NETS[name], *TRAINING])
    if not out.exists():
        # What does not pay is written too: whether int8 is worth having is another benchmark's question.
        _quietly([*edgecnn, "export", str(run), "-o", str(out), "--data", str(DATA), "--target", "any", "--force"])
    bundle = Bundle.open(out)
    images, note = find_test_images(bundle.manifest, str(DATA))
    if images is None or note:
        raise SystemExit(f"{out}: {note}")
    return bundle, images


def first(images: LabelledImages, count: int) -> LabelledImages:
    """Take the first images; the test files are in random order."""
    return images if count >= len(images) else images.subset(np.arange(count, dtype=np.int64))


def _quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
