"""`edgecnn inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import existing, json_option, print_json
from edgecnn.errors import UsageError


@click.command("inspect")
@click.argument("path", type=existing, metavar="RUN|BUNDLE|MODEL.onnx")
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what a run folder, a bundle (or its zip) or any ONNX file holds.

    A bundle's files are all compared with their hashes.

    \b
    Examples:
      edgecnn inspect bundles/photos
      edgecnn inspect somebody_elses.onnx
    """
    from edgecnn.manifest import MANIFEST
    from edgecnn.report.text import table
    from edgecnn.runs import CHECKPOINT, CONFIG

    if path.suffix == ".onnx":
        from edgecnn.inspection import inspect_onnx as look
    elif (path / MANIFEST).is_file() or path.suffix == ".zip":
        from edgecnn.inspection import inspect_bundle as look
    elif (path / CONFIG).is_file() or (path / CHECKPOINT).is_file():
        from edgecnn.inspection import inspect_run as look
    else:
        raise UsageError(f"{path}: neither a run folder, nor a bundle, nor an .onnx file")
    try:
        found: dict[str, Any] = look(path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}: what was measured of it cannot be read ({type(error).__name__}: {error})") from error
    if as_json:
        print_json(found)
        return
    click.echo(table([[name, _written(value)] for name, value in found.items()]))


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
