"""Options of the commands that take somebody's ONNX file and images for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import Decorated

if TYPE_CHECKING:
    from edgecnn.quantization.conversion import InputOptions


def input_options(command: Decorated) -> Decorated:
    """Add how images become the model's input; a file that edgecnn exported says it all itself."""
    added = (
        click.option("--input", "input_name", metavar="NAME", help="The image input, where there are several."),
        click.option("--layout", type=click.Choice(["auto", "nchw", "nhwc"]), default="auto", show_default=True, help="Order of the input's dimensions."),
        click.option("--mean", metavar="N[,N,N]", help="Subtracted from pixels in units of white, 0 to 1.  [default: 0]"),
        click.option("--std", metavar="N[,N,N]", help="Divides them after that.  [default: 1]"),
        click.option("--scale", type=float, help="Multiplies the pixels first; 1 leaves --mean and --std in pixel values.  [default: 1/255]"),
        click.option("--order", type=click.Choice(["rgb", "bgr"]), help="Order of the channels.  [default: rgb]"),
        click.option("--size", metavar="HxW", help="Of the images, where the model leaves it free, for example 48x192."),
        click.option("--fit", type=click.Choice(["stretch", "crop", "pad"]), help="How images of another shape are fitted.  [default: stretch]"),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice of images."),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return command


def make_input_options(options: dict[str, Any]) -> InputOptions:
    """Gather what `input_options` added.

    Raises:
        click.BadParameter: numbers that cannot be read.
    """
    from edgecnn.quantization.conversion import InputOptions

    height, width = _size(options["size"])
    try:
        return InputOptions(
            layout=options["layout"], mean=_numbers("--mean", options["mean"]), std=_numbers("--std", options["std"]),
            scale=options["scale"], order=options["order"], input=options["input_name"], height=height, width=width,
            fit=options["fit"],
        )  # fmt: skip
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, or one a channel such as 0.5,0.5,0.5", param_hint=name) from None  # fmt: skip


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    height, times, width = text.lower().partition("x")
    try:
        return int(height), int(width if times else height)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not HEIGHTxWIDTH such as 48x192", param_hint="--size") from None
