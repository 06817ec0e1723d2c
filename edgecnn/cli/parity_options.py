"""The options of `edgecnn parity`: what is fed, what is let pass, what is written, and which go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import Decorated
from edgecnn.cli.quantize_options import input_options

_FILE = click.Path(dir_okay=False, path_type=Path)
_HERE = click.Path(exists=True, dir_okay=False, path_type=Path)
INPUT = ("input_name", "layout", "mean", "std", "scale", "order", "size", "fit")


def output_options(command: Decorated) -> Decorated:
    """Add what is fed, what is let pass, and what is written."""
    added = (
        click.option("--data", help="Images: a labelled source as for `train`; for MODEL.onnx also a folder of pictures or of .npz feeds.  [default: where the bundle's came from]"),
        click.option("--random", type=click.IntRange(1), metavar="N", help="Run N random inputs instead; they have no labels.  [default for MODEL.onnx: 64]"),
        click.option("--noise-multiple", type=click.FloatRange(0, 1e4, min_open=True, max_open=True), metavar="X", help="Times torch float32's own error that a float32 backend may make.  [default: 10, or the bundle's own]"),
        click.option("--html", type=_FILE, help="Write the report as one page, with the images that were answered otherwise."),
        click.option("--junit", type=_FILE, help="Write the verdicts as JUnit XML, for CI."),
        click.option("--keep", type=_FILE, help="Keep every answer in this file, to be judged again."),
        click.option("--replay", type=_HERE, metavar="FILE", help="Judge what --keep wrote; with a second FILE, that one's answers against this one's."),
        click.option("--localize", is_flag=True, help="Find the first block of each ONNX candidate that differs as rounding does not explain, whether it failed or not."),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return input_options(command)


def check_replay(place: Path | None, asked: dict[str, Any]) -> None:
    """Hold the two ways of calling apart: something to run, or a recording.

    Raises:
        click.UsageError: there is neither, or an option would do nothing.
    """
    if asked["replay"] is None:
        if place is None:
            raise click.UsageError("name a BUNDLE or MODEL.onnx, or give --replay FILE")
        return
    pointless = ("reference", "candidates", "data", "random", "keep", "localize", *INPUT)
    given = [name for name in pointless if asked.get(name) not in (None, (), False, "auto")]
    if given:
        name = {"candidates": "candidate", "input_name": "input"}.get(given[0], given[0])
        raise click.UsageError(f"--{name} would do nothing: --replay judges what was recorded, and runs nothing")
    if place is not None and place.is_dir():
        raise click.UsageError(f"--replay takes one recording or two, and {place} is a folder")
