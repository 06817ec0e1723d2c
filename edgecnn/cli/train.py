"""`edgecnn train`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import data_options, json_option, make_data_options, print_json, say

_share = click.FloatRange(0, 1, max_open=True)


@click.command("train")
@click.argument("data")
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder to write."
)
@click.option("--resume", is_flag=True, help="Go on with the unfinished training in the run folder.")
@click.option("--net", default="edge", show_default=True, metavar="NET", help="edge, lenet, resnet8, depthwise, compact, FILE.toml or package.module:function.")  # fmt: skip
@click.option("--size", type=click.Choice(["n", "s", "m"]), help="Of edge: about 28, 48 or 98 thousand parameters.  [default: s]")  # fmt: skip
@click.option("--width", type=click.FloatRange(0.05, 8), help="Multiplies the filters of edge, resnet8 or depthwise.")
@click.option("--widths", metavar="N,N,...", help="Filters of each stage of compact, for example 16,32.")
@click.option("--depth", type=click.IntRange(1, 16), help="Convolutions a stage of compact or, residual, of edge.")
@click.option("--dropout", type=_share, help="Before the last layer, in edge, lenet and compact.")
@data_options
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.  [default: by their number]")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: by their number]")
@click.option("--optimizer", type=click.Choice(["adam", "sgd"]), default="adam", show_default=True, help="AdamW, or SGD with momentum.")  # fmt: skip
@click.option("--schedule", type=click.Choice(["one-cycle", "cosine"]), default="one-cycle", show_default=True, help="A long rise of the rate, or a short one, before it falls.")  # fmt: skip
@click.option("--warmup", type=_share, help="Share of the steps over which the rate rises.  [default: .25, cosine .05]")
@click.option("--lr", metavar="RATE|auto", help="Peak learning rate; auto finds one.  [default: by optimizer]")
@click.option("--weight-decay", type=click.FloatRange(0), help="Of kernels and matrices.  [default: by optimizer]")
@click.option("--label-smoothing", type=_share, default=0.05, show_default=True, help="Share of the target spread over all labels.")  # fmt: skip
@click.option("--augment", metavar="LEVEL[,PART...]", default="light", show_default=True, help="none, light or strong, and parts: shift turn zoom mirror light cutout mixup, as in light,mirror,turn=5,no-zoom.")  # fmt: skip
@click.option("--balance", type=click.Choice(["none", "weights", "sampler"]), default="none", show_default=True, help="Against imbalance: rare classes weigh more, or are drawn more often.")  # fmt: skip
@click.option("--ema", type=_share, default=0.02, show_default=True, help="Share of the steps over which weights are averaged; 0 does not.")  # fmt: skip
@click.option("--patience", type=click.IntRange(1), help="Stop after so many epochs without a better one.")
@click.option("--teacher", metavar="RUN", help="Follow the answers of a larger net, trained before.")
@click.option("--calibrate", is_flag=True, help="Fit a temperature on the validation images, so that confidences are honest.")  # fmt: skip
@click.option("--amp/--no-amp", default=None, help="Mixed precision.  [default: on CUDA]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@json_option
def command(out: Path, data: str, as_json: bool, device: str, **options: Any) -> None:
    """Train a compact CNN on DATA and write a run folder.

    DATA is `digits`, a folder of class folders (with or without train/ val/ test/), a .csv of paths and labels, a
    folder of IDX files, or an .npz file.

    \b
    Examples:
      edgecnn train photos/ -o runs/photos --image-size 64
      edgecnn train photos/ -o runs/photos --image-size 64 --resume
      torchrun --nproc-per-node 2 -m edgecnn train photos/ -o runs/photos
    """  # fmt: skip
    from edgecnn.data import open_data
    from edgecnn.errors import DataError, MissingPackageError

    try:
        from edgecnn.training.augment import parse_augment
        from edgecnn.training.processes import join_processes
        from edgecnn.training.run import train
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"train needs {error.name}, which is not installed: pip install 'edgecnn[train]'"
        ) from None
    # Mistakes in the words are said before the data are read.
    choice, lr = _choice(options), _rate(options["lr"])
    parse_augment(options["augment"], mirrored=False)
    processes, device = join_processes(device)
    tell = say if processes.first else _nothing
    asked = make_data_options(options)
    dataset = open_data(data, asked)
    for line in dataset.skipped:
        tell(f"skipped: {line}")
    for line in dataset.warnings:
        tell(f"WARNING: {line}")
    if dataset.warnings and options["strict"]:
        raise DataError(f"{data}: {dataset.warnings[0]} (--strict)")
    tell(f"{data}: {dataset.split}; {len(dataset.labels)} classes")
    recipe = _recipe(options, lr, dataset)
    epochs = recipe.resolve(len(dataset.train)).epochs or 1
    tell(f"augmentation: {_described(recipe)}")
    from edgecnn.cli.progress import training_progress

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
        _print(metrics, out, as_json)


def _print(metrics: Any, out: Path, as_json: bool) -> None:
    from edgecnn.report.run import run_text
    from edgecnn.report.text import thousands

    if as_json:
        print_json(metrics)
        return
    for name, value in run_text(metrics):
        click.echo(f"{name:<14} {value}")
    click.echo(f"network        {thousands(metrics.parameters)} parameters, {thousands(metrics.macs)} MACs")
    click.echo(f"training       {metrics.seconds:.1f} s, epoch {metrics.best_epoch} of {len(metrics.history)} kept")
    click.echo(f"written        {out}/: report.html, with its pictures; model.safetensors, config.json, metrics.json")


def _choice(options: dict[str, Any]) -> Any:
    """Read what was said of the network; compact is meant where widths are given."""
    from edgecnn.nets import NetChoice

    widths = None
    if options["widths"]:
        try:
            widths = tuple(int(width) for width in options["widths"].split(","))
        except ValueError:
            raise click.BadParameter(
                f"{options['widths']!r} is not a list such as 16,32", param_hint="--widths"
            ) from None
    names = ("size", "width", "depth", "dropout")
    net = "compact" if widths and options["net"] == "edge" else options["net"]
    return NetChoice(net=net, widths=widths, **{name: options[name] for name in names})


def _rate(text: str | None) -> float | None:
    """Read --lr; None is the optimizer's own, or one still to be found."""
    if text is None or text == "auto":
        return None
    try:
        lr = float(text)
    except ValueError:
        lr = 0.0
    if not 0 < lr < float("inf"):
        raise click.BadParameter(f"{text!r} is neither a rate above 0 nor auto", param_hint="--lr")
    return lr


def _recipe(options: dict[str, Any], lr: float | None, dataset: Any) -> Any:
    from edgecnn.training.augment import parse_augment
    from edgecnn.training.recipe import Recipe, is_mirrored

    names = (
        "epochs", "batch_size", "optimizer", "schedule", "warmup", "weight_decay", "label_smoothing", "balance", "ema",
        "patience", "teacher", "amp", "seed",
    )  # fmt: skip
    augment = parse_augment(options["augment"], is_mirrored(dataset))
    return Recipe(lr=lr, augment=augment, **{name: options[name] for name in names})


def _described(recipe: Any) -> str:
    from edgecnn.training.augment import describe_augment

    return describe_augment(recipe.augment)


def _nothing(said: object) -> None:
    """Say nothing: the first process speaks for all."""
