"""`edgecnn train`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import data_options, json_option, make_data_options, print_json, say
from edgecnn.cli.train_options import make_choice, make_recipe, net_options, parse_rate, recipe_options

if TYPE_CHECKING:
    from edgecnn.runs import Metrics


@click.command("train")
@click.argument("data")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder to write.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the unfinished training in the run folder.")
@net_options
@data_options
@recipe_options
@json_option
def command(out: Path, data: str, as_json: bool, device: str, **options: Any) -> None:
    """Train a compact CNN on DATA and write a run folder.

    DATA is `digits`, a folder of class folders (with or without train/ val/ test/), a .csv of paths and labels, a
    folder of IDX files, or an .npz file. The classes of these two are numbers, unless a text file gives each a line
    with its name: labels.txt in the folder, NAME.labels.txt beside NAME.npz.

    \b
    Examples:
      edgecnn train photos/ -o runs/photos --image-size 64
      edgecnn train photos/ -o runs/photos --image-size 64 --resume
      torchrun --nproc-per-node 2 -m edgecnn train photos/ -o runs/photos
    """  # fmt: skip
    from edgecnn.cli.progress import training_progress
    from edgecnn.data import open_data
    from edgecnn.errors import DataError, MissingPackageError

    try:
        from edgecnn.training.augment import describe_augment, parse_augment
        from edgecnn.training.processes import join_processes
        from edgecnn.training.recipe import is_mirrored
        from edgecnn.training.run import train
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"train needs {error.name}, which is not installed: pip install 'edgecnn[train]'"
        ) from None
    # Mistakes in the words are said before the data are read.
    choice, lr = make_choice(options), parse_rate(options["lr"])
    parse_augment(options["augment"], mirrored=False)
    processes, device = join_processes(device)
    tell = say if processes.first else _nothing
    asked = make_data_options(options)
    dataset = open_data(data, asked)
    for line in (*(f"skipped: {one}" for one in dataset.skipped), *(f"WARNING: {one}" for one in dataset.warnings)):
        tell(line)
    if dataset.warnings and options["strict"]:
        raise DataError(f"{data}: {dataset.warnings[0]} (--strict)")
    tell(f"{data}: {dataset.split}; {len(dataset.labels)} classes")
    augment = parse_augment(options["augment"], is_mirrored(dataset))
    tell(f"augmentation: {describe_augment(augment)}")
    recipe = make_recipe(options, lr, augment)
    epochs = recipe.resolve(len(dataset.train)).epochs or 1
    try:
        with training_progress(epochs) if processes.first else nullcontext(_nothing) as on_epoch:
            metrics = train(
                dataset, asked, out, choice, recipe, device, on_epoch, processes=processes, resume=options["resume"],
                auto_lr=options["lr"] == "auto", calibrate=options["calibrate"], say=tell,
            )  # fmt: skip
    except KeyboardInterrupt:
        tell(f"interrupted: what {out} holds is whole; go on by the same command with --resume")
        raise
    if metrics is not None:
        print_json(metrics) if as_json else _print(metrics, out)


def _print(metrics: Metrics, out: Path) -> None:
    from edgecnn.report.run import run_text
    from edgecnn.report.text import thousands

    for name, value in run_text(metrics):
        click.echo(f"{name:<14} {value}")
    click.echo(f"network        {thousands(metrics.parameters)} parameters, {thousands(metrics.macs)} MACs")
    click.echo(f"training       {metrics.seconds:.1f} s, epoch {metrics.best_epoch} of {len(metrics.history)} kept")
    click.echo(f"written        {out}/: report.html, with its pictures; model.safetensors, config.json, metrics.json")


def _nothing(said: object) -> None:
    """Say nothing: the first process speaks for all."""
