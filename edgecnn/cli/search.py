"""`edgecnn search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import data_options, json_option, make_data_options, print_json, say
from edgecnn.spec import TARGETS


@click.command("search")
@click.argument("data")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Study folder to write, or to go on with.")  # fmt: skip
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Trials to add; those refused unseen do not count.")  # fmt: skip
@click.option("--max-macs", type=click.IntRange(1), help="Multiply-accumulates that an image may cost.")
@click.option("--max-params", type=click.IntRange(1), help="Parameters that a net may have.")
@click.option("--max-latency-ms", type=click.FloatRange(0, min_open=True), help="Time that the int8 file may take, batch 1, one thread, on this machine.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Of each trial.  [default: a quarter of what train takes]")
@click.option("--image-sizes", metavar="N,N,...", help="Resolutions to search over.  [default: 1/2, 3/4 and all of the usual one, or --image-size alone]")  # fmt: skip
@click.option("--storage", metavar="URL", help="Database that many machines share, for example postgresql://user@host/name.  [default: SQLite in the study folder]")  # fmt: skip
@click.option("--study-name", metavar="NAME", help="Of the study in the storage.  [default: the folder's, with --storage]")  # fmt: skip
@click.option("--prune/--no-prune", default=True, show_default=True, help="Give up trials behind the median of those that cost no more.")  # fmt: skip
@click.option("--keep-all", is_flag=True, help="Keep every trial's weights and int8 file, not the front's alone.")
@click.option("--target", type=click.Choice(["host", *TARGETS]), default="any", show_default=True, help="CPU that int8 is made for, as in export.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Trains: cpu or cuda:N.")
@data_options
@json_option
def command(
    data: str, out: Path, trials: int, epochs: int | None, image_sizes: str | None, storage: str | None,
    study_name: str | None, keep_all: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Search for nets that are accurate and fast: short trainings, each exported to int8 and its latency measured.

    Learning rate, width, depth, resolution and augmentation are chosen by Optuna. Only train and validation images
    are looked at. The same -o goes on with the study; several processes may work on it.

    \b
    Examples:
      edgecnn search photos/ -o studies/photos --trials 40 --max-latency-ms 1
      edgecnn search photos/ -o studies/photos --storage postgresql://me@host/studies --study-name photos
    """  # fmt: skip
    from edgecnn.errors import MissingPackageError, VerdictError

    try:
        import optuna  # noqa: F401 -- to see that it is there
        import torch  # noqa: F401

        from edgecnn.search.run import search
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"search needs {error.name}, which is not installed: pip install 'edgecnn[search]'") from None  # fmt: skip
    from edgecnn.report.search import search_text

    sizes = _sizes(image_sizes, options["image_size"])
    try:
        report = search(
            _plan(data, options), out, trials, epochs=epochs, sizes=sizes, storage=storage, name=study_name,
            keep_all=keep_all, say=say,
        )  # fmt: skip
    except KeyboardInterrupt:
        say(f"interrupted: the study in {out} is whole; the same command goes on with it")
        raise
    if as_json:
        print_json(report)
    else:
        click.echo(search_text(report))
        click.echo(f"written        {out}/: pareto.png, study.json, trials/")
    if not any(row.front for row in report.rows):
        fastest = min(row.int8.latency_us for row in report.rows if row.int8 and row.state == "complete")
        raise VerdictError(f"{out}: no trial is within the limits; the fastest so far takes {fastest / 1000:.3f} ms")


def _sizes(text: str | None, size: int | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if size is not None:
        raise click.BadParameter("give either --image-size or --image-sizes", param_hint="--image-sizes")
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list such as 16,24,32", param_hint="--image-sizes") from None
    if not all(4 <= one <= 1024 for one in found):
        raise click.BadParameter(f"{text!r}: sizes lie from 4 to 1024", param_hint="--image-sizes")
    return found


def _plan(data: str, options: dict[str, Any]) -> Any:
    from edgecnn.host import target_of_host
    from edgecnn.search.space import Limits
    from edgecnn.search.trial import Plan

    latency = options["max_latency_ms"]
    limits = Limits(
        max_macs=options["max_macs"],
        max_params=options["max_params"],
        max_latency_us=None if latency is None else latency * 1000,
    )
    target = target_of_host() if options["target"] == "host" else options["target"]
    return Plan(
        source=data, options=make_data_options(options), epochs=0, device=options["device"], target=target,
        limits=limits, prune=options["prune"],
    )  # fmt: skip
