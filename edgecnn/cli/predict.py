"""`edgecnn predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from edgecnn.cli.options import existing, key_option, print_json, say
from edgecnn.cli.predict_options import model_options, source_of, source_options
from edgecnn.cli.start import starting
from edgecnn.spec import BackendRef

if TYPE_CHECKING:
    from edgecnn.predict import Prediction

_LAG = 0.05  # seconds


@click.command("predict")
@click.argument("bundle", type=existing)
@key_option
@click.argument("images", nargs=-1, metavar="[IMAGE|FOLDER|PATTERN|-]...")
@source_options
@model_options
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

        source = source_of(images, watch, video, every, fps)
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
