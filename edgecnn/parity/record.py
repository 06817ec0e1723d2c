"""Run every side over the same samples and keep what each answered; judging is another matter.

Each side is loaded once and sees each sample once. A batch is read once and given to all sides before the next is read, so
that images are decoded once however many sides there are, and none is kept.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from edgecnn import __version__, host, images, registry
from edgecnn.backends.base import Array, CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.bundle import Bundle, Goldens
from edgecnn.errors import BackendError, BundleError, CheckpointError, DataError, EdgecnnError, UsageError
from edgecnn.host import Host
from edgecnn.parity.computation import find_fault
from edgecnn.parity.decisions import LISTED
from edgecnn.parity.recording import (
    EXPORTED,
    TORCH_FLOAT32,
    DecodingRecord,
    Recording,
    RecordingHead,
    SideArrays,
    SideRecord,
)
from edgecnn.parity.running import BATCH, join, run_all, run_batch
from edgecnn.parity.samples import Indices, Samples
from edgecnn.parity.steadiness import run_again
from edgecnn.parity.subject import LARGEST_ANSWER, Subject
from edgecnn.parity.truth import Answers, Exact, exact_of, of_checkpoint, of_goldens, of_graph, specified
from edgecnn.spec import Artifact, BackendRef, TensorSpec, Tolerance

GOLDENS, FLOAT64 = "goldens", "float64"
HANDFUL = 32  # samples on which a quantized file is run by onnx's evaluator, which is slow
SPECIFIED = "the answers of onnx's evaluator"
RECORDED_BY = ("onnxruntime", "cpu")  # what gave the answers recorded in the goldens
LARGEST = 1 << 28  # values of all answers of one side
_FAILURES = (BackendError, BundleError, CheckpointError)


@dataclass
class _Side:
    """One side while it runs: its session, what came out so far, or why it failed."""

    ref: str
    artifact: str
    precision: str
    device: str
    runtime: str
    open: Callable[[SessionOptions], CheckedSession]
    file: Artifact | None = None
    required: bool = False
    recorded_here: bool = False
    session: CheckedSession | None = None
    parts: list[Tensors] = field(default_factory=list)
    error: str | None = None
    arrays: SideArrays = field(default_factory=SideArrays)
    recorded_from: str = EXPORTED
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.precision not in ("fp32", "fp64")

    def attempt(self, work: Callable[..., None], *arguments: object) -> None:
        """Do something with this side that may fail: of the reference that is an error, of a candidate its answer."""
        if self.error is not None:
            return
        try:
            work(self, *arguments)
        except _FAILURES as error:
            if self.required:
                raise
            self.error = str(error)
            self.parts = []

    @property
    def running(self) -> CheckedSession:
        if self.session is None:
            raise BackendError(f"{self.ref} was not opened")
        return self.session

    def record(self) -> SideRecord:
        return SideRecord(
            ref=self.ref,
            artifact=self.artifact,
            precision=self.precision,
            quantized=self.quantized,
            sha256=self.file.sha256 if self.file else None,
            device=self.device,
            runtime=self.runtime,
            threads=host.usable_threads(),
            recorded_here=self.recorded_here,
            error=self.error,
            recorded_from=self.recorded_from,
            unsteady=self.failed,
        )


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
    sides = [_side(subject, ref, str(ref), here) for ref in candidates]
    goldens = subject.bundle.goldens() if subject.bundle else None
    exact, why = (None, "") if subject.bundle else exact_of(subject, _reference_file(subject, reference))
    named = _reference(subject, reference, exact, samples, [side.ref for side in sides], here)
    if named is not None:
        sides.insert(0, named)
    with ExitStack() as stack:
        for side in sides:
            side.attempt(_open, subject, stack)
        _run(sides, samples, subject)
        truth, why_not = _truth(subject, reference, sides, samples, goldens, exact)
        for side in sides[named is not None :]:
            side.attempt(_further, subject, samples, goldens, truth)
    return _recording(
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


def _side(subject: Subject, ref: BackendRef, name: str, here: Host) -> _Side:
    """Plan one side.

    Raises:
        UsageError: its artifact is not there.
        RegistryError: its backend is unknown, broken or not installed.
    """
    artifact = subject.artifact(ref)
    backend = registry.get(registry.BACKENDS, ref.backend)
    recorded_here = (
        subject.bundle is not None
        and subject.is_own(artifact)
        and (ref.backend, ref.device) == RECORDED_BY
        and _exported_here(subject.bundle, here)
    )
    return _Side(
        ref=name,
        artifact=artifact.name,
        precision=artifact.precision,
        device=ref.device,
        runtime=_runtime(ref.backend, getattr(backend, "requires", {})),
        open=lambda options: open_session(ref, artifact, options, backend),
        file=artifact,
        recorded_here=recorded_here,
    )


def _runtime(name: str, requires: Mapping[str, str]) -> str:
    """Name the package that runs, with its version."""
    from importlib import metadata

    for module in requires:
        for package in (module, f"{module}-gpu", f"{module}-openvino"):
            try:
                return f"{package} {metadata.version(package)}"
            except metadata.PackageNotFoundError:
                continue
    return name


def _reference(
    subject: Subject,
    reference: BackendRef | None,
    exact: Exact | None,
    samples: Samples,
    taken: Sequence[str],
    here: Host,
) -> _Side | None:
    """Plan the side that all others are paired with; None where that is the goldens, or the truth of a few samples."""
    if reference is not None:
        name = str(reference)
        side = _side(subject, reference, f"{name} as reference" if name in taken else name, here)
        side.required = True
        return side
    if exact is None or samples.record.labels is None or exact.unit != TORCH_FLOAT32:
        return None
    # Decisions are paired on every labelled sample, so that all need an answer, not only those of the truth.
    return _Side(
        ref=FLOAT64,
        artifact="model",
        precision="fp64",
        device="cpu",
        runtime=exact.origin,
        open=lambda options: CheckedSession(_Graph(exact, subject)),
        required=True,
    )


class _Graph:
    """An exact graph as a session that gives the answer in float64."""

    device = "cpu"

    def __init__(self, exact: Exact, subject: Subject) -> None:
        self._exact, self._answer = exact, subject.answer
        self.inputs = subject.inputs
        self.outputs = (TensorSpec(name=subject.answer, shape=(None, None), dtype="float64"),)

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        return {self._answer: self._exact.answer(dict(feeds), "float64").astype(np.float64)}

    def __enter__(self) -> _Graph:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _open(side: _Side, subject: Subject, stack: ExitStack) -> None:
    session = side.open(SessionOptions())
    stack.enter_context(session)
    if not side.required:
        subject.check(session)
    side.session = session


def _run(sides: Sequence[_Side], samples: Samples, subject: Subject) -> None:
    """Give every batch to every side that still runs."""
    for feeds in samples.batches(BATCH):
        for side in sides:
            side.attempt(_feed, feeds, samples.record.n, subject)
    for side in sides:
        side.attempt(_finish, subject, samples.record.n)


def _feed(side: _Side, feeds: Tensors, n: int, subject: Subject) -> None:
    outputs = run_batch(side.running, feeds)
    answer = outputs.get(subject.answer)
    if answer is None:
        raise BackendError(f"output {subject.answer!r} is missing; it has {', '.join(sorted(outputs))}")
    values = answer.size // len(answer)
    if values > LARGEST_ANSWER or sum(array.size // len(array) for array in outputs.values()) * n > LARGEST:
        raise DataError(
            f"{subject.name}: gives {values} values a sample, too many to keep for {n} samples; give fewer samples, "
            f"and an answer of at most {LARGEST_ANSWER} values"
        )
    side.parts.append({name: np.array(array) for name, array in outputs.items()})


def _finish(side: _Side, subject: Subject, n: int) -> None:
    outputs = join(side.parts)
    side.parts = []
    outputs[subject.answer] = outputs[subject.answer].reshape(n, -1)
    fault = fault_of(outputs, subject.bundle is not None)
    if fault and side.required:
        raise BackendError(f"{side.ref.removesuffix(' as reference')}, the reference: {fault}")
    side.arrays = SideArrays(answers=outputs)


def fault_of(outputs: Mapping[str, Array], softmaxed: bool) -> str | None:
    """Say what makes outputs unfit for comparison; in a bundle's, `probabilities` are the softmax of `logits`."""
    if softmaxed:
        return find_fault(outputs)
    return next((fault for name, array in outputs.items() if (fault := find_fault({name: array}))), None)


def _truth(
    subject: Subject,
    reference: BackendRef | None,
    sides: Sequence[_Side],
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


def _further(side: _Side, subject: Subject, samples: Samples, goldens: Goldens | None, truth: Answers | None) -> None:
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


def _on_goldens(side: _Side, goldens: Goldens, answer: str) -> Array:
    outputs = run_all(side.running, goldens.pixels)
    fault = find_fault(outputs)
    if fault:
        raise BackendError(f"on the goldens, {fault}")
    return outputs[answer]


def _recorded(
    side: _Side, subject: Subject, samples: Samples, goldens: Goldens | None, truth: Answers | None
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


def _recording(
    subject: Subject,
    sides: Sequence[_Side],
    named: _Side | None,
    samples: Samples,
    goldens: Goldens | None,
    truth: Answers | None,
    why: str,
    tolerance: Tolerance,
    here: Host,
) -> Recording:
    arrays = {side.ref: side.arrays for side in sides}
    answers = [found for side in sides if (found := side.arrays.answers.get(subject.answer)) is not None]
    size = truth.float64.shape[1] if truth is not None else answers[0].shape[1] if answers else 0
    of_samples = truth is not None and (not truth.on_goldens or samples.record.kind == GOLDENS)
    places = truth.places.tolist() if truth is not None and of_samples else []
    golden = goldens.logits_float64 if goldens is not None else None
    if goldens is None and truth is not None:
        rows = next((len(side.arrays.goldens) for side in sides if side.arrays.goldens is not None), 0)
        golden = truth.float64[:rows] if rows else None
    head = RecordingHead(
        subject=subject.name,
        subject_sha256=subject.sha256,
        answer=subject.answer,
        classes=subject.classes(size),
        tolerance=tolerance,
        reference=named.ref if named is not None else GOLDENS if subject.bundle else FLOAT64,
        sides=tuple(side.record() for side in sides),
        samples=samples.record,
        truth=truth.origin if truth is not None else None,
        truth_samples=tuple(places),
        decoding=_decoding(subject.bundle, goldens) if subject.bundle and goldens else None,
        host=here,
        edgecnn=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        unit=truth.unit if truth is not None else TORCH_FLOAT32,
        names_classes=_names_classes(subject, size),
        untrue=why,
    )
    return Recording(
        head=head,
        sides=arrays,
        float64=truth.float64.astype(np.float64) if truth is not None else None,
        float32=truth.float32 if truth is not None else None,
        golden_float64=golden,
        pictures=_pictures(head, arrays, samples),
    )


def _names_classes(subject: Subject, size: int) -> bool:
    """Say whether the answer is one row of scores: (N, C), or (N, C, 1, 1)."""
    shape = next(spec.shape for spec in subject.outputs if spec.name == subject.answer)
    return size > 1 and (len(shape) < 3 or all(side == 1 for side in shape[2:]))


def _pictures(head: RecordingHead, arrays: Mapping[str, SideArrays], samples: Samples) -> dict[int, Array]:
    """Take the pictures of the first answers of each side that differ from the reference's."""
    reference = arrays.get(head.reference, SideArrays()).answers.get(head.answer)
    wanted: set[int] = set()
    for side in arrays.values():
        answer = side.answers.get(head.answer)
        if reference is None or answer is None or answer.shape != reference.shape:
            continue
        wanted.update(np.flatnonzero(answer.argmax(axis=1) != reference.argmax(axis=1))[:LISTED].tolist())
    try:
        return samples.pictures(sorted(wanted))
    except EdgecnnError:  # a file that went away; a report without its thumbnail is still one
        return {}


def _decoding(bundle: Bundle, goldens: Goldens) -> DecodingRecord:
    preprocess = bundle.manifest.preprocess
    decoded = np.stack(
        [images.decode(data, preprocess, name) for name, data in zip(goldens.names, goldens.encoded, strict=True)]
    )
    off = np.abs(decoded.astype(np.int16) - goldens.pixels).reshape(len(decoded), -1).max(axis=1)
    return DecodingRecord(off=tuple(off.tolist()))


def _exported_here(bundle: Bundle, here: Host) -> bool:
    """Say whether this machine has the CPU and runtime of the exporting one, so that int8 must answer the same."""
    there = bundle.manifest.provenance.host
    same_cpu = (there.get("cpu"), tuple(there.get("features", ()))) == (here.cpu, here.features)
    recorded = there.get("packages")
    if not isinstance(recorded, dict):
        return False
    runtimes = ("onnxruntime", "onnxruntime-gpu")
    return same_cpu and all(recorded.get(name) == here.packages.get(name) for name in runtimes)
