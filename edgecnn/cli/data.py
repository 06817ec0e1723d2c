"""`edgecnn data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import data_options, json_option, make_data_options, print_json, say


@click.group("data")
def command() -> None:
    """Look a data set over before training on it.

    \b
    Example:
      edgecnn data check photos/ -o photos.html
    """  # fmt: skip


@command.command("check")
@click.argument("data")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Page with pictures (.html) to write."
)
@data_options
@json_option
def check(data: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Look DATA over: what is there, and what is wrong with it.

    Counts classes, splits, sizes, colours and formats, and finds: broken files, identical images, with different labels
    or in two splits, nearly identical ones (saved again, rescaled, brightened, not cropped or turned), images of one
    colour, small classes and imbalance. Findings fail the command only with --strict, which here means exit code 3 where
    files are broken, labels contradict each other, images are in two splits, or training would refuse the set.

    \b
    Example:
      edgecnn data check photos/ -o photos.html
    """  # fmt: skip
    from edgecnn.data.quality import check_data
    from edgecnn.errors import VerdictError
    from edgecnn.files import write_atomic
    from edgecnn.report.data import data_text

    report, images = check_data(data, make_data_options(options))
    if out is not None:
        from edgecnn.report.data_page import data_page

        write_atomic(out, data_page(report, images).encode())
        say(f"written {out}")
    if as_json:
        print_json(report)
    else:
        click.echo(data_text(report))
    if options["strict"] and report.weighty():
        raise VerdictError(f"{data}: {'; '.join(finding.title for finding in report.weighty())} (--strict)")
