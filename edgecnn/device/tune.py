"""Find the settings with which a bundle runs fastest here: candidates whose answers pass parity race against the default.

The default stays in every race to its end. Who wins is then measured once more against the default, with sessions loaded afresh
several times, for two reasons: the fastest of many looks faster than it is, having been picked for its luck; and two sessions
of the very same settings differ by where their weights happen to lie in memory. So the default also runs against a second
copy of itself, and the winner has to be further from it than that copy is.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence

from edgecnn import __version__, host
from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.device import candidates
from edgecnn.device.profile import SCHEMA_VERSION, Key, Profile, Purpose, Settings, key_of
from edgecnn.device.racing import Interval
from edgecnn.device.trials import Row, Trials, said
from edgecnn.errors import UsageError
from edgecnn.host import Host
from edgecnn.spec import BackendRef, Frozen

SECONDS = 20.0
_FINAL = 0.3  # of the seconds
_LARGEST_BUSY = 0.25  # of all cores, by others, before the start


class Tuning(Frozen, frozen=True):
    """What was tried and what came of it; `settings` None means that the defaults are as good.

    `gain` is the winner's time an image over the default's, measured after the races, and `noise` that of a second copy of the
    default: both with 95 % intervals, None where the default won. `complete` is False where time ran out before a race was
    decided. `parity_seconds`, part of `taken_seconds`, went to loading and judging. `unusable` names what there seemed to be.
    """

    bundle: str
    purpose: Purpose
    seconds: float
    taken_seconds: float
    parity_seconds: float
    host: Host
    key: Key
    busy_cores_before: float
    default: Settings
    settings: Settings | None
    complete: bool
    gain: Interval | None
    noise: Interval | None
    rows: tuple[Row, ...]
    unusable: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def tune(
    bundle: Bundle,
    purpose: Purpose = "latency",
    seconds: float = SECONDS,
    asked: Sequence[BackendRef] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Race all choices of artifact, device, threads, spinning, optimization level and, for throughput, batch.

    `seconds` are for timing alone; loading and parity come on top. `asked` limits artifacts and devices, the first of them
    being the default. `tell` hears what happens, a line at a time.

    Raises:
        UsageError: no time, or a backend that has nothing to tune.
        VerdictError: the default's own answers fail parity here.
        EdgecnnError: the default, or something asked for, cannot be loaded.
    """
    if seconds <= 0:
        raise UsageError("tune needs more than 0 seconds")
    started, machine, busy = time.perf_counter(), host.fingerprint(), host.busy_cores()
    refs, unusable = candidates.references(bundle, asked)
    default = candidates.default_settings(refs[0], machine.usable_threads)
    trials = Trials(bundle, tell)
    winner, complete = _races(trials, refs, default, purpose, seconds * (1 - _FINAL))
    gain, noise = trials.final(default, winner, seconds * _FINAL) if winner != default else (None, None)
    return Tuning(
        bundle=bundle.manifest.name,
        purpose=purpose,
        seconds=seconds,
        taken_seconds=time.perf_counter() - started,
        parity_seconds=trials.parity_seconds,
        host=machine,
        key=key_of(bundle),
        busy_cores_before=busy,
        default=default,
        settings=winner if is_better(gain, noise) else None,
        complete=complete,
        gain=gain,
        noise=noise,
        rows=tuple(trials.rows.values()),
        unusable=tuple(unusable),
        warnings=_warnings(busy, machine, winner),
    )


def _races(
    trials: Trials, refs: Sequence[BackendRef], default: Settings, purpose: Purpose, seconds: float
) -> tuple[Settings, bool]:
    """Choose step by step, each in a race of what is left of the time; say whether all races were decided in it."""
    steps: list[Callable[[Settings], list[Settings]]] = [
        lambda chosen: candidates.kinds(refs, default, purpose),
        lambda chosen: candidates.with_spinning(chosen, default),
    ]
    if purpose == "throughput":
        steps.append(lambda chosen: candidates.in_batches(chosen, default))
    winner, complete = default, True
    for step, left in zip(steps, range(len(steps), 0, -1), strict=True):
        field = step(winner)
        if set(map(said, field)) <= {said(default), said(winner)}:
            continue  # nothing new
        start = time.perf_counter()
        winner, decided = trials.race(field, seconds / left)
        complete, seconds = complete and decided, max(0.0, seconds - (time.perf_counter() - start))
    return winner, complete


def is_better(gain: Interval | None, noise: Interval | None) -> bool:
    """Say whether a winner beats the default beyond noise: by all of its interval, and by more than two copies differ."""
    return gain is not None and noise is not None and gain.high < min(1.0, noise.low, 1 / noise.high)


def profile_of(tuning: Tuning) -> Profile:
    """Put what was found into a profile of this machine."""
    gain = tuning.gain if tuning.settings is not None else None
    return Profile(
        schema_version=SCHEMA_VERSION,
        edgecnn=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        bundle=tuning.bundle,
        key=tuning.key,
        purpose=tuning.purpose,
        settings=tuning.settings,
        gain=(gain.median, gain.low, gain.high) if gain is not None else None,
    )


def _warnings(busy: float, machine: Host, winner: Settings) -> tuple[str, ...]:
    checks = (
        (busy > _LARGEST_BUSY * machine.cores, f"other work kept {busy:.1f} of {machine.cores} cores busy just before the start"),
        (machine.governor in ("powersave", "ondemand", "conservative"), f"the CPU governor is {machine.governor}: the clock follows the load"),
        (winner.spinning != SessionOptions().spinning, "threads that spin take their cores from whatever else runs here, decoding too"),
    )  # fmt: skip
    return tuple(text for failed, text in checks if failed)
