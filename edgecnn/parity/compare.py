"""Run reference and candidates of a bundle over the same images and ask both questions of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from edgecnn import host, images
from edgecnn.backends.base import Array, CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.bundle import Bundle, Goldens
from edgecnn.data.dataset import LabelledImages
from edgecnn.errors import BackendError, BundleError, CheckpointError, ContractError, DataError, UsageError
from edgecnn.host import Host
from edgecnn.images import Pixels
from edgecnn.manifest import Manifest
from edgecnn.parity.computation import Computation, Recorded, Truth, find_fault, judge_float, judge_quantized
from edgecnn.parity.decisions import Decisions, judge_decisions
from edgecnn.parity.verdict import Verdict
from edgecnn.predict import artifact_for
from edgecnn.spec import Artifact, BackendRef, Frozen, Tolerance

BATCH = 64
TRUTH_IMAGES = 256  # float64 is slow, and more images do not change a judgement in units of noise
GOLDENS = "goldens"
RECORDED_BY = ("onnxruntime", "cpu")  # what gave the answers recorded in the goldens


class Cell(Frozen, frozen=True):
    """One candidate's answers to both questions."""

    candidate: str
    artifact: str
    computation: Computation
    decisions: Decisions | None


class Decoding(Frozen, frozen=True):
    """Whether this machine decodes the golden images to the recorded pixels."""

    verdict: Verdict
    reason: str
    n: int


class ParityReport(Frozen, frozen=True):
    """All candidates against one reference."""

    bundle: str
    reference: str
    verdict: Verdict
    decoding: Decoding
    cells: tuple[Cell, ...]
    tolerance: Tolerance
    data: str | None
    host: Host


def default_refs(bundle: Bundle) -> tuple[BackendRef | None, list[BackendRef]]:
    """Choose torch as the reference where it is installed (None: the goldens), and every ONNX artifact as candidates."""
    formats = {name: record.format for name, record in bundle.manifest.artifacts.items()}
    has_torch = find_spec("torch") is not None and find_spec("safetensors") is not None
    reference = BackendRef(backend="torch") if has_torch and "safetensors" in formats.values() else None
    candidates = [BackendRef(backend="onnxruntime", artifact=name) for name, kind in formats.items() if kind == "onnx"]
    return reference, candidates


def compare(
    bundle: Bundle,
    reference: BackendRef | None,
    candidates: Sequence[BackendRef],
    data: LabelledImages | None = None,
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Ask both questions of every candidate; without labelled `data` the second is not measured.

    A candidate that fails to load or to run is a FAIL with its reason, and the others go on. A reference that
    fails is an error: there is then nothing to compare with.

    Raises:
        UsageError: no candidates.
        DataError: the labelled images are none, or not of the bundle's labels.
        EdgecnnError: the reference could not be loaded or run.
    """
    if not candidates:
        raise UsageError("parity needs at least one candidate")
    if data is not None and not len(data):
        raise DataError("the labelled images are an empty set: nothing was compared")
    tolerance = tolerance or bundle.manifest.tolerance
    goldens = bundle.goldens()
    if reference is not None:
        artifact_for(bundle, reference)  # a reference that cannot be had is the user's mistake, data or not
        if reference.backend != "torch":
            open_session(reference, artifact_for(bundle, reference)).__exit__(None, None, None)
    truth = _truth(bundle, reference, goldens, data)
    chosen = _reference_classes(bundle, reference, data)
    cells = tuple(_cell(bundle, ref, truth, goldens, data, chosen, tolerance) for ref in candidates)
    decoding = _decoding(bundle, goldens)
    return ParityReport(
        bundle=bundle.manifest.name,
        reference=str(reference) if reference and (data is not None or reference.backend == "torch") else GOLDENS,
        verdict=_overall(decoding.verdict, cells),
        decoding=decoding,
        cells=cells,
        tolerance=tolerance,
        data=f"{len(data)} labelled images" if data is not None else None,
        host=host.fingerprint(),
    )


def _truth(bundle: Bundle, reference: BackendRef | None, goldens: Goldens, data: LabelledImages | None) -> Truth:
    """Take float64 from torch where torch is the reference, and from the goldens elsewhere."""
    if reference is None or reference.backend != "torch":
        return Truth("float64 in the goldens", goldens.pixels, goldens.logits_float64, goldens.logits_float32)
    pixels = goldens.pixels
    if data is not None:  # from end to end: a source may list its images class by class
        pixels = data.take(np.linspace(0, len(data) - 1, min(TRUTH_IMAGES, len(data))).astype(np.int64))
    artifact = artifact_for(bundle, reference)
    results = []
    for dtype in ("float64", "float32"):
        options = SessionOptions(dtype="float64" if dtype == "float64" else "float32")
        with open_session(reference, artifact, options) as session:
            recomputed = run_all(session, goldens.pixels)["logits"]
            results.append(run_all(session, pixels)["logits"])
        if dtype == "float64" and not np.allclose(recomputed, goldens.logits_float64, rtol=1e-9, atol=1e-9):
            raise BackendError(
                f"{bundle.root}: the checkpoint in float64 does not give the goldens' logits; one of the two was changed"
            )
    return Truth(f"torch in float64 on {len(pixels)} images", pixels, results[0], results[1])


def _reference_classes(
    bundle: Bundle, reference: BackendRef | None, data: LabelledImages | None
) -> npt.NDArray[np.integer] | None:
    if data is None or reference is None:
        return None
    if data.labels.min() < 0 or data.labels.max() >= len(bundle.manifest.labels):
        raise DataError(f"the images have labels that the bundle's {len(bundle.manifest.labels)} classes do not cover")
    with open_session(reference, artifact_for(bundle, reference)) as session:
        outputs = run_all(session, data)
    fault = find_fault(outputs)
    if fault:
        raise BackendError(f"{reference}, the reference: {fault}")
    return _classes(outputs["logits"])


def _classes(logits: Array) -> npt.NDArray[np.integer]:
    chosen: npt.NDArray[np.integer] = logits.argmax(axis=1)
    return chosen


def _cell(
    bundle: Bundle,
    ref: BackendRef,
    truth: Truth,
    goldens: Goldens,
    data: LabelledImages | None,
    chosen: npt.NDArray[np.integer] | None,
    tolerance: Tolerance,
) -> Cell:
    artifact = artifact_for(bundle, ref)
    try:
        with open_session(ref, artifact) as session:
            _check_signature(session, bundle.manifest)
            same = (ref.backend, ref.device) == RECORDED_BY and _exported_here(bundle)
            allowed = tolerance.recorded_share_here if same else tolerance.recorded_share
            computation = _computation(session, artifact, truth, goldens, tolerance, allowed)
            decisions = None
            if data is not None and chosen is not None and computation.distance is not None:
                outputs = run_all(session, data)
                fault = find_fault(outputs)
                if fault:
                    raise BackendError(fault)
                names = [data.name(index) for index in range(len(data))]
                answers = _classes(outputs["logits"])
                decisions = judge_decisions(chosen, answers, data.labels, names, bundle.manifest.labels, tolerance)
    except (BackendError, BundleError, CheckpointError) as error:
        computation, decisions = _failed(str(error), truth), None
    return Cell(candidate=str(ref), artifact=artifact.name, computation=computation, decisions=decisions)


def _computation(
    session: CheckedSession, artifact: Artifact, truth: Truth, goldens: Goldens, tolerance: Tolerance, allowed: float
) -> Computation:
    outputs = run_all(session, truth.pixels)
    fault = find_fault(outputs)
    if fault:
        return _failed(fault, truth)
    logits = outputs["logits"]
    if artifact.precision in ("fp32", "fp64"):
        return judge_float(logits, truth, tolerance)
    answers = goldens.recorded.get(artifact.name)
    if answers is None:
        return judge_quantized(logits, None, truth, None, allowed)
    repeated = run_all(session, goldens.pixels)
    fault = find_fault(repeated)
    if fault:
        return _failed(f"on the goldens, {fault}", truth)
    again = repeated["logits"]
    return judge_quantized(logits, again, truth, Recorded(goldens.pixels, answers, goldens.logits_float64), allowed)


def _exported_here(bundle: Bundle) -> bool:
    """Say whether this machine has the CPU and runtime of the exporting one, so that int8 must answer the same."""
    there, here = bundle.manifest.provenance.host, host.fingerprint()
    same_cpu = (there.get("cpu"), tuple(there.get("features", ()))) == (here.cpu, here.features)
    recorded = there.get("packages")
    if not isinstance(recorded, dict):
        return False
    runtimes = ("onnxruntime", "onnxruntime-gpu")
    return same_cpu and all(recorded.get(name) == here.packages.get(name) for name in runtimes)


def _check_signature(session: CheckedSession, manifest: Manifest) -> None:
    """Hold a candidate to the inputs and outputs that the manifest states, by name, dtype and shape.

    Raises:
        ContractError: it has others.
    """
    for side, stated, found in (
        ("input", manifest.inputs, session.inputs),
        ("output", manifest.outputs, session.outputs),
    ):
        wanted = {spec.name: (spec.dtype, spec.shape) for spec in stated}
        got = {spec.name: (spec.dtype, spec.shape) for spec in found}
        missing = sorted(set(wanted) - set(got))
        if missing:
            raise ContractError(f"{side} {missing[0]!r} is missing; it has {', '.join(sorted(got))}")
        different = sorted(name for name in got if wanted.get(name) != got[name])
        if different:
            name = different[0]
            obtained = "dtype {}, shape {}".format(*got[name])
            expected = "dtype {}, shape {}".format(*wanted[name]) if name in wanted else f"no such {side}"
            raise ContractError(f"{side} {name!r} has {obtained}; the manifest states {expected}")


def _failed(reason: str, truth: Truth) -> Computation:
    return Computation(verdict=Verdict.FAIL, reason=reason, n=len(truth.pixels), truth=truth.origin)


def run_all(session: CheckedSession, data: Pixels | LabelledImages) -> Tensors:
    """Run over all images in batches, decoded as they are needed where they are streamed, and join the outputs.

    Raises:
        DataError: there are no images.
        ContractError: an output has not one row for each image.
    """
    if not len(data):
        raise DataError("no images to run: nothing was compared")
    name = session.inputs[0].name
    parts = [session.run({name: batch}) for batch in _batches(data)]
    joined = {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
    short = [output for output, array in joined.items() if len(array) != len(data)]
    if short:
        raise ContractError(f"output {short[0]!r} has {len(joined[short[0]])} rows for {len(data)} images")
    return joined


def _batches(data: Pixels | LabelledImages) -> Iterator[Pixels]:
    if isinstance(data, LabelledImages):
        yield from data.chunks(BATCH)
    else:
        yield from (data[start : start + BATCH] for start in range(0, len(data), BATCH))


def _decoding(bundle: Bundle, goldens: Goldens) -> Decoding:
    preprocess = bundle.manifest.preprocess
    decoded = np.stack(
        [images.decode(data, preprocess, name) for name, data in zip(goldens.names, goldens.encoded, strict=True)]
    )
    off = np.abs(decoded.astype(np.int16) - goldens.pixels).reshape(len(decoded), -1).max(axis=1)
    different = int((off > 0).sum())
    if not different:
        return Decoding(verdict=Verdict.PASS, reason="decoded to exactly the recorded pixels", n=len(decoded))
    reason = (
        f"the decoder differs from the exporting machine's, by up to {off.max()} of 255 levels on {different} of "
        f"{len(decoded)} goldens: compare Pillow's version, the model is not at fault"
    )
    return Decoding(verdict=Verdict.FAIL, reason=reason, n=len(decoded))


def _overall(decoding: Verdict, cells: Sequence[Cell]) -> Verdict:
    """Take the worst; a candidate of which nothing was measured keeps the whole from passing."""
    verdicts = [decoding]
    for cell in cells:
        answers = [cell.computation.verdict, *([cell.decisions.verdict] if cell.decisions else [])]
        measured = [verdict for verdict in answers if verdict is not Verdict.NOT_MEASURED]
        verdicts += measured or [Verdict.NOT_MEASURED]
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_MEASURED, Verdict.PASS)
    return next(verdict for verdict in order if verdict in verdicts)
