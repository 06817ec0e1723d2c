"""The bundles that faults are planted into, beside that of the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgecnn.assemble import ExportOptions, export_bundle
from edgecnn.data import DataOptions, open_data
from edgecnn.nets.compact import compact_config
from edgecnn.runs import read_run
from edgecnn.training.recipe import Recipe
from edgecnn.training.run import train

COLOURS = ("red", "green", "blue")


def colour_bundle(
    folder: Path, seed: int = 4, widths: tuple[int, ...] = (8,), exporters: tuple[str, ...] = ("onnx",), epochs: int = 1
) -> Path:
    """Write pictures of 21 x 17 pixels in three tints, train a net of 8 x 8 pixels on them, and return its bundle."""
    rng = np.random.default_rng(seed)
    for number, colour in enumerate(COLOURS):
        (folder / "pictures" / colour).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 90, (17, 21, 3)) + 150 * np.eye(3)[number]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / colour / f"{index:02}.png")
    options = DataOptions(size=8)
    dataset = open_data(str(folder / "pictures"), options)
    run, out = folder / "run", folder / "bundle"
    train(dataset, options, run, compact_config(widths, depth=1), Recipe(epochs=epochs), "cpu", lambda epoch: None)
    export_bundle(run, *read_run(run), dataset, out, ExportOptions(exporters=exporters, max_drop=0.3))
    return out


def digits_bundle(folder: Path) -> Path:
    """Train a net of two convolutions on scikit-learn's digits, and return its bundle with fp32 and int8."""
    options = DataOptions()
    dataset = open_data("digits", options)
    run, out = folder / "run", folder / "bundle"
    train(dataset, options, run, compact_config((8, 16), depth=1), Recipe(epochs=12), "cpu", lambda epoch: None)
    export_bundle(run, *read_run(run), dataset, out, ExportOptions(max_drop=0.2))
    return out
