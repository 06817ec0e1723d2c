"""A localization as text and as a picture."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgecnn.parity.localize.result import BlockDifference, Figures, Localization
from edgecnn.report.localize import localization_png, localization_text


def block(name: str, alone: float | None, accumulated: float | None, culprit: bool = False) -> BlockDifference:
    """Make a block with these SQNRs in dB."""
    return BlockDifference(
        name=name,
        nodes=(name,),
        kernel="Conv",
        output=f"t_{name}",
        quantized=False,
        alone=size(alone),
        accumulated=size(accumulated),
        expected=1e-7,
        multiple=None if alone is None else 2.0,
        culprit=culprit,
        blame="model file" if culprit else "",
        why="it is wrong" if culprit else "",
    )


def size(db: float | None) -> Figures:
    """Make figures of a tensor of unit size."""
    if db is None:
        return Figures()
    relative = 0.0 if db >= 300 else 10 ** (-db / 20)
    return Figures(rms=relative, max_abs=relative, relative=relative, sqnr_db=db)


def found(*blocks: BlockDifference) -> Localization:
    """Make a localization of blocks."""
    first = next((one for one in blocks if one.culprit), None)
    return Localization(
        candidate="onnxruntime:int8",
        reference="torch in float64",
        images=16,
        first=first,
        blocks=blocks,
        advice=("do this",),
        whole=size(20.0),
        whole_reproduced=True,
        joined=1,
        reason=f"{first.name} is the first" if first else "none is off",
    )


def test_text_shows_the_error_along_the_depth() -> None:
    """Bars grow with the accumulated error, the culprit is marked, and verdict and advice follow."""
    text = localization_text(found(block("stem", 140, 140), block("body", 20, 20, True), block("head", 300, 80)))
    lines = text.splitlines()
    bars = [line.count("#") for line in lines[3:6]]
    assert bars == [round(24 * (1 - db / 160)) for db in (140, 20, 80)]
    assert lines[4].startswith(">")
    assert not lines[3].startswith(">")
    assert "no error" in lines[5]
    assert "first difference: body" in lines
    assert lines[-1] == "- do this"


def test_text_shows_what_cannot_be_compared() -> None:
    """A block without numbers has a bar of its own, and no fault is said as such."""
    assert "!" * 24 in localization_text(found(block("stem", None, None, True)))
    assert "first difference: none" in localization_text(found(block("stem", 140, 140)))


def test_text_says_that_no_verdict_failed() -> None:
    """Where nothing failed the text says so beside the difference that it names."""
    one = found(block("stem", 140, 140), block("body", 20, 20, True))
    quiet = msgspec.structs.replace(one, failed=False)
    assert "first difference: body (no verdict failed)" in localization_text(quiet).splitlines()
    assert "no verdict failed" not in localization_text(one)


@pytest.mark.parametrize(
    "blocks",
    [
        (block("stem", 140, 140), block("body $x$", 20, 20, True), block("head", 300, 80)),
        (block("stem", None, None, True),),
        (block("stem", 300, 300),),
        tuple(block(f"layer {index}", 140 - index, 120 - index) for index in range(60)),
    ],
    ids=["a fault", "no numbers", "no error", "many"],
)
def test_the_picture_can_be_drawn(blocks: tuple[BlockDifference, ...]) -> None:
    """A picture comes out whatever the numbers, with a row of its own for each block."""
    picture = Image.open(io.BytesIO(localization_png(found(*blocks))))
    assert picture.format == "PNG"
    assert picture.height >= 120 * 0.3 * len(blocks)
    assert np.asarray(picture.convert("L")).std() > 0


def test_the_first_fault_is_coloured() -> None:
    """The block at fault has a red band that a clean picture lacks."""

    def red(localization: Localization) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(localization_png(localization))).convert("RGB")).astype(int)
        return int(((pixels[..., 0] > pixels[..., 1] + 25) & (pixels[..., 1] == pixels[..., 2])).sum() + 0)

    clean = red(found(block("a", 140, 140), block("b", 140, 140)))
    faulty = red(found(block("a", 140, 140), block("b", 20, 20, True)))
    assert faulty > clean + 1000
