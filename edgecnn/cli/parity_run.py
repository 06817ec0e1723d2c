"""What `edgecnn parity` does with its options: open what is named, run and judge it, or judge what was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecnn.cli.options import say
from edgecnn.cli.parity_options import INPUT
from edgecnn.cli.quantize_options import make_input_options
from edgecnn.spec import BackendRef, Tolerance

if TYPE_CHECKING:
    from edgecnn.parity import ParityReport
    from edgecnn.parity.localize import Localization
    from edgecnn.parity.recording import Recording
    from edgecnn.parity.samples import Samples
    from edgecnn.parity.subject import Subject


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
    given = [name for name in INPUT if options[name] not in (None, "auto")]
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


def ran(
    place: Path, asked: dict[str, Any], changes: dict[str, float | None]
) -> tuple[ParityReport, Recording, list[Localization]]:
    """Run what is asked for, keep it where that is asked, judge it, and look for the place of what failed.

    Raises:
        click.UsageError: options that do not go together.
        EdgecnnError: something named cannot be used.
    """
    from edgecnn.parity import judge, record

    sides = {name: asked[name] for name in ("reference", "candidates", "data", "random")}
    check = ask(place, options=asked, **sides)
    tolerance = _changed(check.subject.tolerance, changes)
    recording = record(check.subject, check.reference, check.candidates, check.samples, tolerance)
    if asked["keep"]:
        from edgecnn.parity.evidence import write_evidence

        write_evidence(asked["keep"], recording)
        say(f"edgecnn: kept every answer in {asked['keep']}")
    report = judge(recording)
    if not asked["localize"]:
        return report, recording, []
    from edgecnn.parity.locating import locate

    return report, recording, locate(check.subject, check.reference, check.samples, report, say)


def replayed(
    first: Path, second: Path | None, changes: dict[str, float | None]
) -> tuple[ParityReport, Recording, list[Localization]]:
    """Judge a recording again, or a second one against it; as nothing is run, no place is looked for.

    Raises:
        EdgecnnError: one is none, or they are not of the same thing.
    """
    from edgecnn.parity.evidence import read_evidence

    before = read_evidence(first)
    tolerance = _changed(before.head.tolerance, changes)
    if second is None:
        from edgecnn.parity import judge

        return judge(before, tolerance), before, []
    from edgecnn.parity.replay import compare_recordings

    after = read_evidence(second)
    return compare_recordings(before, after, tolerance), after, []


def _changed(base: Tolerance, changes: dict[str, float | None]) -> Tolerance:
    """Put in what was given."""
    import msgspec

    return msgspec.structs.replace(base, **{name: value for name, value in changes.items() if value is not None})
