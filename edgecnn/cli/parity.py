"""`edgecnn parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import backend_type, candidates_option, existing, json_option, max_drop_option, print_json, say
from edgecnn.cli.parity_options import check_replay, output_options
from edgecnn.cli.parity_run import ran, replayed


@click.command("parity")
@click.argument("subject", type=existing, required=False, metavar="BUNDLE|MODEL.onnx")
@click.option(
    "-r",
    "--reference",
    type=backend_type,
    help="What the candidates are compared with.  [default: torch where installed, else the goldens; of MODEL.onnx its graph in float64]",
)
@candidates_option("What is compared; may be repeated, and name another .onnx file.  [default: onnxruntime with every ONNX artifact]")  # fmt: skip
@max_drop_option(None, "the bundle's own, or 1")
@output_options
@json_option
def command(
    subject: Path | None, max_drop: float | None, noise_multiple: float | None, as_json: bool, **asked: Any
) -> None:
    """Check that backends agree on BUNDLE or MODEL.onnx: the same computation, and the same decisions.

    The first question is asked against the model in float64, in units of torch float32's own error; the second on
    labelled test images, paired, and passes only when the drop is shown to be within the budget. Without a data set
    the goldens in the bundle answer the first. Besides: whether candidates answer the same when asked again, one image at a
    time, and with other threads. Exit code 3 unless all that was measured passes.

    \b
    Examples:
      edgecnn parity bundles/photos -r torch -c onnxruntime:int8
      edgecnn parity model.onnx -c openvino -c onnxruntime:model.int8.onnx --data images/
      edgecnn parity --replay box.evidence --max-drop 0.5
    """  # fmt: skip
    from edgecnn.errors import VerdictError
    from edgecnn.parity import Verdict
    from edgecnn.report.parity_output import whole_json, whole_text, write_files

    check_replay(subject, asked)
    changes = {"max_drop": max_drop, "noise_multiple": noise_multiple}
    if asked["replay"] is not None:
        report, recording, located = replayed(asked["replay"], subject, changes)
    else:
        report, recording, located = ran(subject or Path(), asked, changes)
    if as_json:
        print_json(report if not asked["localize"] else whole_json(report, located))
    else:
        click.echo(whole_text(report, located))
    for path in write_files(report, recording, located, asked["html"], asked["junit"]):
        say(f"edgecnn: wrote {path}")
    if report.verdict is not Verdict.PASS:
        raise VerdictError(f"parity of {report.bundle}: {report.verdict.value}")
