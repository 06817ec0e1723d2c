"""A bundle on the box it is to run on: are its bytes whole, its answers the recorded ones, and its int8 worth having here?

What each artifact is held to:

- **answers** to the goldens, as `edgecnn parity` judges them, the decoder apart from the computation;
- **int8 kernels**: as many in ONNX Runtime's graph as where it was exported. Fewer are only a doubt where it is faster all the same;
- **saturation**: whether this CPU sums int8 products in 16 bits that do not hold them;
- **speed** of reduced precision against float32 on the same device, in turns;
- **memory** of a process that loads it and answers once, which is told and not judged.

The verdict is the worst of them. Everything that was answered is kept in the report, to be judged again elsewhere.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import msgspec

from edgecnn import host
from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.bench.cold import start_child
from edgecnn.bench.latency import Latency, Ratio, measure_latency, ratio
from edgecnn.bundle import Bundle
from edgecnn.device import fit, places
from edgecnn.device.decoders import compare_decoders, decoders, explain
from edgecnn.device.fit import Comparison, Saturation
from edgecnn.device.fused import Fused, judge_fused, kernels_here
from edgecnn.errors import DataError, EdgecnnError, SchemaError
from edgecnn.host import Host
from edgecnn.manifest import ArtifactRecord
from edgecnn.parity import ParityReport, Verdict, judge, record
from edgecnn.parity.compare import bundle_samples
from edgecnn.parity.evidence import pack_evidence
from edgecnn.parity.judge import Cell
from edgecnn.parity.recording import Recording
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef, Frozen

SECONDS = 1.0
_ACCELERATORS = ("cuda", "tensorrt")
_REPAIRED = ("onnxruntime", "emulated")  # backends that ask for exact kernels where VNNI is missing


class Memory(Frozen, frozen=True):
    """A process of its own that loaded the artifact and answered once: its peak (units of 1,000,000 bytes) and its time."""

    peak_mb: float
    cold_start_ms: float


class ArtifactCheck(Frozen, frozen=True):
    """One artifact on one device; `name` is how the verdict calls it, `exported` what export said of its speed.

    What was not measured is None, and `reasons` says why. `made_for` says what another target than this CPU means.
    """

    name: str
    artifact: str
    backend: str
    device: str
    precision: str
    target: str
    verdict: Verdict
    computation: Verdict
    speed: Verdict
    fused: Fused
    saturation: Saturation
    reasons: tuple[str, ...]
    made_for: str | None = None
    p50_us: float | None = None
    ratio: Ratio | None = None
    exported: str | None = None
    memory: Memory | None = None


class Verification(Frozen, frozen=True):
    """What was found of a bundle on this machine; `files` were hashed.

    `signer` is the fingerprint of the key whose signature was asked for and found good; `signature` says in words how it
    stands. `compared` holds what answers depend on, here and at export. `left` lists devices that were not verified and why.
    `evidence` is the recording of every answer, as `edgecnn parity --keep` writes it, in base64: `edgecnn parity --replay`
    reads it out of this report. `seconds` is what all of it took.
    """

    bundle: str
    files: int
    decoding: Verdict
    decoding_reason: str
    artifacts: tuple[ArtifactCheck, ...]
    host: Host
    signer: str | None = None
    signature: str = ""
    compared: tuple[Comparison, ...] = ()
    left: tuple[str, ...] = ()
    evidence: str = ""
    seconds: float = 0.0

    @property
    def refused(self) -> tuple[str, ...]:
        """Name the artifacts that must not be used here."""
        return tuple(one.name for one in self.artifacts if one.verdict is Verdict.FAIL)


def verify_bundle(
    bundle: Bundle,
    seconds: float = SECONDS,
    refs: Sequence[BackendRef] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Hash every file, run the goldens through every artifact, and time and weigh them; needs neither torch nor data.

    Args:
        bundle: opened with a key where a signature is asked for.
        seconds: of timing each artifact.
        refs: what to verify; by default every ONNX artifact on the CPU and on each usable device.
        say: is told of progress.

    Raises:
        BundleError: a file is not what the manifest recorded.
        UsageError: the bundle has not what is asked for.
    """
    start = time.perf_counter()
    say("hashing")
    bundle.verify()
    chosen, left = places.choose(bundle, refs)
    say(f"running {len(bundle.manifest.goldens.images)} goldens through {', '.join(map(str, chosen))}")
    recording = record(Subject.of_bundle(bundle), None, chosen, bundle_samples(bundle, None))
    report = judge(recording)
    say("timing")
    latencies = _latencies(bundle, [ref for ref in chosen if _answered(report, ref)], seconds)
    bases = {_place(ref): latencies.get(str(ref)) for ref in reversed(chosen) if _precision(bundle, ref) == "fp32"}
    checks = [_check(bundle, report, ref, latencies.get(str(ref)), bases.get(_place(ref))) for ref in chosen]
    machine = host.fingerprint()
    there = bundle.manifest.provenance.host
    decoding = compare_decoders(there, decoders())
    return Verification(
        bundle=bundle.manifest.name,
        files=len(bundle.manifest.files),
        decoding=report.decoding.verdict if report.decoding is not None else Verdict.NOT_MEASURED,
        decoding_reason=explain(bundle, report.decoding, decoding, _clean(checks)),
        artifacts=tuple(checks),
        host=machine,
        signer=bundle.signer,
        signature=_signature(bundle),
        compared=(*fit.compare_hosts(there, machine), *decoding),
        left=tuple(left),
        evidence=_evidence(recording, bundle),
        seconds=time.perf_counter() - start,
    )


def parse_verification(data: bytes, where: str) -> Verification:
    """Read a report that `edgecnn verify` wrote.

    Raises:
        SchemaError: it is something else, or of another version.
    """
    try:
        return msgspec.json.decode(data, type=Verification)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SchemaError(f"{where}: is no report of this edgecnn's verify ({error})") from None


def _signature(bundle: Bundle) -> str:
    claimed = bundle.claimed_signer
    if bundle.signer is not None:
        return f"signed by {bundle.signer}, as asked"
    return "not signed" if claimed is None else f"a signature that names {claimed}, not checked: give --key"


def _evidence(recording: Recording, bundle: Bundle) -> str:
    try:
        return base64.b64encode(pack_evidence(recording, bundle.manifest.name)).decode()
    except DataError:  # answers of a shape that cannot be kept have failed anyway
        return ""


def _cell(report: ParityReport, ref: BackendRef) -> Cell:
    return next(cell for cell in report.cells if cell.candidate == str(ref))


def _answered(report: ParityReport, ref: BackendRef) -> bool:
    """Say whether a candidate loaded and ran, whatever it answered."""
    where = _cell(report, ref).where
    return where is not None and where.error is None


def _place(ref: BackendRef) -> tuple[str, str]:
    return ref.backend, ref.device


def _precision(bundle: Bundle, ref: BackendRef) -> str:
    return bundle.artifact(ref.artifact).precision


def _latencies(bundle: Bundle, refs: Sequence[BackendRef], seconds: float) -> Mapping[str, Latency]:
    """Time, in turns, whatever a stopwatch says something of."""
    feeds = {bundle.manifest.inputs[0].name: bundle.goldens().pixels[:1]}
    timed = [ref for ref in refs if places.untimed(ref) is None]
    with ExitStack() as stack:
        sessions = {
            str(ref): stack.enter_context(open_session(ref, bundle.artifact(ref.artifact), SessionOptions(threads=1)))
            for ref in timed
        }
        return measure_latency(sessions, feeds, seconds) if sessions else {}


def _check(
    bundle: Bundle, report: ParityReport, ref: BackendRef, latency: Latency | None, base: Latency | None
) -> ArtifactCheck:
    """Judge one candidate; `base` is the latency of the float one on its device."""
    cell, artifact = _cell(report, ref), bundle.artifact(ref.artifact)
    details = bundle.manifest.artifacts[artifact.name]
    reduced = details.precision != "fp32"
    against = ratio(latency, base) if reduced and latency is not None and base is not None else None
    speed, speed_reason = _speed(against, details, ref)
    fused = _fused(bundle, ref, details, runs=_answered(report, ref))
    saturation = _saturation(bundle, ref, details)
    memory, memory_reason = _memory(bundle, ref) if _answered(report, ref) else (None, None)
    unsteady = [one for one in cell.steadiness if one.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)]
    judged = [cell.computation.verdict, *(one.verdict for one in unsteady), speed, saturation.verdict]
    if fused.verdict is Verdict.FAIL:  # a runtime that is faster in another way is not to be refused for it
        judged.append(Verdict.INCONCLUSIVE if speed is Verdict.PASS else Verdict.FAIL)
    cpu = places.cpu_of(ref)
    reasons = [cell.computation.reason, *(one.reason for one in unsteady), speed_reason, memory_reason]
    reasons += [part.reason for part in (fused, saturation) if details.precision == "int8"]
    return ArtifactCheck(
        name=artifact.name if (ref.backend, ref.device) == ("onnxruntime", "cpu") else str(ref),
        artifact=artifact.name,
        backend=ref.backend,
        device=ref.device,
        precision=details.precision,
        target=details.target,
        verdict=next((one for one in (Verdict.FAIL, Verdict.INCONCLUSIVE) if one in judged), cell.computation.verdict),
        computation=cell.computation.verdict,
        speed=speed,
        fused=fused,
        saturation=saturation,
        reasons=tuple(reason for reason in reasons if reason),
        made_for=fit.target_note(details.target, cpu) if cpu is not None and reduced else None,
        p50_us=latency.p50_us if latency is not None else None,
        ratio=against,
        exported=_exported(details),
        memory=memory,
    )


def _speed(against: Ratio | None, details: ArtifactRecord, ref: BackendRef) -> tuple[Verdict, str | None]:
    """Say whether reduced precision is faster here, by the quartiles of the rounds' ratios."""
    why = places.untimed(ref)
    if why is not None:
        return Verdict.NOT_MEASURED, f"latency not measured: {why}"
    if against is None:
        reduced = details.precision != "fp32"
        return Verdict.NOT_MEASURED, "not timed against fp32, which does not run beside it" if reduced else None
    if details.target in _ACCELERATORS and ref.device == "cpu":
        return Verdict.NOT_MEASURED, f"it is made for {details.target}, so its time on the CPU says nothing"
    told = f"it takes {against.median:.2f} of fp32's time here ({against.low:.2f} to {against.high:.2f})"
    if against.high < 1:
        return Verdict.PASS, told
    slower = against.low >= 1
    return (Verdict.FAIL if slower else Verdict.INCONCLUSIVE), f"{told}: " + ("use fp32" if slower else "no clear gain")


def _fused(bundle: Bundle, ref: BackendRef, details: ArtifactRecord, runs: bool) -> Fused:
    if details.precision != "int8" or not runs:
        return Fused(verdict=Verdict.NOT_MEASURED, reason="not int8" if runs else "it does not run")
    if (ref.backend, ref.device) != ("onnxruntime", "cpu"):
        return Fused(verdict=Verdict.NOT_MEASURED, reason=f"int8 kernels not counted: {ref} does not show its graph")
    try:
        return judge_fused(kernels_here(bundle.artifact(ref.artifact)), details.details)
    except EdgecnnError as error:
        return Fused(verdict=Verdict.NOT_MEASURED, reason=f"int8 kernels not counted: {error}")


def _saturation(bundle: Bundle, ref: BackendRef, details: ArtifactRecord) -> Saturation:
    cpu = places.cpu_of(ref)
    if cpu is None or details.format != "onnx":
        return Saturation(verdict=Verdict.NOT_MEASURED, reason="saturation not judged: not ONNX Runtime's CPU kernels")
    data = bundle.read(details.path)
    return fit.saturation(data, details.precision, details.target, cpu, ref.backend in _REPAIRED)


def _memory(bundle: Bundle, ref: BackendRef) -> tuple[Memory | None, str | None]:
    why = places.unweighed(ref)
    if why is not None:
        return None, f"memory not measured: {why}"
    try:
        found = start_child(bundle.root, ref, 1)
    except EdgecnnError as error:
        return None, f"memory not measured: {error}"
    return Memory(peak_mb=found["peak_mb"], cold_start_ms=found["total_ms"]), None


def _exported(details: ArtifactRecord) -> str | None:
    checks = details.details.get("gate", {}).get("checks", [])
    return next((check["verdict"] for check in checks if check["what"] == "speed"), None)


def _clean(checks: Sequence[ArtifactCheck]) -> BackendRef | None:
    """Choose what answers right and at once, to show what another decoder does."""
    good = next((one for one in checks if one.computation is Verdict.PASS and one.backend != "emulated"), None)
    return None if good is None else BackendRef(backend=good.backend, artifact=good.artifact, device=good.device)
