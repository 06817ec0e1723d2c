"""The page's own pixels against Pillow's: the same bytes in, the same bytes out, in Node and without a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.images import Pixels
from edgecnn.serving.page import FOLDER, resizes_columns_first
from edgecnn.spec import Preprocess

SIZES = ((1, 1), (3, 200), (200, 3), (8, 8), (9, 7), (64, 48), (33, 90), (280, 280), (400, 301), (31, 32))
TARGETS = ((8, 8), (28, 28), (31, 17), (5, 40), (1, 1))
FIT = """
import { readFileSync, writeFileSync } from 'node:fs';
const [, , page, folder, columnsFirst] = process.argv;
const { encodePpm, fit } = await import(`${page}/pixels.mjs`);
for (const [index, { width, height, preprocess }] of JSON.parse(readFileSync(`${folder}/cases.json`)).entries()) {
  const rgba = new Uint8Array(readFileSync(`${folder}/${index}.rgba`));
  const pixels = fit(rgba, width, height, preprocess, columnsFirst === 'yes');
  writeFileSync(`${folder}/${index}.pixels`, pixels);
  writeFileSync(`${folder}/${index}.ppm`, new Uint8Array(await encodePpm(pixels, preprocess).arrayBuffer()));
}
"""
COMPARE = """
const { compare } = await import(`${process.argv[2]}/compare.mjs`);
const [server, browser, again] = JSON.parse(process.argv[3]);
let asked = 0;
const { agree, text } = await compare(server, browser, async () => { asked += 1; return again; });
console.log(JSON.stringify({ agree, text, asked }));
"""


def node(script: str, *arguments: str, folder: Path) -> str:
    """Run a module in Node and return what it prints; without Node the test skips, and fails with CI set."""
    if shutil.which("node") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("node is not on the PATH")
    file = folder / "script.mjs"
    file.write_text(script)
    done = subprocess.run(["node", file, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def planted(generator: np.random.Generator, width: int, height: int, kind: str) -> Pixels:
    """Draw RGBA (H, W, 4) that is noise, only black and white, or noise without transparency."""
    rgba = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if kind == "opaque":
        rgba[..., 3] = 255
    return np.where(rgba > 127, 255, 0).astype(np.uint8) if kind == "extreme" else rgba


def cases() -> list[tuple[Pixels, Preprocess]]:
    """Pair every size of image with one size, fit, number of channels and background, all of which occur."""
    generator = np.random.default_rng(11)
    made = []
    for index in range(150):
        width, height = SIZES[index % len(SIZES)]
        wide, high = TARGETS[index % len(TARGETS)] if index % 3 else (width, high_of(height, index))
        fit: Any = ("stretch", "crop", "pad")[index // 2 % 3]
        channels: Any = 1 if index % 2 else 3
        background = int(generator.integers(0, 256))
        kind = ("noise", "opaque", "extreme")[index // 7 % 3]
        preprocess = Preprocess(height=high, width=wide, channels=channels, fit=fit, background=background)
        made.append((planted(generator, width, height, kind), preprocess))
    return made


def high_of(height: int, index: int) -> int:
    """Choose a height that leaves one of the two passes nothing to do in some cases."""
    return height if index % 2 else max(1, height // 3)


def fitted(made: list[tuple[Pixels, Preprocess]], columns_first: bool, folder: Path) -> list[tuple[Pixels, bytes]]:
    """Give what Node makes of each case: pixels (H, W, C), and the same as a file."""
    listed = []
    for index, (rgba, preprocess) in enumerate(made):
        (folder / f"{index}.rgba").write_bytes(rgba.tobytes())
        height, width = rgba.shape[:2]
        listed.append({"width": width, "height": height, "preprocess": msgspec.to_builtins(preprocess)})
    (folder / "cases.json").write_text(json.dumps(listed))
    node(FIT, str(FOLDER), str(folder), "yes" if columns_first else "no", folder=folder)
    return [
        (
            np.frombuffer((folder / f"{index}.pixels").read_bytes(), np.uint8).reshape(preprocess.shape),
            (folder / f"{index}.ppm").read_bytes(),
        )
        for index, (_, preprocess) in enumerate(made)
    ]


def test_pixels_are_those_of_pillow_to_the_bit(tmp_path: Path) -> None:
    """Of planted images of every shape, fit, transparency and channel count, the script makes Pillow's bytes."""
    made = cases()
    assert {preprocess.fit for _, preprocess in made} == {"stretch", "crop", "pad"}
    for (rgba, preprocess), (pixels, _) in zip(made, fitted(made, resizes_columns_first(), tmp_path), strict=True):
        expected = images.fit(Image.fromarray(rgba), preprocess)
        np.testing.assert_array_equal(pixels, expected, err_msg=f"{rgba.shape} to {preprocess}")


def test_the_order_of_the_two_passes_is_seen(tmp_path: Path) -> None:
    """With the order of another version of Pillow some pixels differ, by one grey level, so the order is tested too."""
    made = cases()
    off = [
        np.abs(pixels.astype(int) - images.fit(Image.fromarray(rgba), preprocess)).max()
        for (rgba, preprocess), (pixels, _) in zip(
            made, fitted(made, not resizes_columns_first(), tmp_path), strict=True
        )
    ]
    assert 1 <= max(off) <= 2
    assert 0 < sum(one > 0 for one in off) < len(made)


def test_pixels_written_as_a_file_are_read_back_as_they_are(tmp_path: Path) -> None:
    """The file that the page sends of its pixels is decoded here without a change, in grey and in colour."""
    made = cases()[:12]
    assert {preprocess.channels for _, preprocess in made} == {1, 3}
    for (_, preprocess), (pixels, file) in zip(made, fitted(made, True, tmp_path), strict=True):
        np.testing.assert_array_equal(images.decode(file, preprocess), pixels)


def said(label: str, *probabilities: float) -> dict[str, Any]:
    top = [{"label": str(index), "probability": value} for index, value in enumerate(probabilities)]
    return {"label": label, "top": sorted(top, key=lambda guess: -float(str(guess["probability"])))}


@pytest.mark.parametrize(
    ("answers", "agree", "asked", "text"),
    [
        ((said("0", 0.75, 0.25), said("0", 0.75, 0.25), None), True, 0, "They agree: 0. Every probability is the same to the bit."),
        ((said("0", 0.75, 0.25), said("0", 0.5, 0.5), said("0", 0.75, 0.25)), True, 1,
         "They agree: 0. Probabilities differ by at most 2.5e−1. Both had the same pixels."),
        ((said("0", 0.75, 0.25), said("1", 0.25, 0.75), said("1", 0.25, 0.75)), False, 1,
         "They disagree: the server says 0, this browser 1. Probabilities differ by at most 5.0e−1. "
         "They decode the image differently: on this browser's pixels no difference is left."),
        ((said("0", 0.75, 0.25), said("unknown", 0.25, 0.75), said("0", 0.5, 0.5)), False, 1,
         "They disagree: the server says 0, this browser unknown. Probabilities differ by at most 5.0e−1. "
         "They decode the image differently: on this browser's pixels 2.5e−1 is left."),
    ],
    ids=["equal", "rounding", "decoding", "both"],
)  # fmt: skip
def test_a_difference_has_its_cause(
    answers: tuple[Any, ...], agree: bool, asked: int, text: str, tmp_path: Path
) -> None:
    """Planted answers are said to agree or not, with the largest difference, and with the decoder or the model as its cause."""
    found = json.loads(node(COMPARE, str(FOLDER), json.dumps(answers), folder=tmp_path))
    assert found == {"agree": agree, "text": text, "asked": asked}
