"""The further runs of a candidate: the same once more, one sample at a time, and with another number of threads.

They are few, so that they cost next to nothing beside thousands of samples: a fault that changes with the batch, the
threads or the time shows on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgecnn.backends.base import Array, CheckedSession, SessionOptions
from edgecnn.errors import EdgecnnError
from edgecnn.host import usable_threads
from edgecnn.metrics import distance
from edgecnn.parity.computation import Noise, Recorded, Truth, find_fault, noise_of, share_of
from edgecnn.parity.running import BATCH, batch_of, join, run_batch
from edgecnn.parity.samples import Samples
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Frozen, Tolerance

SINGLES = 32  # samples run one at a time
AGAIN_SAMPLES = BATCH  # samples run again, and with other threads
What = Literal["repeat", "batch", "threads"]
_SAID: dict[What, str] = {
    "repeat": "the same samples once more",
    "batch": "one sample at a time",
    "threads": "another number of threads",
}


class Steadiness(Frozen, frozen=True):
    """Whether a candidate gives the same answers when the same samples are run otherwise.

    `n` samples were run. `max_abs` is the largest difference, and `multiple` what it is in units: of float32's own error,
    or for a quantized candidate of its quantization error. None where there is no unit, or nothing was run.
    """

    what: What
    verdict: Verdict
    reason: str
    n: int
    bit_equal: bool
    max_abs: float | None = None
    multiple: float | None = None


@dataclass(frozen=True)
class Runs:
    """What the further runs gave: pairs of answers by `what`, and why a run failed."""

    pairs: dict[str, tuple[Array, Array]]
    failed: dict[str, str]


def run_again(
    session: CheckedSession,
    open_again: Callable[[SessionOptions], CheckedSession],
    samples: Samples,
    answers: Array,
    answer: str,
) -> Runs:
    """Run a few samples again in all three ways; `answers` (N, classes) are those of the plain run."""
    found = Runs({}, {})
    first = min(len(answers), AGAIN_SAMPLES)
    plain = np.arange(first, dtype=np.int64)
    _try(found, "repeat", answers[:first], lambda: _run(session, samples, plain, BATCH, answer))
    if batch_of(session) is None and samples.batch is None and len(answers) > 1:
        few = min(len(answers), SINGLES)
        _try(found, "batch", answers[:few], lambda: _run(session, samples, plain[:few], 1, answer))

    def threaded() -> Array:
        with open_again(SessionOptions(threads=other_threads())) as other:
            return _run(other, samples, plain, BATCH, answer)

    _try(found, "threads", answers[:first], threaded)
    return found


def other_threads() -> int:
    """Choose a number of threads that the plain run did not have."""
    return 1 if usable_threads() > 1 else 2


def _try(found: Runs, what: What, before: Array, run: Callable[[], Array]) -> None:
    try:
        after = run()
    except EdgecnnError as error:
        found.failed[what] = str(error)
        return
    fault = find_fault({"answer": after}) or (
        f"it gives {after.shape}, not {before.shape}" * (after.shape != before.shape)
    )
    if fault:
        found.failed[what] = fault
    else:
        found.pairs[what] = (np.array(before), after)


def _run(session: CheckedSession, samples: Samples, places: Array, size: int, answer: str) -> Array:
    outputs = join([run_batch(session, feeds) for feeds in samples.batches(size, places)])[answer]
    return outputs.reshape(len(outputs), -1)


def judge_again(
    pairs: dict[str, tuple[Array, Array]], failed: dict[str, str], unit: Noise | Recorded | None, tolerance: Tolerance
) -> tuple[Steadiness, ...]:
    """Judge all three: the unit is float32's own error, or for a quantized candidate what was recorded of it."""
    return tuple(_judge_one(what, pairs.get(what), failed.get(what), unit, tolerance) for what in _SAID)


def unit_of(truth: Truth | None) -> Noise | None:
    """Take float32's own error as the unit, where it is noise."""
    noise = noise_of(truth) if truth is not None else None
    return None if noise is None or noise.broken else noise


def _judge_one(
    what: What,
    pair: tuple[Array, Array] | None,
    failed: str | None,
    unit: Noise | Recorded | None,
    tolerance: Tolerance,
) -> Steadiness:
    said = _SAID[what]
    if failed is not None:
        return Steadiness(what=what, verdict=Verdict.FAIL, reason=f"{said}: {failed}", n=0, bit_equal=False)
    if pair is None:
        reason = f"{said}: not run"
        if what == "batch":
            reason += ", for the model takes a fixed number at once, or there is one sample"
        return Steadiness(what=what, verdict=Verdict.NOT_MEASURED, reason=reason, n=0, bit_equal=False)
    before, after = pair
    n = len(before)
    if np.array_equal(before, after):
        return Steadiness(
            what=what, verdict=Verdict.PASS, reason=f"{said}: equal to the bit", n=n, bit_equal=True, max_abs=0.0
        )
    far = distance(before, after)
    if unit is None:
        verdict, multiple = Verdict.INCONCLUSIVE, None
        reason = f"{said}: off by up to {far.max_abs:.3g}, and there is no unit to judge that by"
    else:
        noise = isinstance(unit, Noise)
        multiple = unit.multiple(far) if isinstance(unit, Noise) else share_of(unit, before, after)
        allowed = tolerance.noise_multiple if noise else tolerance.recorded_share_here
        verdict = Verdict.PASS if multiple <= allowed else Verdict.FAIL
        of = "float32's own error" if noise else "its quantization error"
        reason = f"{said}: off by {multiple:.3g} times {of}; {allowed:g} is allowed"
    return Steadiness(
        what=what, verdict=verdict, reason=reason, n=n, bit_equal=False, max_abs=far.max_abs, multiple=multiple
    )
