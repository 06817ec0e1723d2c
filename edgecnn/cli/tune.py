"""`edgecnn tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import FiniteRange, candidates_option, existing, json_option, print_json, say
from edgecnn.spec import BackendRef


@click.command("tune")
@click.argument("bundle", type=existing)
@candidates_option(
    "What may be chosen, the first being what the others are compared with; of ONNX Runtime alone.  [default: every ONNX artifact "
    "on every usable device, against the bundle's default]"
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One image soon, or many images a second, in batches.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Of timing at most; loading and parity come on top.",
)
@click.option("--dry-run", is_flag=True, help="Write no profile.")
@json_option
def command(
    bundle: Path, candidates: tuple[BackendRef, ...], purpose: Any, seconds: float, dry_run: bool, as_json: bool
) -> None:
    """Find the settings with which BUNDLE runs fastest on this machine, and keep them for `predict` and `serve`.

    Artifact, device, threads, spinning, graph optimization and batch are raced against the defaults: turn and turn about,
    those that are shown to be slower stop, and what fails parity on the goldens does not start. The winner is kept only if
    it is better than the defaults beyond noise. The profile is for this CPU, ONNX Runtime and bundle, and lies in
    ~/.config/edgecnn/profiles (XDG_CONFIG_HOME).

    \b
    Examples:
      edgecnn tune bundles/photos
      edgecnn tune bundles/photos --for throughput --seconds 60 --dry-run
    """  # fmt: skip
    from edgecnn.bundle import Bundle
    from edgecnn.device.profile import own_place, write_profile
    from edgecnn.device.tune import profile_of, tune
    from edgecnn.report.tune import tune_text

    opened = Bundle.open(bundle)
    if not dry_run:
        own_place()  # rather than after the races
    found = tune(opened, purpose, seconds, candidates, lambda line: say(f"edgecnn: {line}"))
    if as_json:
        print_json(found)
    else:
        click.echo(tune_text(found))
    if not dry_run:
        say(f"edgecnn: profile written to {write_profile(profile_of(found))}")
