"""The options of `edgecnn train` that say what is trained and how, and what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import Decorated

if TYPE_CHECKING:
    from edgecnn.nets import NetChoice
    from edgecnn.training.augment import Augment
    from edgecnn.training.recipe import Recipe

_share = click.FloatRange(0, 1, max_open=True)


def net_options(command: Decorated) -> Decorated:
    """Add what says which network it is to be."""
    added = (
        click.option("--net", default="edge", show_default=True, metavar="NET", help="edge, lenet, resnet8, depthwise, compact, FILE.toml or package.module:function."),
        click.option("--size", type=click.Choice(["n", "s", "m"]), help="Of edge: about 28, 48 or 98 thousand parameters.  [default: s]"),
        click.option("--width", type=click.FloatRange(0.05, 8), help="Multiplies the filters of edge, resnet8 or depthwise."),
        click.option("--widths", metavar="N,N,...", help="Filters of each stage of compact, for example 16,32."),
        click.option("--depth", type=click.IntRange(1, 16), help="Convolutions a stage of compact or, residual, of edge."),
        click.option("--dropout", type=_share, help="Before the last layer, in edge, lenet and compact."),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return command


def recipe_options(command: Decorated) -> Decorated:
    """Add what says how it is to be trained."""
    added = (
        click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.  [default: by their number]"),
        click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: by their number]"),
        click.option("--optimizer", type=click.Choice(["adam", "sgd"]), default="adam", show_default=True, help="AdamW, or SGD with momentum."),
        click.option("--schedule", type=click.Choice(["one-cycle", "cosine"]), default="one-cycle", show_default=True, help="A long rise of the rate, or a short one, before it falls."),
        click.option("--warmup", type=_share, help="Share of the steps over which the rate rises.  [default: .25, cosine .05]"),
        click.option("--lr", metavar="RATE|auto", help="Peak learning rate; auto finds one.  [default: by optimizer]"),
        click.option("--weight-decay", type=click.FloatRange(0), help="Of kernels and matrices.  [default: by optimizer]"),
        click.option("--label-smoothing", type=_share, default=0.05, show_default=True, help="Share of the target spread over all labels."),
        click.option("--augment", metavar="LEVEL[,PART...]", default="light", show_default=True, help="none, light or strong, and parts: shift turn zoom mirror light cutout mixup, as in light,mirror,turn=5,no-zoom."),
        click.option("--balance", type=click.Choice(["none", "weights", "sampler"]), default="none", show_default=True, help="Against imbalance: rare classes weigh more, or are drawn more often."),
        click.option("--ema", type=_share, default=0.02, show_default=True, help="Share of the steps over which weights are averaged; 0 does not."),
        click.option("--patience", type=click.IntRange(1), help="Stop after so many epochs without a better one."),
        click.option("--teacher", metavar="RUN", help="Follow the answers of a larger net, trained before."),
        click.option("--calibrate", is_flag=True, help="Fit a temperature on the validation images, so that confidences are honest."),
        click.option("--amp/--no-amp", default=None, help="Mixed precision: float16 on CUDA, bfloat16 on the CPU.  [default: on CUDA]"),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N."),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return command


def make_choice(options: dict[str, Any]) -> NetChoice:
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


def parse_rate(text: str | None) -> float | None:
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


def make_recipe(options: dict[str, Any], lr: float | None, augment: Augment) -> Recipe:
    """Gather what `recipe_options` added."""
    from edgecnn.training.recipe import Recipe

    names = (
        "epochs", "batch_size", "optimizer", "schedule", "warmup", "weight_decay", "label_smoothing", "balance", "ema",
        "patience", "teacher", "amp", "seed",
    )  # fmt: skip
    return Recipe(lr=lr, augment=augment, **{name: options[name] for name in names})
