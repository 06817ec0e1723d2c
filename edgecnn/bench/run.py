"""Bench a bundle: latency, throughput, cold start and memory of its candidates, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from edgecnn import host, registry
from edgecnn.backends.base import SessionOptions, Tensors, open_session
from edgecnn.bench.cold import ColdStart, measure_cold_start
from edgecnn.bench.latency import Latency, Ratio, measure_latency, ratio
from edgecnn.bench.trust import Trust, judge_trust
from edgecnn.bundle import Bundle
from edgecnn.errors import UsageError
from edgecnn.host import Host, Load
from edgecnn.predict import artifact_for
from edgecnn.spec import Artifact, BackendRef, Frozen

UNTIMED = "not measured: on an emulated device time says nothing"
_NOTES = {
    "remote": "its times hold the way there and back, and cold start and memory are this machine's; `edgecnn bench` on the box measures it"
}


class Row(Frozen, frozen=True):
    """One candidate; `ratio` compares it with the first that was measured, `reason` says why this one was not or what limits it."""

    backend: str
    artifact: str
    size: int
    latency: Latency | None
    ratio: Ratio | None
    cold_start: ColdStart | None
    reason: str | None = None


class BenchReport(Frozen, frozen=True):
    """All candidates of one interleaved measurement, with the conditions it was made under."""

    bundle: str
    batch: int
    threads: int
    seconds: float
    host: Host
    busy_cores_before: float
    load_before: Load
    load_after: Load
    trust: Trust
    rows: tuple[Row, ...]


def is_timed(ref: BackendRef) -> bool:
    """Say whether the time that a backend takes says anything."""
    return bool(getattr(registry.get(registry.BACKENDS, ref.backend), "timed", True))


def golden_feeds(bundle: Bundle, batch: int) -> Tensors:
    """Make a batch of a bundle's golden pixels, which repeat where they are too few."""
    pixels = bundle.goldens().pixels
    return {bundle.manifest.inputs[0].name: np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))}


def bench(
    bundle: Bundle,
    refs: Sequence[BackendRef],
    batch: int = 1,
    threads: int = 1,
    seconds: float = 2.0,
    cold_runs: int = 5,
) -> BenchReport:
    """Measure every candidate, interleaved, on the bundle's golden pixels.

    `threads` 0 means all that this process may use; `seconds` are for each candidate; `cold_runs` 0 skips the
    child processes.

    Raises:
        UsageError: no candidates, the same one twice, or a batch below 1.
    """
    if not refs or len({str(ref) for ref in refs}) != len(refs) or batch < 1 or threads < 0:
        raise UsageError("bench needs different candidates, a batch of at least 1 and no negative thread count")
    threads = threads or host.usable_threads()
    artifacts = {str(ref): artifact_for(bundle, ref) for ref in refs}
    timed = [ref for ref in refs if is_timed(ref)]
    machine, busy, before = host.fingerprint(), host.busy_cores(), host.load()
    latencies: dict[str, Latency] = {}
    if timed:
        with ExitStack() as stack:
            options = SessionOptions(threads=threads)
            sessions = {str(ref): stack.enter_context(open_session(ref, artifacts[str(ref)], options)) for ref in timed}
            latencies = measure_latency(sessions, golden_feeds(bundle, batch), seconds)
    after = host.load()
    cold = measure_cold_start(bundle.root, timed, threads, cold_runs) if cold_runs and timed else {}
    first = latencies[str(timed[0])] if timed else None
    rows = tuple(_row(name, artifacts[name], latencies.get(name), first, cold.get(name)) for name in map(str, refs))
    trust = judge_trust(machine, before, after, latencies.values(), busy)
    return BenchReport(
        bundle=bundle.manifest.name,
        batch=batch,
        threads=threads,
        seconds=seconds,
        host=machine,
        busy_cores_before=busy,
        load_before=before,
        load_after=after,
        trust=trust,
        rows=rows,
    )


def _row(name: str, artifact: Artifact, latency: Latency | None, first: Latency | None, cold: ColdStart | None) -> Row:
    return Row(
        backend=name,
        artifact=artifact.name,
        size=artifact.path.stat().st_size,
        latency=latency,
        ratio=ratio(latency, first) if latency is not None and first is not None else None,
        cold_start=cold,
        reason=UNTIMED if latency is None else _NOTES.get(BackendRef.parse(name).backend),
    )
