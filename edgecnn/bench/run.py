"""Bench a bundle: latency, throughput, cold start and memory of its candidates, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from edgecnn import host
from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.bench.cold import ColdStart, measure_cold_start
from edgecnn.bench.latency import Latency, Ratio, measure_latency, ratio
from edgecnn.bench.trust import Trust, judge_trust
from edgecnn.bundle import Bundle
from edgecnn.errors import UsageError
from edgecnn.host import Host, Load
from edgecnn.predict import artifact_for
from edgecnn.spec import BackendRef, Frozen


class Row(Frozen, frozen=True):
    """One candidate; `ratio` compares it with the first candidate."""

    backend: str
    artifact: str
    size: int
    latency: Latency
    ratio: Ratio
    cold_start: ColdStart | None


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
    pixels = bundle.goldens().pixels
    feeds = {bundle.manifest.inputs[0].name: np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))}
    machine, busy, before = host.fingerprint(), host.busy_cores(), host.load()
    with ExitStack() as stack:
        options = SessionOptions(threads=threads)
        sessions = {str(ref): stack.enter_context(open_session(ref, artifacts[str(ref)], options)) for ref in refs}
        latencies = measure_latency(sessions, feeds, seconds)
    after = host.load()
    cold = measure_cold_start(bundle.root, refs, threads, cold_runs) if cold_runs else {}
    first = latencies[str(refs[0])]
    rows = tuple(
        Row(
            backend=name,
            artifact=artifacts[name].name,
            size=artifacts[name].path.stat().st_size,
            latency=latencies[name],
            ratio=ratio(latencies[name], first),
            cold_start=cold.get(name),
        )
        for name in (str(ref) for ref in refs)
    )
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
