"""Run every side over the same samples and keep what each answered; judging is another matter.

Each side is loaded once and sees each sample once. A batch is read once and given to all sides before the next is read, so
that images are decoded once however many sides there are, and none is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from edgecnn import host
from edgecnn.bundle import Goldens
from edgecnn.errors import DataError, EdgecnnError, UsageError
from edgecnn.parity.assembling import assemble
from edgecnn.parity.further import ask_further
from edgecnn.parity.planning import plan_reference, plan_side
from edgecnn.parity.recording import Recording
from edgecnn.parity.running import BATCH
from edgecnn.parity.samples import Samples
from edgecnn.parity.side import Side
from edgecnn.parity.subject import Subject
from edgecnn.parity.truth import Answers, Exact, exact_of, of_checkpoint, of_goldens, of_graph
from edgecnn.spec import Artifact, BackendRef, Tolerance


def record(
    subject: Subject,
    reference: BackendRef | None,
    candidates: Sequence[BackendRef],
    samples: Samples,
    tolerance: Tolerance | None = None,
) -> Recording:
    """Run reference and candidates over all samples.

    Without a reference a bundle's goldens are it, and an ONNX file's own graph in float64. A candidate that fails to load
    or to run keeps its reason, and the others go on.

    Raises:
        UsageError: no candidates, one named twice, or one that does not exist.
        DataError: there are no samples.
        EdgecnnError: the reference could not be loaded or run.
    """
    _check(candidates, samples)
    here = host.fingerprint()
    sides = [plan_side(subject, ref, str(ref), here) for ref in candidates]
    goldens = subject.bundle.goldens() if subject.bundle else None
    exact, why = (None, "") if subject.bundle else exact_of(subject, _reference_file(subject, reference))
    named = plan_reference(subject, reference, exact, samples, [side.ref for side in sides], here)
    if named is not None:
        sides.insert(0, named)
    with ExitStack() as stack:
        for side in sides:
            side.attempt(side.start, subject, stack)
        _run(sides, samples, subject)
        truth, why_not = _truth(subject, reference, sides, samples, goldens, exact)
        for side in sides[named is not None :]:
            side.attempt(ask_further, side, subject, samples, goldens, truth)
    return assemble(
        subject, sides, named, samples, goldens, truth, why or why_not, tolerance or subject.tolerance, here
    )


def _check(candidates: Sequence[BackendRef], samples: Samples) -> None:
    if not candidates:
        raise UsageError("parity needs at least one candidate")
    if not samples.record.n:
        raise DataError("no samples to run: nothing was compared")
    named = [str(ref) for ref in candidates]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each candidate once")


def _reference_file(subject: Subject, reference: BackendRef | None) -> Artifact | None:
    return subject.artifact(reference) if reference is not None else None


def _run(sides: Sequence[Side], samples: Samples, subject: Subject) -> None:
    """Give every batch to every side that still runs."""
    for feeds in samples.batches(BATCH):
        for side in sides:
            side.attempt(side.feed, feeds, samples.record.n, subject)
    for side in sides:
        side.attempt(side.finish, subject, samples.record.n)


def _truth(
    subject: Subject,
    reference: BackendRef | None,
    sides: Sequence[Side],
    samples: Samples,
    goldens: Goldens | None,
    exact: Exact | None,
) -> tuple[Answers | None, str]:
    """Find the truth: by the checkpoint where torch is the reference, else what the goldens record; of a model, its graph."""
    if subject.bundle is not None and goldens is not None:
        if reference is None or reference.backend != "torch":
            return of_goldens(goldens), ""
        places, double = of_checkpoint(subject.bundle, reference, samples, goldens)
        origin = f"torch in float64 on {len(places)} images"
        return Answers(origin, places, double, sides[0].arrays.answers[subject.answer][places]), ""
    if exact is None:
        return None, ""
    try:
        return of_graph(exact, samples), ""
    except EdgecnnError as error:
        return None, str(error)
