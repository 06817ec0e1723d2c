"""`edgecnn inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import existing, json_option, print_json
from edgecnn.errors import UsageError

if TYPE_CHECKING:
    from edgecnn.training.checkpoint import Checkpoint

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

    A bundle's files are all compared with their hashes. With --features, what the net of a run folder or a bundle has
    learned to see is written as one page: from strokes and edges in the first layer to parts in the last.

    \b
    Examples:
      edgecnn inspect bundles/photos
      edgecnn inspect somebody_elses.onnx
      edgecnn inspect runs/photos --features one.png -o page.html
    """
    if (image is None) != (out is None):
        raise UsageError("--features IMAGE and -o PAGE.html go together: give both or neither")
    found = _features(path, image, out) if image and out else _contents(path)
    if as_json:
        print_json(found)
        return
    if "probabilities" in found:
        found["probabilities"] = dict(list(found["probabilities"].items())[:_TOP])
    from edgecnn.report.text import table

    click.echo(table([[name, _written(value)] for name, value in found.items()]))


def _contents(path: Path) -> dict[str, Any]:
    from edgecnn.manifest import MANIFEST

    if path.suffix == ".onnx":
        from edgecnn.inspection import inspect_onnx as look
    elif (path / MANIFEST).is_file() or path.suffix == ".zip":
        from edgecnn.inspection import inspect_bundle as look
    elif _is_run(path):
        from edgecnn.inspection import inspect_run as look
    else:
        raise UsageError(f"{path}: neither a run folder, nor a bundle, nor an .onnx file")
    try:
        return look(path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}: what was measured of it cannot be read ({type(error).__name__}: {error})") from error


def _features(path: Path, image: Path, out: Path) -> dict[str, Any]:
    """Write the page and give what it says in numbers."""
    from edgecnn import images
    from edgecnn.files import write_atomic
    from edgecnn.predict import printable
    from edgecnn.report.features import features_page

    if out.exists() and out.samefile(image):
        raise UsageError(f"{out}: the page would replace the image; give -o another name")
    checkpoint = _checkpoint(path)
    from edgecnn.nets.features import look  # torch, which _checkpoint has made sure of

    pixels = images.load(image, checkpoint.preprocess)
    features = look(checkpoint.build(), checkpoint.preprocess, pixels)
    write_atomic(out, features_page(features, pixels, checkpoint.labels, path.resolve().name, image.name).encode())
    answers = sorted(zip(features.probabilities.tolist(), checkpoint.labels, strict=True), key=lambda pair: -pair[0])
    return {
        "image": printable(image),
        "answer": answers[0][1],
        "probabilities": {label: probability for probability, label in answers},
        "page": printable(out),
    }


def _checkpoint(path: Path) -> Checkpoint:
    """Read the torch checkpoint of a run folder or a bundle."""
    from edgecnn import registry
    from edgecnn.bundle import Bundle
    from edgecnn.manifest import MANIFEST
    from edgecnn.predict import artifact_for
    from edgecnn.spec import BackendRef

    bundle = (path / MANIFEST).is_file() or path.suffix == ".zip"
    if not (bundle or _is_run(path)):
        raise UsageError(f"{path}: --features needs torch weights: give a run folder or a bundle")
    torch = registry.get(registry.BACKENDS, "torch")  # says what to install where torch is missing
    from edgecnn.training.checkpoint import load_checkpoint, parse_checkpoint

    if not bundle:
        return load_checkpoint(path)
    opened = Bundle.open(path)  # a zip is unpacked for as long as this lives
    artifact = artifact_for(opened, BackendRef(backend="torch"), torch)
    return parse_checkpoint(artifact.read_bytes(), str(artifact.path))


def _is_run(path: Path) -> bool:
    from edgecnn.runs import CHECKPOINT, CONFIG

    return (path / CONFIG).is_file() or (path / CHECKPOINT).is_file()


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
