"""`edgecnn train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from edgecnn.cli.options import json_option, print_json, say


@click.command("train")
@click.argument("data")
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder to write."
)
@click.option(
    "--size",
    type=click.IntRange(4, 1024),
    help="Side of the square the net sees.  [default: the images' own, up to 96]",
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="Grey or colour.  [default: as the images are]")
@click.option(
    "--fit",
    type=click.Choice(["stretch", "crop", "pad"]),
    default="stretch",
    show_default=True,
    help="How images that are not square become so.",
)
@click.option(
    "--val",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share split off for validation where the data has none.",
)
@click.option(
    "--test",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share split off for the test where the data has none.",
)
@click.option("--strict", is_flag=True, help="Stop at broken images and at warnings instead of going on.")
@click.option("--widths", metavar="N,N,...", help="Filters of each stage, for example 16,32.  [default: by image size]")
@click.option("--depth", type=click.IntRange(1, 16), default=2, show_default=True, help="Convolutions a stage.")
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Before the last layer.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.  [default: by their number]")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: by their number]")
@click.option(
    "--optimizer",
    type=click.Choice(["adam", "sgd"]),
    default="adam",
    show_default=True,
    help="AdamW, or SGD with momentum; both with a one-cycle schedule.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.  [default: by optimizer]")
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of the target spread over all labels.",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "light"]),
    default="light",
    show_default=True,
    help="Small shifts, turns and zooms.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of split, weights, order and augmentation."
)
@json_option
def command(out: Path, data: str, as_json: bool, device: str, **options: Any) -> None:
    """Train a compact CNN on DATA and write a run folder.

    DATA is `digits`, a folder of class folders (with or without train/ val/ test/), a folder of IDX files, or an
    .npz file.

    \b
    Example:
      edgecnn train photos/ -o runs/photos --size 64
    """  # fmt: skip
    from edgecnn.cli.progress import training_progress
    from edgecnn.data import DataOptions, open_data
    from edgecnn.errors import DataError, MissingPackageError
    from edgecnn.report.text import percent, thousands
    from edgecnn.spec import ModelConfig

    try:
        from edgecnn.training.recipe import Recipe
        from edgecnn.training.run import train
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"train needs {error.name}, which is not installed: pip install 'edgecnn[train]'"
        ) from None
    recipe_keys = ("epochs", "batch_size", "optimizer", "lr", "label_smoothing", "augment", "seed")
    recipe = Recipe(**{key: options[key] for key in recipe_keys})
    data_keys = ("size", "fit", "val", "test", "seed", "strict")
    channels: Literal[1, 3] | None = {"1": 1, "3": 3}.get(options["channels"])  # type: ignore[assignment]  # click checked it
    data_options = DataOptions(channels=channels, **{key: options[key] for key in data_keys})
    dataset = open_data(data, data_options)
    for line in dataset.skipped:
        say(f"skipped: {line}")
    for line in dataset.warnings:
        say(f"WARNING: {line}")
    if dataset.warnings and options["strict"]:
        raise DataError(f"{data}: {dataset.warnings[0]} (--strict)")
    say(f"{data}: {dataset.split}; {len(dataset.labels)} classes")
    model = _model(options, dataset.preprocess, ModelConfig)
    epochs = recipe.resolve(len(dataset.train)).epochs or 1
    with training_progress(epochs) as on_epoch:
        metrics = train(dataset, data_options, out, model, recipe, device, on_epoch)
    if as_json:
        print_json(metrics)
        return
    click.echo(f"test accuracy  {percent(metrics.test_accuracy)}")
    click.echo(f"network        {thousands(metrics.parameters)} parameters, {thousands(metrics.macs)} MACs")
    click.echo(f"training       {metrics.seconds:.1f} s, epoch {metrics.best_epoch} of {epochs} kept")
    click.echo(f"written        {out}/: model.safetensors, config.json, metrics.json, curves.png, confusion.png")


def _model(options: dict[str, Any], preprocess: Any, kind: Any) -> Any:
    """Put the options on top of the network that the image size suggests."""
    from edgecnn.nets.build import default_config

    widths = default_config(preprocess).widths
    if options["widths"]:
        try:
            widths = tuple(int(width) for width in options["widths"].split(","))
        except ValueError:
            raise click.BadParameter(
                f"{options['widths']!r} is not a list such as 16,32", param_hint="--widths"
            ) from None
    return kind(widths=widths, depth=options["depth"], dropout=options["dropout"])
