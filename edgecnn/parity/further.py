"""What else is asked of a candidate once it has answered: the goldens, what it should answer, and some samples again."""

from __future__ import annotations

from edgecnn.backends.base import Array
from edgecnn.bundle import Goldens
from edgecnn.errors import BackendError, EdgecnnError
from edgecnn.parity.computation import find_fault
from edgecnn.parity.planning import GOLDENS
from edgecnn.parity.recording import SPECIFIED, SideArrays
from edgecnn.parity.running import run_all
from edgecnn.parity.samples import Indices, Samples
from edgecnn.parity.side import Side, fault_of
from edgecnn.parity.steadiness import run_again
from edgecnn.parity.subject import Subject
from edgecnn.parity.truth import Answers, specified

HANDFUL = 32  # samples on which a quantized file is run by onnx's evaluator, which is slow


def ask_further(side: Side, subject: Subject, samples: Samples, goldens: Goldens | None, truth: Answers | None) -> None:
    """Run what else is to be known of a candidate: the goldens, and some samples again."""
    answers = side.arrays.answers[subject.answer]
    if fault_of(side.arrays.answers, subject.bundle is not None):
        return  # the judge will say so, and nothing else counts
    on_truth = recorded = on_goldens = None
    if goldens is not None and (side.quantized or (truth is not None and truth.on_goldens)):
        on_goldens = answers if samples.record.kind == GOLDENS else _on_goldens(side, goldens, subject.answer)
    if truth is not None:
        on_truth = on_goldens if truth.on_goldens else answers[truth.places]
    if side.quantized:
        recorded = _recorded(side, subject, samples, goldens, truth)
    if goldens is None and recorded is not None and on_truth is not None:
        on_goldens = on_truth[: len(recorded)]
    runs = run_again(side.running, side.open, samples, answers, subject.answer)
    side.failed = runs.failed
    side.arrays = SideArrays(
        answers=side.arrays.answers, on_truth=on_truth, goldens=on_goldens, recorded=recorded, again=runs.pairs
    )


def _on_goldens(side: Side, goldens: Goldens, answer: str) -> Array:
    outputs = run_all(side.running, goldens.pixels)
    fault = find_fault(outputs)
    if fault:
        raise BackendError(f"on the goldens, {fault}")
    return outputs[answer]


def _recorded(
    side: Side, subject: Subject, samples: Samples, goldens: Goldens | None, truth: Answers | None
) -> Array | None:
    """Find what a quantized side should answer: as recorded at export, or by onnx's evaluator on a handful."""
    file = side.file
    if file is None or (goldens is None and truth is None):
        return None
    if goldens is not None and subject.is_own(file):
        return goldens.recorded.get(file.name)
    if side.runtime.startswith("onnx "):
        return None  # the evaluator is no oracle of itself
    if goldens is not None:
        feeds = iter([{subject.inputs[0].name: goldens.pixels}])
    elif truth is not None:
        few = handful(truth.places, samples.batch)
        feeds = samples.batches(len(few), few)
    try:
        found = specified(file, subject.answer, feeds)
    except (EdgecnnError, ValueError):
        return None  # without it the candidate is NOT MEASURED
    side.recorded_from = SPECIFIED
    return found if find_fault({"answer": found}) is None else None


def handful(places: Indices, batch: int | None) -> Indices:
    """Choose the samples for onnx's evaluator, the first of the truth's."""
    return places[: max(HANDFUL // (batch or 1) * (batch or 1), batch or 1)]
