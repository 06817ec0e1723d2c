"""What `edgecnn parity` is asked with: options, and from them the subject, the samples and the sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import Decorated, say
from edgecnn.cli.quantize_options import input_options, make_input_options
from edgecnn.spec import BackendRef, Tolerance

if TYPE_CHECKING:
    from edgecnn.parity.samples import Samples
    from edgecnn.parity.subject import Subject

_FILE = click.Path(dir_okay=False, path_type=Path)
_HERE = click.Path(exists=True, dir_okay=False, path_type=Path)
_INPUT = ("input_name", "layout", "mean", "std", "scale", "order", "size", "fit")


def output_options(command: Decorated) -> Decorated:
    """Add what is fed, what is let pass, and what is written."""
    added = (
        click.option("--data", help="Images: a labelled source as for `train`; for MODEL.onnx also a folder of pictures or of .npz feeds.  [default: where the bundle's came from]"),
        click.option("--random", type=click.IntRange(1), metavar="N", help="Run N random inputs instead; they have no labels.  [default for MODEL.onnx: 64]"),
        click.option("--noise-multiple", type=click.FloatRange(0, 1e4, min_open=True, max_open=True), metavar="X", help="Times torch float32's own error that a float32 backend may make.  [default: 10, or the bundle's own]"),
        click.option("--html", type=_FILE, help="Write the report as one page, with the images that were answered otherwise."),
        click.option("--junit", type=_FILE, help="Write the verdicts as JUnit XML, for CI."),
        click.option("--keep", type=_FILE, help="Keep every answer in this file, to be judged again."),
        click.option("--replay", type=_HERE, metavar="FILE", help="Judge what --keep wrote; with a second FILE, that one's answers against this one's."),
        click.option("--localize", is_flag=True, help="Where an ONNX candidate fails, find the first block that differs."),
    )  # fmt: skip
    for option in reversed(added):
        command = option(command)
    return input_options(command)


@dataclass(frozen=True)
class Asked:
    """All of a check but its tolerance."""

    subject: Subject
    reference: BackendRef | None
    candidates: list[BackendRef]
    samples: Samples


def ask(
    place: Path,
    reference: BackendRef | None,
    candidates: tuple[BackendRef, ...],
    data: str | None,
    random: int | None,
    options: dict[str, Any],
) -> Asked:
    """Open what is named, and choose what was not.

    Raises:
        click.UsageError: options that do not go together.
        EdgecnnError: something named cannot be used.
    """
    from edgecnn.parity.subject import is_model

    if data is not None and random is not None:
        raise click.UsageError("--data and --random are two ways of feeding; give one")
    if is_model(place):
        return _ask_model(place, reference, candidates, data, random, options)
    given = [name for name in _INPUT if options[name] not in (None, "auto")]
    if given:
        raise click.UsageError(
            f"--{given[0].removesuffix('_name')} is for MODEL.onnx; a bundle says itself how images are prepared"
        )
    return _ask_bundle(place, reference, candidates, data, random, options["seed"])


def _ask_model(
    place: Path,
    reference: BackendRef | None,
    candidates: tuple[BackendRef, ...],
    data: str | None,
    random: int | None,
    options: dict[str, Any],
) -> Asked:
    from edgecnn.parity.feeding import model_samples
    from edgecnn.parity.subject import Subject

    subject = Subject.of_model(place)
    samples = model_samples(subject, data, random, make_input_options(options), options["seed"])
    return Asked(subject, reference, list(candidates) or [BackendRef(backend="onnxruntime")], samples)


def _ask_bundle(
    place: Path,
    reference: BackendRef | None,
    candidates: tuple[BackendRef, ...],
    data: str | None,
    random: int | None,
    seed: int,
) -> Asked:
    from edgecnn.bundle import Bundle
    from edgecnn.data.of_bundle import find_test_images
    from edgecnn.parity.compare import bundle_samples, default_refs
    from edgecnn.parity.samples import mixed_samples
    from edgecnn.parity.subject import Subject

    bundle = Bundle.open(place)
    default_reference, default_candidates = default_refs(bundle)
    reference, chosen = reference or default_reference, list(candidates) or default_candidates
    if reference is None and (data is not None or random is not None):
        told = (
            "--data needs a reference to compare decisions with" if data else "--random needs a reference to agree with"
        )
        raise click.UsageError(f"{told}: -r onnxruntime:fp32, or install torch")
    subject = Subject.of_bundle(bundle)
    if random is not None:
        mixed = mixed_samples(bundle.goldens().pixels, random, bundle.manifest.inputs[0].name, seed)
        return Asked(subject, reference, chosen, mixed)
    images = None
    if reference is not None:
        images, note = find_test_images(bundle.manifest, data)
        if note:
            say(f"edgecnn: {note}")
    return Asked(subject, reference, chosen, bundle_samples(bundle, images))


def make_tolerance(base: Tolerance, max_drop: float | None, noise_multiple: float | None) -> Tolerance:
    """Put in what was given."""
    import msgspec

    given = {"max_drop": max_drop, "noise_multiple": noise_multiple}
    return msgspec.structs.replace(base, **{name: value for name, value in given.items() if value is not None})


def check_replay(place: Path | None, asked: dict[str, Any]) -> None:
    """Hold the two ways of calling apart: something to run, or a recording.

    Raises:
        click.UsageError: there is neither, or an option would do nothing.
    """
    if asked["replay"] is None:
        if place is None:
            raise click.UsageError("name a BUNDLE or MODEL.onnx, or give --replay FILE")
        return
    pointless = ("reference", "candidates", "data", "random", "keep", "localize", *_INPUT)
    given = [name for name in pointless if asked.get(name) not in (None, (), False, "auto")]
    if given:
        name = {"candidates": "candidate", "input_name": "input"}.get(given[0], given[0])
        raise click.UsageError(f"--{name} would do nothing: --replay judges what was recorded, and runs nothing")
    if place is not None and place.is_dir():
        raise click.UsageError(f"--replay takes one recording or two, and {place} is a folder")
