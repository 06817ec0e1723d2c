"""From what was recorded to verdicts: pure, so that the same recording can be judged again, elsewhere, by other tolerances."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.errors import BackendError, DataError
from edgecnn.host import Host
from edgecnn.metrics import distance
from edgecnn.parity.computation import (
    Computation,
    Recorded,
    Truth,
    find_fault,
    judge_float,
    judge_half,
    judge_quantized,
)
from edgecnn.parity.decisions import Agreement, Decisions, Flip, agree, judge_decisions, margins_of
from edgecnn.parity.distributions import is_distribution, logs, recorded_as_logs, truth_as_logs
from edgecnn.parity.recording import (
    EXPORTED,
    SPECIFIED,
    Array,
    DecodingRecord,
    Recording,
    RecordingHead,
    SideArrays,
    SideRecord,
)
from edgecnn.parity.steadiness import Steadiness, judge_again, unit_of
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Frozen, Tolerance


class Cell(Frozen, frozen=True):
    """One candidate's answers to all questions; `where` says what ran it."""

    candidate: str
    artifact: str
    computation: Computation
    decisions: Decisions | None
    agreement: Agreement | None = None
    steadiness: tuple[Steadiness, ...] = ()
    where: SideRecord | None = None


class Decoding(Frozen, frozen=True):
    """Whether this machine decodes the golden images to the recorded pixels."""

    verdict: Verdict
    reason: str
    n: int


class ParityReport(Frozen, frozen=True):
    """All candidates against one reference; `bundle` is the subject's name, `decoding` is for bundles.

    `samples` says what was fed; `random` warns that it was no real data. `host` ran the candidates; `reference_host` is
    that of the first of two recordings, None where one machine ran all.
    """

    bundle: str
    reference: str
    verdict: Verdict
    decoding: Decoding | None
    cells: tuple[Cell, ...]
    tolerance: Tolerance
    data: str | None
    host: Host
    samples: str = ""
    random: bool = False
    reference_host: Host | None = None


def judge(recording: Recording, tolerance: Tolerance | None = None) -> ParityReport:
    """Ask all questions of every candidate; by the recorded tolerance where no other is given.

    Raises:
        DataError: there is no candidate or no sample.
        BackendError: the reference's answers are unfit.
    """
    head, tolerance = recording.head, tolerance or recording.head.tolerance
    if not recording.candidates or not head.samples.n:
        raise DataError(f"{head.subject}: the recording holds no candidate or no sample, so nothing was compared")
    reference = _reference(recording)
    truth = _truth(recording)
    cells = tuple(_cell(recording, side, truth, reference, tolerance) for side in recording.candidates)
    decoding = _decoding(head.decoding) if head.decoding is not None else None
    labelled = "labelled " if head.samples.labels is not None else ""
    what = "images" if head.samples.kind == "data" else "samples"
    return ParityReport(
        bundle=head.subject,
        reference=head.reference,
        verdict=_overall(decoding, cells, head.subject_sha256),
        decoding=decoding,
        cells=cells,
        tolerance=tolerance,
        data=f"{head.samples.n} {labelled}{what}" if head.samples.kind in ("data", "feeds") else None,
        host=head.host,
        samples=head.samples.said,
        random=head.samples.kind == "random",
    )


def _reference(recording: Recording) -> tuple[npt.NDArray[np.int64], Array] | None:
    """Give the answers that others are paired with, and the samples they are for: of one side, or of the truth.

    Raises:
        BackendError: they are unfit for comparison.
    """
    head = recording.head
    side = recording.sides.get(head.reference)
    if side is not None:
        error = next((one.error for one in head.sides if one.ref == head.reference), None)
        fault = error or _fault(head, side)
        if fault:
            raise BackendError(f"{head.reference}, the reference: {fault}")
        return np.arange(head.samples.n), side.answers[head.answer]
    if recording.float64 is None or not head.truth_samples:
        return None
    return np.array(head.truth_samples, dtype=np.int64), recording.float64


def _truth(recording: Recording) -> Truth | None:
    if recording.float64 is None or recording.float32 is None or recording.head.truth is None:
        return None
    return Truth(recording.head.truth, recording.float64, recording.float32, recording.head.unit)


def _cell(
    recording: Recording,
    side: SideRecord,
    truth: Truth | None,
    reference: tuple[npt.NDArray[np.int64], Array] | None,
    tolerance: Tolerance,
) -> Cell:
    head, arrays = recording.head, recording.sides.get(side.ref, SideArrays())
    fault = side.error or _fault(head, arrays) or _misfit(recording, arrays)
    if fault:
        n, told = (len(truth.float64), truth.origin) if truth else (head.samples.n, "none")
        computation = Computation(verdict=Verdict.FAIL, reason=fault, n=n, truth=told)
        return Cell(candidate=side.ref, artifact=side.artifact, computation=computation, decisions=None, where=side)
    recorded = _recorded(recording, side, arrays)
    own = recorded
    if side.quantized and own is None and truth is not None and arrays.on_truth is not None:
        own = Recorded(arrays.on_truth, truth.float64)
    unit = own if side.quantized else unit_of(truth)
    pairs = dict(arrays.again)
    if truth is not None and is_distribution(truth.float64):
        unit = (own and recorded_as_logs(own)) if side.quantized else unit_of(truth_as_logs(truth))
        pairs = {what: (logs(before), logs(after)) for what, (before, after) in pairs.items()}
    return Cell(
        candidate=side.ref,
        artifact=side.artifact,
        computation=_computation(head, side, arrays, truth, recorded, tolerance),
        decisions=_decisions(head, arrays, reference, tolerance),
        agreement=_agreement(head, arrays, reference),
        steadiness=judge_again(pairs, side.unsteady, unit, tolerance),
        where=side,
    )


def _fault(head: RecordingHead, arrays: SideArrays) -> str | None:
    """Say what makes a side's answers unfit; in a bundle's, `probabilities` are the softmax of `logits`."""
    if head.answer not in arrays.answers:
        return f"output {head.answer!r} is missing"
    if len(arrays.answers[head.answer]) != head.samples.n:
        return f"output {head.answer!r} has {len(arrays.answers[head.answer])} rows for {head.samples.n} samples"
    groups = [arrays.answers] if head.decoding is not None else [{name: one} for name, one in arrays.answers.items()]
    groups += [
        {name: one} for name in ("on_truth", "goldens", "recorded") if (one := getattr(arrays, name)) is not None
    ]
    return next((fault for group in groups if (fault := find_fault(group))), None)


def _misfit(recording: Recording, arrays: SideArrays) -> str | None:
    """Hold a candidate's outputs to the reference's, by name, dtype and shape, and to the truth's."""
    head = recording.head
    answer = arrays.answers[head.answer]
    if recording.float64 is not None and answer.shape[1:] != recording.float64.shape[1:]:
        return f"output {head.answer!r} has shape {answer.shape}, the truth's is {recording.float64.shape}"
    other = recording.sides.get(head.reference)
    record = next((one for one in head.sides if one.ref == head.reference), None)
    if other is None or record is None or record.precision == "fp64":
        return None
    if set(other.answers) != set(arrays.answers):
        return f"its outputs are {sorted(arrays.answers)}, the reference's {sorted(other.answers)}"
    for name, wanted in other.answers.items():
        got = arrays.answers[name]
        if (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
            return f"output {name!r} is {got.dtype} {got.shape}, the reference's is {wanted.dtype} {wanted.shape}"
    return None


def _recorded(recording: Recording, side: SideRecord, arrays: SideArrays) -> Recorded | None:
    if not side.quantized or arrays.recorded is None or arrays.goldens is None or recording.golden_float64 is None:
        return None
    if len(arrays.goldens) != len(arrays.recorded) or len(arrays.recorded) != len(recording.golden_float64):
        return None
    return Recorded(arrays.recorded, recording.golden_float64, side.recorded_from)


def _computation(
    head: RecordingHead,
    side: SideRecord,
    arrays: SideArrays,
    truth: Truth | None,
    recorded: Recorded | None,
    tolerance: Tolerance,
) -> Computation:
    if truth is None or arrays.on_truth is None:
        reason = head.untrue or "there is no float64 to judge by"
        return Computation(verdict=Verdict.NOT_MEASURED, reason=reason, n=head.samples.n, truth="none")
    if len(arrays.on_truth) != len(truth.float64):
        reason = f"it answered {len(arrays.on_truth)} of the truth's {len(truth.float64)} samples"
        return Computation(verdict=Verdict.FAIL, reason=reason, n=len(arrays.on_truth), truth=truth.origin)
    if side.quantized:
        return _of_quantized(side, arrays.on_truth, arrays.goldens, truth, recorded, tolerance)
    if is_distribution(truth.float64):
        return judge_float(logs(arrays.on_truth), truth_as_logs(truth), tolerance)
    return judge_float(arrays.on_truth, truth, tolerance)


def _of_quantized(
    side: SideRecord,
    on_truth: Array,
    again: Array | None,
    truth: Truth,
    recorded: Recorded | None,
    tolerance: Tolerance,
) -> Computation:
    if recorded is not None and not distance(recorded.float64, recorded.logits).max_abs:
        recorded = None  # an error of nothing is no unit
    if is_distribution(truth.float64):  # most of which is near 0 or 1, whatever the error behind it
        on_truth, again, truth = logs(on_truth), None if again is None else logs(again), truth_as_logs(truth)
        recorded = None if recorded is None else recorded_as_logs(recorded)
    if side.precision == "fp16" and recorded is not None and again is not None and recorded.source == SPECIFIED:
        return judge_half(on_truth, again, truth, recorded, tolerance)
    allowed = tolerance.recorded_share_here if side.recorded_here else tolerance.recorded_share
    return judge_quantized(on_truth, again, truth, recorded, allowed)


def _decisions(
    head: RecordingHead, arrays: SideArrays, reference: tuple[npt.NDArray[np.int64], Array] | None, tolerance: Tolerance
) -> Decisions | None:
    labels = head.samples.labels
    if labels is None or reference is None or not head.names_classes:
        return None
    places, theirs = reference
    ours = arrays.answers[head.answer][places]
    known = np.array(labels, dtype=np.int64)[places]
    names = [head.samples.names[place] for place in places]
    margins = (margins_of(theirs), margins_of(ours))
    found = judge_decisions(theirs.argmax(axis=1), ours.argmax(axis=1), known, names, head.classes, tolerance, margins)
    return msgspec.structs.replace(found, flips=_renumbered(found.flips, places))


def _agreement(
    head: RecordingHead, arrays: SideArrays, reference: tuple[npt.NDArray[np.int64], Array] | None
) -> Agreement | None:
    if reference is None or not head.names_classes:
        return None
    places, theirs = reference
    ours = arrays.answers[head.answer][places]
    labels = head.samples.labels
    known = None if labels is None else np.array(labels, dtype=np.int64)[places]
    found = agree(theirs, ours, [head.samples.names[place] for place in places], head.classes, known)
    return msgspec.structs.replace(found, flips=_renumbered(found.flips, places))


def _renumbered(flips: Sequence[Flip], places: npt.NDArray[np.int64]) -> tuple[Flip, ...]:
    """Count flips among all samples, where the reference answered some of them."""
    return tuple(msgspec.structs.replace(flip, index=int(places[flip.index])) for flip in flips)


def _decoding(record: DecodingRecord) -> Decoding:
    n, different = len(record.off), sum(off > 0 for off in record.off)
    if not n:
        raise DataError("the recording holds no golden image whose decoding was checked")
    if not different:
        return Decoding(verdict=Verdict.PASS, reason="decoded to exactly the recorded pixels", n=n)
    reason = (
        f"the decoder differs from the exporting machine's, by up to {max(record.off)} of 255 levels on {different} of "
        f"{n} goldens: compare Pillow's version, the model is not at fault"
    )
    return Decoding(verdict=Verdict.FAIL, reason=reason, n=n)


def _is_another(cell: Cell, subject_sha256: str) -> bool:
    """Say whether a candidate is a quantized file other than the subject, which nobody has vouched for.

    That it is computed as its operators are defined says nothing of what was rounded away: only decisions do.
    """
    side = cell.where
    return side is not None and side.quantized and side.recorded_from != EXPORTED and side.sha256 != subject_sha256


def _overall(decoding: Decoding | None, cells: Sequence[Cell], subject_sha256: str) -> Verdict:
    """Take the worst; a candidate of which nothing was measured keeps the whole from passing.

    Steadiness can only take away: answers that repeat are not yet right ones.
    """
    verdicts = [decoding.verdict] if decoding is not None else []
    for cell in cells:
        answers = [cell.computation.verdict, *([cell.decisions.verdict] if cell.decisions else [])]
        measured = [verdict for verdict in answers if verdict is not Verdict.NOT_MEASURED]
        verdicts += measured or [Verdict.NOT_MEASURED]
        verdicts += [Verdict.NOT_MEASURED] if cell.decisions is None and _is_another(cell, subject_sha256) else []
        verdicts += [one.verdict for one in cell.steadiness if one.verdict is not Verdict.NOT_MEASURED]
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_MEASURED, Verdict.PASS)
    return next(verdict for verdict in order if verdict in verdicts)
