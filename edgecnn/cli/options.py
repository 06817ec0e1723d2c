"""Options and parameter types that several commands share."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from edgecnn.errors import UsageError
from edgecnn.spec import BackendRef, to_json

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from edgecnn.data import DataOptions

    class BackendBase(click.ParamType[BackendRef]):
        """A parameter that is a BackendRef."""

    class FractionBase(click.ParamType[float]):
        """A parameter that is a number."""
else:
    BackendBase = FractionBase = click.ParamType  # generic only in the newest click


class BackendParam(BackendBase):
    """`BACKEND[:ARTIFACT][@DEVICE]`, for every command."""

    name = "backend[:artifact][@device]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BackendRef:
        """Parse the written form."""
        try:
            return value if isinstance(value, BackendRef) else BackendRef.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete registered names."""
        from click.shell_completion import CompletionItem

        from edgecnn import registry

        return [CompletionItem(name) for name in registry.names(registry.BACKENDS) if name.startswith(incomplete)]


class FractionParam(FractionBase):
    """Percentage points on the command line, a fraction inside."""

    name = "points"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read points between 0 and 100."""
        try:
            points = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of percentage points, for example 1.0", param, ctx)
        if not 0 < points < 100:
            self.fail(f"{value} is not between 0 and 100 percentage points", param, ctx)
        return points / 100


class FiniteRange(click.FloatRange):
    """A range of numbers, which neither infinity nor what is no number (`nan`) lies in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number within the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


existing = click.Path(exists=True, path_type=Path)
backend_type = BackendParam()
key_option = click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PUBLIC",
    help="Public key (PEM or OpenSSH) by which BUNDLE has to be signed, whole.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout instead of text.")


def max_drop_option(default: str | None, said: str) -> Callable[[Decorated], Decorated]:
    """Make `--max-drop`; `said` is what the help says of the default."""
    text = f"Accuracy, in percentage points, that reduced precision may lose.  [default: {said}]"
    return click.option("--max-drop", type=FractionParam(), default=default, help=text)


def candidates_option(text: str) -> Callable[[Decorated], Decorated]:
    """Make the repeatable `-c`."""
    return click.option("-c", "--candidate", "candidates", type=backend_type, multiple=True, help=text)


def data_options(command: Decorated) -> Decorated:
    """Add what says how a source of images is to be read: for train and data check."""
    share = click.FloatRange(0, 1, min_open=True, max_open=True)
    seed = "Of split, weights, order and augmentation."
    added = (
        click.option("--image-size", type=click.IntRange(4, 1024), help="Side of the square the net sees.  [default: the images' own, up to 96]"),
        click.option("--channels", type=click.Choice(["1", "3"]), help="Grey or colour.  [default: as the images are]"),
        click.option("--fit", type=click.Choice(["stretch", "crop", "pad"]), default="stretch", show_default=True, help="How images that are not square become so."),
        click.option("--val", type=share, help="Share split off for validation where the data has none."),
        click.option("--test", type=share, help="Share split off for the test where the data has none."),
        click.option("--test-from", metavar="DATA", help="Another source, whose images are the test."),
        click.option("--group-from", metavar="REGEX|COLUMN", help="Images whose name gives the same match, or which share a CSV's column, stay in one split."),
        click.option("--stream/--no-stream", default=None, help="Decode files on each use, for sets larger than memory.  [default: by size]"),
        click.option("--strict", is_flag=True, help="Stop at broken images and at warnings instead of going on."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=seed),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return command


def make_data_options(options: dict[str, Any]) -> DataOptions:
    """Gather what `data_options` added."""
    from edgecnn.data import DataOptions

    names = ("fit", "val", "test", "group_from", "test_from", "stream", "strict", "seed")
    channels: Literal[1, 3] | None = {"1": 1, "3": 3}.get(options["channels"])  # type: ignore[assignment]  # click checked it
    return DataOptions(size=options["image_size"], channels=channels, **{name: options[name] for name in names})


def refuse_inside(bundle: Path, out: Path | None, option: str) -> None:
    """Refuse to write what an option asks for into a bundle, which would no longer be what its manifest says.

    Raises:
        UsageError: it would lie in the bundle's folder.
    """
    if out is not None and os.path.realpath(out).startswith(os.path.join(os.path.realpath(bundle), "")):  # noqa: PTH118
        raise UsageError(
            f"{out}: lies in the bundle, which holds what its manifest lists and nothing else: give {option} a file elsewhere"
        )


def say(text: str) -> None:
    """Tell the person, on stderr, what is going on."""
    click.echo(text, err=True)


def print_json(value: Any, indent: int = 2) -> None:
    """Print a result for machines, on stdout."""
    sys.stdout.write(to_json(value, indent).decode().rstrip("\n") + "\n")
