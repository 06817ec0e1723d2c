"""`edgecnn sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import existing, json_option, print_json, say
from edgecnn.cli.quantize_options import input_options, make_input_options
from edgecnn.spec import TARGETS

_INT8 = [target for target in TARGETS if target != "cuda"]


@click.command("sensitivity")
@click.argument("model", type=existing)
@click.option("--calibrate", metavar="DATA", required=True, help="Images for the ranges, as for `quantize`.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Page with pictures (.html) to write.")  # fmt: skip
@click.option("--target", type=click.Choice(["host", *_INT8]), default="host", show_default=True, help="Whose number types to use.")  # fmt: skip
@click.option("--method", type=click.Choice(["min-max", "entropy", "percentile", "mse"]), default="min-max", show_default=True, help="How ranges are chosen.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="Images to calibrate on.")
@input_options
@json_option
def command(
    model: Path, calibrate: str, out: Path | None, target: str, method: Any, images: int, as_json: bool, **options: Any
) -> None:
    """Show what int8 costs MODEL, any float ONNX CNN, layer by layer.

    Each layer is quantized alone, and each is alone left in float, with the error of the answers measured both times; with its
    ranges, what of them is clipped, how far its channels differ, and what saturates on x86 without VNNI. Names the layers
    worth keeping in float, and why.

    \b
    Example:
      edgecnn sensitivity photos.onnx --calibrate photos/ -o sensitivity.html
    """  # fmt: skip
    from edgecnn.quantization import require

    require()
    from edgecnn.files import write_atomic
    from edgecnn.quantization.recipe import recipe_for, resolve_target
    from edgecnn.quantization.sensitivity import sensitivity
    from edgecnn.quantization.source import read_source
    from edgecnn.quantization.sources import calibration_feeds
    from edgecnn.report.sensitivity import sensitivity_page, sensitivity_text

    source = read_source(model)
    feeds = calibration_feeds(calibrate, source.model, make_input_options(options), images, options["seed"])
    for line in feeds.skipped:
        say(f"skipped: {line}")
    found = sensitivity(source.model, feeds, recipe_for(resolve_target(target)), method, say)
    if out is not None:
        write_atomic(out, sensitivity_page(found, model.name).encode())
        say(f"written {out}")
    if as_json:
        print_json(found)
    else:
        click.echo(sensitivity_text(found))
