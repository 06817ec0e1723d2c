"""`edgecnn doctor`."""

from __future__ import annotations

import click

from edgecnn.cli.options import json_option, print_json


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show this machine: CPU features, usable threads, backends, providers, what is missing and how to get it.

    \b
    Example:
      edgecnn doctor --json
    """
    from edgecnn.device.probe import diagnose
    from edgecnn.report.doctor import doctor_text

    found = diagnose()
    if as_json:
        print_json(found)
    else:
        click.echo(doctor_text(found))
