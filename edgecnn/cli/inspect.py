"""`edgecnn inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import existing, json_option, print_json
from edgecnn.errors import UsageError

_TOP = 5  # labels in the text; --json has all


@click.command("inspect")
@click.argument("path", type=existing, metavar="RUN|BUNDLE|MODEL.onnx")
@click.option(
    "--features",
    "image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="IMAGE",
    help="Show what the net makes of this image: its filters, feature maps, and where it looked. Needs torch and -o.",
)
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="PAGE.html", help="Page for --features."
)
@json_option
def command(path: Path, image: Path | None, out: Path | None, as_json: bool) -> None:
    """Show what a run folder, a bundle (or its zip) or any ONNX file holds.

    Of a run the layers are listed too: what each gives, what it costs, and how wide a part of the image it sees. A bundle's files are all compared with their hashes. With --features, what the net of a run folder or a bundle has
    learned to see is written as one page: from strokes and edges in the first layer to parts in the last.

    \b
    Examples:
      edgecnn inspect bundles/photos
      edgecnn inspect somebody_elses.onnx
      edgecnn inspect runs/photos --features one.png -o page.html
    """
    if (image is None) != (out is None):
        raise UsageError("--features IMAGE and -o PAGE.html go together: give both or neither")
    from edgecnn.inspection import inspect_any, inspect_features

    found = inspect_features(path, image, out) if image and out else inspect_any(path)
    if as_json:
        print_json(found)
        return
    if "probabilities" in found:
        found["probabilities"] = dict(list(found["probabilities"].items())[:_TOP])
    from edgecnn.report.layers import layers_text
    from edgecnn.report.text import table

    layers = found.pop("layers", None)
    click.echo(table([[name, _written(value)] for name, value in found.items()]))
    if layers:
        click.echo(f"\n{layers_text(layers)}")


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
