"""`edgecnn predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, cast

import click

from edgecnn.cli.options import backend_type, existing, key_option, print_json, say
from edgecnn.cli.start import starting
from edgecnn.errors import UsageError
from edgecnn.spec import BackendRef

if TYPE_CHECKING:
    from edgecnn.predict import Prediction
    from edgecnn.sources import Found

_LAG = 0.05  # seconds


@click.command("predict")
@click.argument("bundle", type=existing)
@key_option
@click.argument("images", nargs=-1, metavar="[IMAGE|FOLDER|PATTERN|-]...")
@click.option(
    "--watch",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Go on with every image that arrives in this folder or below, until Ctrl-C.",
)
@click.option(
    "--video",
    metavar="FILE|CAMERA|URL",
    help="The pictures of a video, of a camera (/dev/video0) or of what FFmpeg reads from an address.",
)
@click.option(
    "--every", type=click.IntRange(1), default=1, show_default=True, help="Of a video, every so many-th picture."
)
@click.option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Of a video, so many pictures in a second of its own time.",
)
@click.option(
    "-b",
    "--backend",
    type=backend_type,
    help="What runs it; without :ARTIFACT the bundle's default.  [default: what `tune` found here, else onnxruntime]",
)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Labels to show, likeliest first.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Least probability; below it the label is `unknown`.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    help="Images a run.  [default: 1; for one file or what arrives, what `tune` found here]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 4096),
    help="Threads of the backend for one run.  [default: 1 beside threads that decode, all that this process may use without; for one file, what arrives or a larger --batch, what `tune` found here]",
)
@click.option(
    "--decode-threads",
    type=click.IntRange(0, 256),
    help="Threads that read and decode ahead and, in batches of 1 on ONNX Runtime's CPU, run the model; 0 does all as it goes.  [default: all that this process may use, 0 for one file]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line (JSON Lines).")
def command(
    bundle: Path,
    key: Path | None,
    images: tuple[str, ...],
    watch: Path | None,
    video: str | None,
    every: int,
    fps: float | None,
    backend: BackendRef | None,
    top: int,
    threshold: float,
    batch: int | None,
    threads: int | None,
    decode_threads: int | None,
    as_json: bool,
) -> None:
    """Predict the labels of images with BUNDLE.

    A folder stands for every image below it, a quoted pattern such as 'day/**/*.jpg' for the files it matches, and `-`
    for stdin: paths, one a line, or one encoded image, whichever its first bytes say. A bad image is one line on
    stderr; the others are still answered, and the exit code is 2 at the end. Ctrl-C ends with a summary and 130.

    \b
    Examples:
      edgecnn predict bundles/photos one.png folder/
      find /data -name '*.jpg' | edgecnn predict bundles/photos --json -
      edgecnn predict bundles/photos --watch /srv/incoming --threshold 0.8 --json
      edgecnn predict bundles/photos --video /dev/video0 --fps 2
    """  # fmt: skip
    with starting():
        from contextlib import closing
        from dataclasses import replace

        from edgecnn.bundle import Bundle
        from edgecnn.device.profile import chosen
        from edgecnn.host import usable_threads
        from edgecnn.predict import Predictor

        source = _source(images, watch, video, every, fps)
        opened = Bundle.open(bundle, key)
        one = len(images) == 1 and os.path.isfile(images[0]) and not watch  # noqa: PTH113 -- pathlib's fails on long names
        if decode_threads is None:
            decode_threads = 0 if one else usable_threads()
        live = bool(watch or video or "-" in images)
        many = bool(decode_threads) and batch in (None, 1) and not live
        choice = chosen(opened, backend, threads, many, batch)
        if choice.notice:
            say(f"edgecnn: {choice.notice}")
        options = choice.options
        if decode_threads and options.threads is None:
            options = replace(options, threads=1)  # the cores are busy, and the model's threads would wait for them
        predictor = Predictor(opened, choice.ref, options)
    answers = predictor.predict(source, batch or choice.batch or 1, top, threshold, decode_threads, not live)
    with predictor, closing(answers):
        _print_all(answers, as_json, live)


def _source(
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


def _print_all(predictions: Iterable[Prediction], as_json: bool, live: bool) -> None:
    """Print every answer as it comes, then what came of all; leave with 2 where one was bad, 130 after Ctrl-C.

    Answers that follow each other within `_LAG` leave together where nobody waits for the one before the next.
    """
    answered = bad = 0
    flushed = 0.0
    try:
        for prediction in predictions:
            bad, answered = bad + bool(prediction.error), answered + (not prediction.error)
            _print(prediction, as_json)
            if as_json and (live or monotonic() - flushed > _LAG):
                sys.stdout.flush()  # whoever reads them acts on them
                flushed = monotonic()
    except KeyboardInterrupt:
        say(f"edgecnn: interrupted: {answered} images answered, {bad} bad")
        click.get_current_context().exit(130)
    if bad or not answered:
        say(f"edgecnn: {answered} images answered, {bad} bad" if bad else "edgecnn: no images were given")
        click.get_current_context().exit(2)


def _print(prediction: Prediction, as_json: bool) -> None:
    if prediction.error:
        say(f"edgecnn: {_on_one_line(prediction.error)}")
    if as_json:
        print_json(prediction, indent=0)
    elif not prediction.error:
        guesses = [f"{guess.label} {guess.probability:.4f}" for guess in prediction.top]
        unsure = [] if prediction.label == prediction.top[0].label else [str(prediction.label)]
        click.echo(f"{_on_one_line(prediction.path or '')}\t{'  '.join(unsure + guesses)}")


def _on_one_line(text: str) -> str:
    """Escape what would break a line or move a terminal's cursor: a file may be called anything."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
