"""Candidates as they run: loaded, let through by parity, timed in a race, and the winner against the default once more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import numpy as np

from edgecnn.backends.base import CheckedSession, Tensors, open_session
from edgecnn.bundle import Bundle
from edgecnn.device.gate import Gate, Passed
from edgecnn.device.profile import Settings, describe
from edgecnn.device.racing import Interval, Race, Runner, compare, race
from edgecnn.device.timing import time_round
from edgecnn.errors import EdgecnnError, VerdictError
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import BackendRef, Frozen

HEATS, HEAT_ROUNDS, FEWEST_ROUNDS = 5, 24, 6
DEFAULT, COPY, WINNER = "default", "its copy", "winner"


class Row(Frozen, frozen=True):
    """One candidate: what parity says of its answers, and how it fared in the last race that it was in.

    `us` is its median microseconds an image and `ratio` that over the default's in the same rounds, with a 95 % interval;
    `stopped` the seconds after which it stopped, None where it stayed to the end, and `why` the reason.
    """

    settings: Settings
    said: str
    verdict: Verdict
    reason: str
    rounds: int = 0
    us: float | None = None
    ratio: Interval | None = None
    stopped: float | None = None
    why: str | None = None


class Trials:
    """All candidates of one tuning; `rows` tells of each, `parity_seconds` what loading and judging took."""

    def __init__(self, bundle: Bundle, tell: Callable[[str], None]) -> None:
        self._bundle, self._tell = bundle, tell
        self._gate = Gate(bundle)
        self._pixels = bundle.goldens().pixels
        self.rows: dict[str, Row] = {}
        self.parity_seconds = 0.0

    def race(self, field: Sequence[Settings], seconds: float) -> tuple[Settings, bool]:
        """Let those whose answers pass race; the first is the default. Gives the winner, and whether it was decided in time.

        Raises:
            VerdictError: the default's answers fail parity.
        """
        with ExitStack() as stack:
            sessions = self._admit(field, stack)
            default, *others = [one for one in field if said(one) in sessions]
            self._tell(f"{len(others)} candidates race against {said(default)}")
            sample = {said(one): self._sampler(one, sessions[said(one)]) for one in (default, *others)}
            found = race(list(sample), lambda name: sample[name](), seconds, time.perf_counter, self._hear)
        self._keep(found)
        return self.rows[found.winner].settings, found.complete

    def final(self, default: Settings, winner: Settings, seconds: float) -> tuple[Interval, Interval]:
        """Time the winner, and a copy of the default, against the default, in sessions that are loaded afresh for each heat."""
        times: dict[str, list[float]] = {name: [] for name in (DEFAULT, COPY, WINNER)}
        for heat in range(HEATS):
            with ExitStack() as stack:
                sides = {
                    name: self._sampler(one, self._open(one, stack))
                    for name, one in ((DEFAULT, default), (COPY, default), (WINNER, winner))
                }
                for _ in range(2):  # the warm-up
                    _ = [sample() for sample in sides.values()]
                end, order = time.perf_counter() + seconds / HEATS, list(sides)
                for number in range(HEAT_ROUNDS):
                    if number >= FEWEST_ROUNDS and time.perf_counter() > end:
                        break
                    turn = (heat + number) % len(order)
                    for name in order[turn:] + order[:turn]:
                        times[name].append(sides[name]())
        return compare(times[WINNER], times[DEFAULT]), compare(times[COPY], times[DEFAULT])

    def _admit(self, field: Sequence[Settings], stack: ExitStack) -> dict[str, CheckedSession]:
        """Load every candidate, sharing sessions among batches, and keep those whose answers pass."""
        start = time.perf_counter()
        opened: dict[Settings, CheckedSession | None] = {}
        admitted: dict[str, CheckedSession] = {}
        for one in field:
            same = msgspec.structs.replace(one, batch=1)
            passed = Passed(verdict=Verdict.FAIL, reason="it does not load")
            if same not in opened:
                try:
                    opened[same] = self._open(one, stack)
                except EdgecnnError as error:
                    opened[same], passed = None, Passed(verdict=Verdict.FAIL, reason=str(error))
            session = opened[same]
            if session is not None:
                passed = self._gate.judge(BackendRef.parse(one.backend), session, one.batch)
            if passed.verdict is Verdict.PASS and session is not None:
                admitted[said(one)] = session
            elif one == field[0]:
                raise VerdictError(
                    f"{said(one)}, the default, is {passed.verdict.value} in parity here ({passed.reason}): see "
                    "`edgecnn verify`, and name what may be used with -c"
                )
            else:
                self._tell(f"out: {said(one)}: {passed.reason}")
            self.rows[said(one)] = Row(settings=one, said=said(one), verdict=passed.verdict, reason=passed.reason)
        self.parity_seconds += time.perf_counter() - start
        return admitted

    def _open(self, one: Settings, stack: ExitStack) -> CheckedSession:
        ref = BackendRef.parse(one.backend)
        return stack.enter_context(open_session(ref, self._bundle.artifact(ref.artifact), one.options))

    def _sampler(self, one: Settings, session: CheckedSession) -> Callable[[], float]:
        """Make the function that times a round, in seconds an image."""
        shape = (one.batch, *self._pixels.shape[1:])
        feeds: Tensors = {session.inputs[0].name: np.ascontiguousarray(np.resize(self._pixels, shape))}
        settle = one.spinning and one.threads > 1
        return lambda: time_round(session, feeds, settle) / one.batch

    def _hear(self, runner: Runner) -> None:
        self._tell(f"{len(runner.times)} rounds: {runner.name} stops, {runner.why}")

    def _keep(self, found: Race) -> None:
        default = found.runners[0]
        for runner in found.runners:
            self.rows[runner.name] = msgspec.structs.replace(
                self.rows[runner.name],
                rounds=len(runner.times),
                us=float(np.median(runner.times)) * 1e6,
                ratio=compare(runner.times, default.times) if runner is not default else None,
                stopped=runner.stopped,
                why=runner.why,
            )


def said(one: Settings) -> str:
    """Write a candidate in words; no two of different settings are written alike."""
    return describe(BackendRef.parse(one.backend), one.options, one.batch)
