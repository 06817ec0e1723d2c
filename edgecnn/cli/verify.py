"""`edgecnn verify`."""

from __future__ import annotations

from pathlib import Path

import click

from edgecnn.cli.options import (
    FiniteRange,
    backend_type,
    existing,
    json_option,
    key_option,
    print_json,
    refuse_inside,
    say,
)
from edgecnn.spec import BackendRef


@click.command("verify")
@click.argument("bundle", type=existing)
@key_option
@click.option(
    "-b",
    "--backend",
    "backends",
    type=backend_type,
    multiple=True,
    help="What runs it; may be repeated. Without :ARTIFACT every one that it reads.  [default: onnxruntime on the CPU and each usable device]",
)
@click.option("--seconds", type=FiniteRange(0.1, 60), default=1.0, show_default=True, help="Of timing each artifact.")  # fmt: skip
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON report to this file, too."
)
@json_option
def command(
    bundle: Path, key: Path | None, backends: tuple[BackendRef, ...], seconds: float, report: Path | None, as_json: bool
) -> None:
    """Verify BUNDLE on the machine it is to run on.

    Every file is hashed, and with --key the signature is checked. Runtime, CPU and decoder are compared with those of
    the export, every artifact answers the goldens, its int8 kernels are counted, saturation is judged for this CPU, and
    reduced precision is timed against fp32 in turns: what export could not measure for another target is measured here.
    Needs neither torch nor data. Exit code 3 where an artifact must not be used here, or the signature is not good.

    The JSON report holds every answer: `edgecnn parity --replay` judges it again, or against another machine's.

    \b
    Examples:
      edgecnn verify bundles/photos
      edgecnn verify bundles/photos --key release.pub.pem --report box.json
      edgecnn parity --replay workstation.json box.json
    """  # fmt: skip
    from edgecnn.bundle import Bundle
    from edgecnn.device.verify import verify_bundle
    from edgecnn.errors import VerdictError
    from edgecnn.files import write_atomic
    from edgecnn.parity import Verdict
    from edgecnn.report.verify import verify_text
    from edgecnn.spec import to_json

    refuse_inside(bundle, report, "--report")
    found = verify_bundle(Bundle.open(bundle, key), seconds, backends, say)
    if as_json:
        print_json(found)
    else:
        click.echo(verify_text(found))
    refusal = None
    if found.refused:
        refusal = f"{found.bundle}: must not be used here: {', '.join(found.refused)}"
    elif found.decoding is Verdict.FAIL:
        refusal = f"{found.bundle}: images are decoded otherwise here: {found.decoding_reason}"
    try:
        if report is not None:
            write_atomic(report, to_json(found))
    except OSError as error:  # after what was found is told, and no reason to forget the verdict
        if refusal is None:
            raise
        say(f"edgecnn: {error.filename}: {error.strerror}")
    if refusal is not None:
        raise VerdictError(refusal)
