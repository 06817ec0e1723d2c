"""Bench over time: a soak, or a camera's rate, of a bundle's candidates, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgecnn import host
from edgecnn.backends.base import Session, SessionOptions, Tensors, open_session
from edgecnn.bench.paced import Paced, measure_paced
from edgecnn.bench.run import UNTIMED, golden_feeds, is_timed
from edgecnn.bench.soak import SHORTEST_SOAK, TOO_SHORT, Soak, soak
from edgecnn.bundle import Bundle
from edgecnn.errors import UsageError
from edgecnn.host import Host, Load
from edgecnn.predict import artifact_for
from edgecnn.spec import BackendRef, Frozen

Found = TypeVar("Found")


class Conditions(Frozen, frozen=True):
    """What was run, and what the machine was and did."""

    bundle: str
    batch: int
    threads: int
    host: Host
    busy_cores_before: float
    load_before: Load
    load_after: Load


class SoakReport(Frozen, frozen=True):
    """The soaks, in the order of the candidates."""

    conditions: Conditions
    soaks: tuple[Soak, ...]


class PacedReport(Frozen, frozen=True):
    """The candidates at a camera's rate, in their order."""

    conditions: Conditions
    paced: tuple[Paced, ...]


def bench_soak(
    bundle: Bundle, refs: Sequence[BackendRef], seconds: float, batch: int = 1, threads: int = 1
) -> SoakReport:
    """Soak each candidate for `seconds`; `threads` 0 means all that this process may use.

    Raises:
        UsageError: no candidates, one whose time says nothing, or too short a time.
    """
    if not seconds >= SHORTEST_SOAK:
        raise UsageError(TOO_SHORT)
    conditions, found = _each(
        bundle, refs, batch, threads, lambda name, session, feeds: soak(name, session, feeds, seconds)
    )
    return SoakReport(conditions=conditions, soaks=found)


def bench_paced(
    bundle: Bundle, refs: Sequence[BackendRef], hz: float, seconds: float, batch: int = 1, threads: int = 1
) -> PacedReport:
    """Run each candidate at `hz` for `seconds`; `threads` 0 means all that this process may use.

    Raises:
        UsageError: no candidates, one whose time says nothing, or too few frames.
    """
    conditions, found = _each(
        bundle, refs, batch, threads, lambda name, session, feeds: measure_paced(name, session, feeds, hz, seconds)
    )
    return PacedReport(conditions=conditions, paced=found)


def _each(
    bundle: Bundle,
    refs: Sequence[BackendRef],
    batch: int,
    threads: int,
    measure: Callable[[str, Session, Tensors], Found],
) -> tuple[Conditions, tuple[Found, ...]]:
    untimed = next((ref for ref in refs if not is_timed(ref)), None)
    if untimed is not None:
        raise UsageError(f"{untimed}: {UNTIMED}; leave it out")
    threads = threads or host.usable_threads()
    feeds = golden_feeds(bundle, batch)
    machine, busy, before = host.fingerprint(), host.busy_cores(), host.load()
    found, artifacts = list[Found](), [artifact_for(bundle, ref) for ref in refs]
    named = [
        (BackendRef(backend=ref.backend, artifact=artifact.name, device=ref.device), artifact)
        for ref, artifact in zip(refs, artifacts, strict=True)
    ]
    if not named or len({ref for ref, _ in named}) != len(named):
        raise UsageError("bench needs different candidates, and one at least")
    for ref, artifact in named[1:]:  # what does not load is not to be found out after an hour of the one before it
        open_session(ref, artifact, SessionOptions(threads=threads)).__exit__(None, None, None)
    for ref, artifact in named:
        with open_session(ref, artifact, SessionOptions(threads=threads)) as session:
            found.append(measure(str(ref), session, feeds))
        if getattr(found[-1], "interrupted", False):
            break
    conditions = Conditions(
        bundle=bundle.manifest.name,
        batch=batch,
        threads=threads,
        host=machine,
        busy_cores_before=busy,
        load_before=before,
        load_after=host.load(),
    )
    return conditions, tuple(found)
