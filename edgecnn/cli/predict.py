"""`edgecnn predict`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgecnn.cli.options import backend_type, existing, print_json, say
from edgecnn.spec import BackendRef


@click.command("predict")
@click.argument("bundle", type=existing)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER|-...")
@click.option(
    "-b",
    "--backend",
    type=backend_type,
    default="onnxruntime",
    show_default=True,
    help="What runs it; without :ARTIFACT the bundle's default.",
)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Labels to show, likeliest first.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Images a run.")
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of the backend.  [default: all that this process may use]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line (JSON Lines).")
def command(
    bundle: Path, images: tuple[str, ...], backend: BackendRef, top: int, batch: int, threads: int | None, as_json: bool
) -> None:
    """Predict the labels of images with BUNDLE.

    `-` reads paths from stdin, one a line. A bad image is one line on stderr; the others are still answered, and the
    exit code is 2 at the end.

    \b
    Examples:
      edgecnn predict bundles/photos one.png folder/
      find /data -name '*.jpg' | edgecnn predict bundles/photos --json -
    """  # fmt: skip
    from edgecnn.backends.base import SessionOptions
    from edgecnn.bundle import Bundle
    from edgecnn.predict import Predictor, find_images

    bad = answered = 0
    paths = find_images(images, sys.stdin)
    with Predictor(Bundle.open(bundle), backend, SessionOptions(threads=threads)) as predictor:
        for prediction in predictor.predict(paths, batch, top):
            if prediction.error:
                bad += 1
                say(f"edgecnn: {prediction.error}")
            else:
                answered += 1
            if as_json:
                print_json(prediction, indent=0)
            elif not prediction.error:
                guesses = "  ".join(f"{guess.label} {guess.probability:.4f}" for guess in prediction.top)
                click.echo(f"{prediction.path}\t{guesses}")
    if bad or not answered:
        say(f"edgecnn: {answered} images answered, {bad} bad" if bad else "edgecnn: no images were given")
        click.get_current_context().exit(2)
