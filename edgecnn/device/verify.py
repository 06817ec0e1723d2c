"""A bundle on the box it is to run on: are its bytes whole, its answers the recorded ones, and its int8 worth having here?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from edgecnn import host
from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.bench.latency import Latency, Ratio, measure_latency, ratio
from edgecnn.bundle import Bundle
from edgecnn.host import Host
from edgecnn.parity import ParityReport, Verdict, compare, default_refs
from edgecnn.spec import BackendRef, Frozen

SECONDS = 1.0
_ACCELERATORS = ("cuda", "tensorrt")


class ArtifactCheck(Frozen, frozen=True):
    """One artifact here: its answers against the goldens, and, of reduced precision, its time against the float one's.

    `exported` is what export said of its speed, None where it said nothing.
    """

    artifact: str
    target: str
    verdict: Verdict
    computation: Verdict
    speed: Verdict
    reasons: tuple[str, ...]
    p50_us: float | None
    ratio: Ratio | None
    exported: str | None


class Verification(Frozen, frozen=True):
    """What was found of a bundle on this machine; `files` were hashed."""

    bundle: str
    files: int
    decoding: Verdict
    decoding_reason: str
    artifacts: tuple[ArtifactCheck, ...]
    host: Host

    @property
    def refused(self) -> tuple[str, ...]:
        """Name the artifacts that must not be used here."""
        return tuple(one.artifact for one in self.artifacts if one.verdict is Verdict.FAIL)


def verify_bundle(bundle: Bundle, seconds: float = SECONDS) -> Verification:
    """Hash every file, run the goldens through every ONNX artifact, and time them against one another.

    Needs neither torch nor data.

    Raises:
        BundleError: a file is not what the manifest recorded.
        BackendError: an artifact does not load here.
    """
    bundle.verify()
    _, refs = default_refs(bundle)
    report = compare(bundle, None, refs)
    decoding = report.decoding
    latencies = _latencies(bundle, refs, seconds)
    first = next((ref for ref in refs if bundle.artifact(ref.artifact).precision == "fp32"), None)
    base = latencies.get(str(first)) if first is not None else None
    checks = [_check(bundle, report, ref, latencies[str(ref)], base if ref != first else None) for ref in refs]
    return Verification(
        bundle=bundle.manifest.name,
        files=len(bundle.manifest.files),
        decoding=decoding.verdict if decoding is not None else Verdict.NOT_MEASURED,
        decoding_reason=decoding.reason if decoding is not None else "the bundle has no golden images",
        artifacts=tuple(checks),
        host=host.fingerprint(),
    )


def _latencies(bundle: Bundle, refs: Sequence[BackendRef], seconds: float) -> Mapping[str, Latency]:
    feeds = {bundle.manifest.inputs[0].name: bundle.goldens().pixels[:1]}
    with ExitStack() as stack:
        sessions = {
            str(ref): stack.enter_context(open_session(ref, bundle.artifact(ref.artifact), SessionOptions(threads=1)))
            for ref in refs
        }
        return measure_latency(sessions, feeds, seconds)


def _check(
    bundle: Bundle, report: ParityReport, ref: BackendRef, latency: Latency, base: Latency | None
) -> ArtifactCheck:
    """Judge one artifact; `base` is the float one's latency, None for that itself."""
    cell = next(cell for cell in report.cells if cell.candidate == str(ref))
    record = bundle.manifest.artifacts[cell.artifact]
    against = ratio(latency, base) if base is not None else None
    speed, reason = _speed(against, record.target)
    unsteady = [one for one in cell.steadiness if one.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)]
    verdicts = (cell.computation.verdict, speed, *(one.verdict for one in unsteady))
    worst = next((one for one in (Verdict.FAIL, Verdict.INCONCLUSIVE) if one in verdicts), cell.computation.verdict)
    gate = record.details.get("gate", {}).get("checks", [])
    return ArtifactCheck(
        artifact=cell.artifact,
        target=record.target,
        verdict=worst,
        computation=cell.computation.verdict,
        speed=speed,
        reasons=(cell.computation.reason, *(one.reason for one in unsteady), *([reason] if reason else [])),
        p50_us=latency.p50_us,
        ratio=against,
        exported=next((check["verdict"] for check in gate if check["what"] == "speed"), None),
    )


def _speed(against: Ratio | None, target: str) -> tuple[Verdict, str | None]:
    """Say whether reduced precision is faster here, by the quartiles of the rounds' ratios."""
    if against is None:
        return Verdict.NOT_MEASURED, None
    if target in _ACCELERATORS:
        return Verdict.NOT_MEASURED, f"it is made for {target}, so its time on the CPU says nothing"
    told = f"it takes {against.median:.2f} of fp32's time here ({against.low:.2f} to {against.high:.2f})"
    if against.high < 1:
        return Verdict.PASS, told
    slower = against.low >= 1
    return (Verdict.FAIL if slower else Verdict.INCONCLUSIVE), f"{told}: " + ("use fp32" if slower else "no clear gain")
