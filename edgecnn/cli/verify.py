"""`edgecnn verify`."""

from __future__ import annotations

from pathlib import Path

import click

from edgecnn.cli.options import existing, json_option, print_json


@click.command("verify")
@click.argument("bundle", type=existing)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Of timing each artifact.")  # fmt: skip
@json_option
def command(bundle: Path, seconds: float, as_json: bool) -> None:
    """Verify BUNDLE on the machine it is to run on.

    Every file is hashed, every artifact answers the goldens, and reduced precision is timed against fp32 in turns: what
    export could not measure for another target is measured here. Needs neither torch nor data. Exit code 3 where an
    artifact must not be used here.

    \b
    Example:
      edgecnn verify bundles/photos
    """  # fmt: skip
    from edgecnn.bundle import Bundle
    from edgecnn.device.verify import verify_bundle
    from edgecnn.errors import VerdictError
    from edgecnn.parity import Verdict
    from edgecnn.report.verify import verify_text

    found = verify_bundle(Bundle.open(bundle), seconds)
    if as_json:
        print_json(found)
    else:
        click.echo(verify_text(found))
    if found.refused:
        raise VerdictError(f"{found.bundle}: must not be used here: {', '.join(found.refused)}")
    if found.decoding is Verdict.FAIL:
        raise VerdictError(f"{found.bundle}: images are decoded otherwise here: {found.decoding_reason}")
