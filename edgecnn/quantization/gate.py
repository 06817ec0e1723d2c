"""What keeps a worse model from being shipped: it must be no less accurate, faster on its target, and smaller."""

from __future__ import annotations

from typing import Literal

from edgecnn.parity import Verdict
from edgecnn.parity.decisions import Decisions
from edgecnn.quantization.race import Speed
from edgecnn.spec import Frozen

Unit = Literal["accuracy", "speed", "size"]


class Check(Frozen, frozen=True):
    """One demand and whether it is met; NOT MEASURED does not refuse, but is said."""

    what: Unit
    verdict: Verdict
    reason: str


class Gate(Frozen, frozen=True):
    """The three demands on a quantized model."""

    checks: tuple[Check, ...]

    @property
    def refusals(self) -> tuple[str, ...]:
        """Say, one sentence each, what forbids to ship it."""
        bad = (Verdict.FAIL, Verdict.INCONCLUSIVE)
        return tuple(f"{check.what}: {check.reason}" for check in self.checks if check.verdict in bad)


def judge(decisions: Decisions, speed: Speed | None, here: str | None, before: int, after: int) -> Gate:
    """Put the demands together.

    Args:
        decisions: on the evaluation images.
        speed: against the float model, or None where it was not measured.
        here: None where the target is this machine and must be faster here; else why that is not asked.
        before: bytes of the float file.
        after: bytes of the quantized one.
    """
    accuracy = Check(what="accuracy", verdict=decisions.verdict, reason=decisions.reason)
    return Gate(checks=(accuracy, _speed(speed, here), _size(before, after)))


def _speed(speed: Speed | None, here: str | None) -> Check:
    if speed is None:
        return Check(what="speed", verdict=Verdict.NOT_MEASURED, reason=f"not measured: {here or 'nothing ran'}")
    told = (
        f"it takes {speed.ratio:.3f} of the float model's time on this machine ({speed.low:.3f} to {speed.high:.3f}), "
        f"{speed.p50_us:.0f} against {speed.reference_us:.0f} us"
    )
    if here is not None:
        return Check(what="speed", verdict=Verdict.NOT_MEASURED, reason=f"{told}, which binds nobody: {here}")
    verdict = Verdict.PASS if speed.high < 1 else Verdict.FAIL if speed.low >= 1 else Verdict.INCONCLUSIVE
    return Check(what="speed", verdict=verdict, reason=told if verdict is Verdict.PASS else f"{told}: not faster")


def _size(before: int, after: int) -> Check:
    verdict = Verdict.PASS if after < before else Verdict.FAIL
    return Check(
        what="size", verdict=verdict, reason=f"{after:,} bytes, {after / before:.3f} of the float model's {before:,}"
    )
