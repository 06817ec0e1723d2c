"""The options of `edgecnn predict`: where images come from, and how the model runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgecnn.cli.options import Decorated, backend_type, say
from edgecnn.errors import UsageError

if TYPE_CHECKING:
    from edgecnn.sources import Found

_COUNT = click.IntRange(1, 4096)


def source_options(command: Decorated) -> Decorated:
    """Add where images come from besides the arguments; `source_of` reads what was given."""
    return _added(
        command,
        click.option("--watch", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with every image that arrives in this folder or below, until Ctrl-C."),
        click.option("--video", metavar="FILE|CAMERA|URL", help="The pictures of a video, of a camera (/dev/video0) or of what FFmpeg reads from an address."),
        click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Of a video, every so many-th picture."),
        click.option("--fps", type=click.FloatRange(0, 1000, min_open=True), help="Of a video, so many pictures in a second of its own time."),
    )  # fmt: skip


def model_options(command: Decorated) -> Decorated:
    """Add how the model runs and what is answered."""
    return _added(
        command,
        click.option("-b", "--backend", type=backend_type, help="What runs it; without :ARTIFACT the bundle's default.  [default: what `tune` found here, else onnxruntime]"),
        click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Labels to show, likeliest first."),
        click.option("--threshold", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Least probability; below it the label is `unknown`."),
        click.option("--batch", type=_COUNT, help="Images a run.  [default: 1; for one file or what arrives, what `tune` found here]"),
        click.option("--threads", type=_COUNT, help="Threads of the backend for one run.  [default: 1 beside threads that decode, all that this process may use without; for one file, what arrives or a larger --batch, what `tune` found here]"),
        click.option("--decode-threads", type=click.IntRange(0, 256), help="Threads that read and decode ahead and, in batches of 1 on one thread of ONNX Runtime's CPU, run the model; 0 does all as it goes.  [default: all that this process may use, 0 for one file]"),
    )  # fmt: skip


def _added(command: Decorated, *options: Callable[[Decorated], Decorated]) -> Decorated:
    for option in reversed(options):
        command = option(command)
    return command


def source_of(
    images: tuple[str, ...], watch: Path | None, video: str | None, every: int, fps: float | None
) -> Iterable[Found]:
    """Put together what was asked for; nothing is read yet but the list of a watched folder."""
    from itertools import chain

    from edgecnn.sources.files import find

    if video is not None:
        if images or watch:
            raise UsageError("--video takes the place of IMAGE... and --watch: give one of them")
        from edgecnn.sources.video import Video

        return Video(video, every, fps)
    if every != 1 or fps is not None:
        raise UsageError("--every and --fps choose among the pictures of a --video, and there is none")
    if watch is not None:
        from edgecnn.sources.watch import Watch

        arriving = Watch(watch, tell=lambda text: say(f"edgecnn: {text}"))
        say(f"edgecnn: watching {watch}; Ctrl-C ends it")
        return chain(find(images, _stdin()), arriving)
    if not images:
        raise UsageError("nothing to predict: give IMAGE..., --watch or --video (see `edgecnn predict --help`)")
    return find(images, _stdin())


def _stdin() -> Iterator[Found]:
    from edgecnn.sources import NoImageError
    from edgecnn.sources.stdin import NAME, Bytes, from_stdin

    if sys.stdin is None:  # a service may have none
        yield NoImageError(NAME, "there is no stdin here")
    else:
        yield from from_stdin(cast(Bytes, sys.stdin.buffer))
