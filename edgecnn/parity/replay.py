"""Two recordings of the same thing from two machines: whether the second answers as the first does, backend by backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.errors import UsageError
from edgecnn.metrics import distance
from edgecnn.parity.computation import Computation, Noise, Recorded, Truth, find_fault, noise_of, share_of
from edgecnn.parity.decisions import Decisions, agree, judge_decisions, margins_of
from edgecnn.parity.distributions import is_distribution, logs, recorded_as_logs, truth_as_logs
from edgecnn.parity.judge import Cell, ParityReport
from edgecnn.parity.recording import Array, Recording, SideRecord
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Tolerance

_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_MEASURED, Verdict.PASS)


def compare_recordings(before: Recording, after: Recording, tolerance: Tolerance | None = None) -> ParityReport:
    """Judge the answers of `after` by those of `before`, for every side that both have.

    A float32 side may differ by `noise_multiple` times torch float32's own error, over all samples; a quantized one
    by `recorded_share` of its quantization error, or by `recorded_share_here` where CPU and runtime are the same.
    The unit is taken from whichever recording has it, the first before the second; distributions are compared as `judge`
    does. Answers that are equal to the bit need no unit. A side that only one has, or that ran another file, is listed as
    not measured. A candidate of which nothing was measured keeps the whole from passing; the reference of a recording does
    not, for a box may have no torch.

    Args:
        before: the recording of the machine that is trusted.
        after: that of the machine in question.
        tolerance: what is let pass; by default what the first recording says.

    Raises:
        UsageError: they are not of the same model, samples or labels.
    """
    _check_same(before, after)
    pair = _Pair(before, after, tolerance or before.head.tolerance)
    refs = dict.fromkeys(side.ref for recording in (before, after) for side in recording.head.sides)
    cells = tuple(_cell(ref, pair) for ref in refs)
    head = after.head
    what = "images" if head.samples.kind == "data" else "samples"
    return ParityReport(
        bundle=head.subject,
        reference=pair.origin,
        verdict=_overall(cells, {before.head.reference, after.head.reference}),
        decoding=None,
        cells=cells,
        tolerance=pair.tolerance,
        data=f"{head.samples.n} labelled {what}" if pair.labels is not None else None,
        host=head.host,
        samples=head.samples.said,
        random=head.samples.kind == "random",
        reference_host=before.head.host,
    )


@dataclass(frozen=True)
class _Pair:
    before: Recording
    after: Recording
    tolerance: Tolerance

    @property
    def origin(self) -> str:
        """What the second is compared with, in words."""
        head = self.before.head
        runtimes = dict.fromkeys(side.runtime for side in head.sides if side.error is None)
        return f"the recording of {head.created} on {head.host.cpu}, {head.host.system} ({', '.join(runtimes)})"

    @property
    def distribution(self) -> bool:
        """Whether the truth that either has says that the answer is one."""
        return any(one.float64 is not None and is_distribution(one.float64) for one in (self.before, self.after))

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The samples' classes, from whichever recording has them."""
        known = self.before.head.samples.labels or self.after.head.samples.labels
        return None if known is None else np.array(known, dtype=np.int64)

    def records(self, ref: str) -> tuple[SideRecord | None, SideRecord | None]:
        """What each recording says of a side; None where it has it not."""
        before, after = (
            next((side for side in recording.head.sides if side.ref == ref), None)
            for recording in (self.before, self.after)
        )
        return before, after

    def answers(self, ref: str) -> tuple[Array, Array]:
        """What each answered (N, classes)."""
        name = self.before.head.answer
        return self.before.sides[ref].answers[name], self.after.sides[ref].answers[name]


def _check_same(before: Recording, after: Recording) -> None:
    ours, theirs = before.head, after.head
    if ours.subject_sha256 != theirs.subject_sha256:
        raise UsageError(
            f"the recordings are of different models, {ours.subject} ({ours.subject_sha256[:12]}) and {theirs.subject} "
            f"({theirs.subject_sha256[:12]}): record the same bundle or file on both machines"
        )
    if ours.samples.sha256 != theirs.samples.sha256:
        versions = " and ".join(head.host.packages.get("pillow", "unknown") for head in (ours, theirs))
        raise UsageError(
            f"the recordings are of different samples, {ours.samples.said} and {theirs.samples.said}: feed both machines "
            f"the same; if the files are the same, they were decoded otherwise (Pillow {versions})"
        )
    if (ours.answer, ours.classes) != (theirs.answer, theirs.classes):
        raise UsageError(
            f"the recordings judge different outputs or classes, {ours.answer!r} of {len(ours.classes)} and "
            f"{theirs.answer!r} of {len(theirs.classes)}: record both with the same options"
        )
    if None not in (ours.samples.labels, theirs.samples.labels) and ours.samples.labels != theirs.samples.labels:
        raise UsageError("the recordings have different labels for the same samples: record both with the same labels")


def _cell(ref: str, pair: _Pair) -> Cell:
    first, second = pair.records(ref)
    known = [side for side in (second, first) if side is not None]
    computation = _unusable(ref, pair)
    agreement = decisions = None
    if computation is None:
        computation = _judged(ref, pair, known[0])
        head, (ours, theirs) = pair.before.head, pair.answers(ref)
        if head.names_classes:
            agreement = agree(ours, theirs, head.samples.names, head.classes, pair.labels)
            decisions = _decisions(ours, theirs, pair)
    return Cell(
        candidate=ref,
        artifact=known[0].artifact,
        computation=computation,
        decisions=decisions,
        agreement=agreement,
        where=msgspec.structs.replace(known[0], recorded_here=_same_place(ref, pair)),
    )


def _unusable(ref: str, pair: _Pair) -> Computation | None:
    """Say why a side cannot be compared: what the first recording lacks is not measured, what the second lacks is a fault."""
    first, second = pair.records(ref)
    if first is None or second is None:
        which, other = ("second", "first") if first is None else ("first", "second")
        return _without(f"only the {which} recording has it: record it on the {other} machine too", pair)
    if first.sha256 != second.sha256:  # neither has one where it is the model's own graph in float64
        files = " and ".join((side.sha256 or "unknown")[:12] for side in (first, second))
        return _without(f"the two did not run the same file ({files}): copy one of them to both machines", pair)
    reason = _fault(first, pair.before, pair.before)
    if reason:
        return _without(f"the first recording has nothing to compare with: {reason}", pair)
    reason = _fault(second, pair.after, pair.before)
    return _without(reason, pair, Verdict.FAIL) if reason else None


def _fault(side: SideRecord, recording: Recording, wanted: Recording) -> str | None:
    if side.error:
        return side.error
    answers = recording.sides[side.ref].answers
    for name, array in wanted.sides[side.ref].answers.items():
        if name not in answers:
            return f"output {name!r} is missing; it has {', '.join(sorted(answers))}"
        if answers[name].shape != array.shape:
            return f"output {name!r} has shape {answers[name].shape}, in the first recording {array.shape}"
    return next((fault for name, array in answers.items() if (fault := find_fault({name: array}))), None)


def _without(reason: str, pair: _Pair, verdict: Verdict = Verdict.NOT_MEASURED) -> Computation:
    return Computation(verdict=verdict, reason=reason, n=pair.before.head.samples.n, truth=pair.origin)


def _judged(ref: str, pair: _Pair, side: SideRecord) -> Computation:
    """Judge the difference: bits first, then in the unit of the side's kind."""
    ours, theirs = pair.answers(ref)
    equal, multiple, share = np.array_equal(ours, theirs), None, None
    if pair.distribution:
        ours, theirs = logs(ours), logs(theirs)
    if equal:
        verdict, reason = Verdict.PASS, f"the answers are the same to the bit on all {len(ours)} samples"
        multiple, share = (None, 0.0) if side.quantized else (0.0, None)
    elif side.quantized:
        share, tolerance = _share(ref, pair, ours, theirs), pair.tolerance
        allowed = tolerance.recorded_share_here if _same_place(ref, pair) else tolerance.recorded_share
        verdict, reason = _verdict(share, allowed, "its quantization error")
    else:
        noise, unit = _noise(pair)
        multiple = None if noise is None else noise.multiple(distance(ours, theirs))
        verdict, reason = _verdict(multiple, pair.tolerance.noise_multiple, f"{unit}'s own error against float64")
    return Computation(
        verdict=verdict,
        reason=reason,
        n=len(ours),
        truth=pair.origin,
        distance=distance(ours, theirs),
        multiple=multiple,
        share=share,
    )


def _verdict(value: float | None, allowed: float, unit: str) -> tuple[Verdict, str]:
    if value is None:
        reason = f"the answers differ, and neither recording has float64, so {unit} is not known: record where torch is installed"
        return Verdict.NOT_MEASURED, reason
    reason = f"the two machines' answers differ by {value:.3g} times {unit}; {allowed:g} is allowed"
    return Verdict.PASS if value <= allowed else Verdict.FAIL, reason


def _noise(pair: _Pair) -> tuple[Noise | None, str]:
    """Take float32's own error from the first recording that has it and in which it is one."""
    for recording in (pair.before, pair.after):
        if recording.float64 is not None and recording.float32 is not None:
            unit = recording.head.unit
            truth = Truth("", recording.float64, recording.float32, unit)
            noise = noise_of(truth_as_logs(truth) if pair.distribution else truth)
            if not noise.broken:
                return noise, unit
    return None, pair.before.head.unit


def _share(ref: str, pair: _Pair, ours: Array, theirs: Array) -> float | None:
    """Give the difference as a share of the side's quantization error, from the first recording that has float64."""
    for recording in (pair.before, pair.after):
        logits, truth = recording.sides[ref].on_truth, recording.float64
        if logits is not None and truth is not None and np.isfinite(logits).all():
            own = Recorded(logits, truth)
            return share_of(recorded_as_logs(own) if pair.distribution else own, ours, theirs)
    return None


def _same_place(ref: str, pair: _Pair) -> bool:
    """Say whether both ran it on the same CPU with the same runtime, so that int8 must answer the same."""
    places = [
        (recording.head.host.cpu, recording.head.host.features, side.runtime, side.device)
        for recording, side in zip((pair.before, pair.after), pair.records(ref), strict=True)
        if side is not None
    ]
    return len(places) == 2 and places[0] == places[1]


def _decisions(ours: Array, theirs: Array, pair: _Pair) -> Decisions | None:
    labels, head = pair.labels, pair.before.head
    if labels is None:
        return None
    return judge_decisions(
        ours.argmax(axis=1),
        theirs.argmax(axis=1),
        labels,
        head.samples.names,
        head.classes,
        pair.tolerance,
        (margins_of(ours), margins_of(theirs)),
    )


def _overall(cells: Sequence[Cell], references: set[str]) -> Verdict:
    """Take the worst of what was measured; a candidate of which nothing was, or no side at all, keeps it from passing."""
    verdicts: list[Verdict] = []
    for cell in cells:
        answers = [cell.computation.verdict, *([cell.decisions.verdict] if cell.decisions else [])]
        nothing = all(verdict is Verdict.NOT_MEASURED for verdict in answers)
        if nothing and cell.candidate in references:
            continue
        verdicts += [verdict for verdict in answers if nothing or verdict is not Verdict.NOT_MEASURED]
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), Verdict.NOT_MEASURED)
