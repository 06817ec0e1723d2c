"""`edgecnn quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import existing, json_option, max_drop_option, print_json, say
from edgecnn.cli.quantize_options import input_options, make_input_options
from edgecnn.spec import TARGETS


@click.command("quantize")
@click.argument("model", type=existing)
@click.option("--calibrate", metavar="DATA", required=True, help="Images for the ranges: a labelled source as for `train`, a folder of pictures, or of .npz feeds.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="ONNX file to write; the report goes beside it.")  # fmt: skip
@click.option("--evaluate", metavar="DATA", help="Images to judge by.  [default: the test split, or the pictures left]")
@click.option("--target", type=click.Choice(["host", *TARGETS]), default="host", show_default=True, help="What the file is made for.")  # fmt: skip
@click.option("--precision", type=click.Choice(["int8", "fp16", "mixed"]), help="int8 is every layer, mixed leaves in float what pays.  [default: mixed; fp16 for cuda]")  # fmt: skip
@max_drop_option("1.0", "1.0")
@click.option("--images", type=click.IntRange(1), default=256, show_default=True, help="Images to calibrate on.")
@click.option("--qat-epochs", type=click.IntRange(0), default=2, show_default=True, help="Of training under rounding, the last rung; 0 leaves it out.")  # fmt: skip
@click.option("--stop-after", metavar="RUNG", help="End the ladder there, for example min-max.")
@click.option("--restart", is_flag=True, help="Forget what an earlier, stopped run has climbed.")
@click.option("--force", is_flag=True, help="Write the file although it was refused, with the reasons in it.")
@input_options
@json_option
def command(
    model: Path, out: Path, calibrate: str, evaluate: str | None, target: str, precision: Any, max_drop: float,
    as_json: bool, force: bool, **options: Any,
) -> None:  # fmt: skip
    """Quantize MODEL, any float ONNX CNN, and refuse where that does not pay.

    Which layers stay in float is searched by measuring. Where accuracy falls out of the budget, remedies are tried one
    after another: other ranges, equalization, bias correction, more layers in float, training under rounding. Ctrl-C
    stops, and the same command goes on. A file that is less accurate than allowed, not faster than float where the
    target is this machine, or not smaller is not written, and the exit code is 3.

    \b
    Example:
      edgecnn quantize photos.onnx --calibrate photos/ -o photos.int8.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """  # fmt: skip
    from edgecnn.quantization import require

    require()
    from edgecnn.quantization.recipe import precision_for, resolve_target
    from edgecnn.quantization.run import QuantizeOptions, quantize_model
    from edgecnn.quantization.source import read_source
    from edgecnn.quantization.sources import open_feeds
    from edgecnn.quantization.write import report_folder, write_model, write_report
    from edgecnn.report.quantization import quantization_text, write_quantization_page
    from edgecnn.spec import Tolerance

    inputs, chosen = make_input_options(options), resolve_target(target)
    precision_for(chosen, precision)  # a mistake in the words is said before anything is read
    source = read_source(model)
    for change in source.changes:
        say(change)
    given = open_feeds(calibrate, evaluate, source.model, inputs, options["images"], options["seed"])
    for line in given.skipped:
        say(f"skipped: {line}")
    say(given.statement)
    wanted = QuantizeOptions(
        target=chosen, precision=precision, tolerance=Tolerance(max_drop=max_drop),
        qat_epochs=options["qat_epochs"], stop_after=options["stop_after"],
    )  # fmt: skip
    folder = report_folder(out)
    if options["restart"]:
        (folder / "ladder.json").unlink(missing_ok=True)
    quantized, report = quantize_model(
        source, given.calibration, given.evaluation, wanted, train=given.train, folder=folder, say=say
    )
    write_report(out, report, force)
    write_quantization_page(folder, report)
    if as_json:
        print_json(report)
    else:
        click.echo(quantization_text(report))
    write_model(out, quantized, report, force)
    if not as_json:
        click.echo(f"written        {out}; {folder}/: report.html, report.json")
