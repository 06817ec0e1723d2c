"""The training display: a live bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgecnn.cli.options import say

if TYPE_CHECKING:
    from edgecnn.training.loop import Epoch

_LINES, _SILENCE = 10, 2.0  # where there is no terminal: at least so many, and seconds after which there is another


@contextmanager
def training_progress(epochs: int) -> Iterator[Callable[[Epoch], None]]:
    """Give the function that is to be called after each epoch."""
    if not sys.stderr.isatty():
        yield _plain(epochs)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=epochs)
        yield lambda epoch: progress.update(task, completed=epoch.number, description=_describe(epoch))


def _plain(epochs: int) -> Callable[[Epoch], None]:
    start = said = time.perf_counter()
    done = 0

    def on_epoch(epoch: Epoch) -> None:
        nonlocal done, said
        done += 1  # which is less than the epoch's number where a training goes on
        now = time.perf_counter()
        if epoch.number % max(1, epochs // _LINES) == 0 or epoch.number == epochs or now - said >= _SILENCE:
            said = now
            left = (now - start) / done * (epochs - epoch.number)
            say(f"epoch {epoch.number}/{epochs}  {_describe(epoch)}  {left:.0f} s left")

    return on_epoch


def _describe(epoch: Epoch) -> str:
    return f"loss {epoch.loss:.4f}  validation {epoch.val_accuracy:.2%}"
