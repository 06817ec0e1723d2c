"""A camera's rate: frames that are met, late and dropped, on a clock that is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from over_time.machine import FEEDS, Machine

from edgecnn.backends.base import Array, Tensors
from edgecnn.bench.paced import measure_paced
from edgecnn.errors import UsageError


def test_at_a_cameras_rate_every_frame_is_met(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A net that is fast enough answers every frame when it is due; latency is the run's, and the wake-up is apart."""
    machine = on(Machine(lambda now: 2000.0, oversleep=0.0001))
    found = measure_paced("x", machine, FEEDS, hz=50, seconds=4, system=tmp_path)
    assert (found.frames, found.dropped, found.late) == (200, 0, 0)
    assert (found.p50_us, found.max_us, found.flat_p50_us, found.ratio) == (2000.0, 2000.0, 2000.0, 1.0)
    assert found.wake_p50_us == pytest.approx(100.0)
    gaps = np.diff(machine.began)
    assert np.sum(np.isclose(gaps, 0.02, atol=1e-6)) == 199


def test_cold_caches_show_in_the_ratio(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A net that is slower after a rest is slower at the camera's rate than flat out, by what was planted."""
    machine = Machine(lambda now: 0.0)
    machine.cost = lambda now: 3000.0 if machine.sleeping else 2000.0  # type: ignore[attr-defined]
    machine.sleeping = False  # type: ignore[attr-defined]
    rest, work = machine.sleep, machine.run

    def sleep(seconds: float) -> None:
        rest(seconds)
        machine.sleeping = True  # type: ignore[attr-defined]

    def run(feeds: Mapping[str, Array]) -> Tensors:
        outputs = work(feeds)
        machine.sleeping = False  # type: ignore[attr-defined]
        return outputs

    machine.sleep, machine.run = sleep, run  # type: ignore[method-assign]
    found = measure_paced("x", on(machine), FEEDS, hz=50, seconds=4, system=tmp_path)
    assert (found.flat_p50_us, found.p50_us, found.ratio) == (2000.0, 3000.0, 1.5)


def test_frames_that_are_missed_are_counted(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A net that takes two and a half periods answers late and drops the frames that newer ones replace: all are accounted for."""
    machine = on(Machine(lambda now: 50_000.0))
    found = measure_paced("x", machine, FEEDS, hz=50, seconds=2, system=tmp_path)
    assert found.frames == 100
    assert found.dropped >= 50
    assert found.late == found.frames - found.dropped


def test_one_slow_run_costs_the_frames_it_covers(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A stall of 100 ms at 50 Hz answers one frame late, drops four, and the next are on time again."""
    machine = Machine(lambda now: 1000.0)
    paced_starts: list[float] = []
    rest = machine.sleep

    def sleep(seconds: float) -> None:
        paced_starts.append(machine.now / 1e9)
        rest(seconds)

    machine.sleep = sleep  # type: ignore[method-assign]
    machine.cost = lambda now: 100_000.0 if len(paced_starts) == 20 and now - paced_starts[-1] < 0.021 else 1000.0
    found = measure_paced("x", on(machine), FEEDS, hz=50, seconds=2, system=tmp_path)
    assert found.max_us == 100_000.0
    assert (found.dropped, found.late) == (4, 1)


def test_too_few_frames_are_refused(on: Callable[[Machine], Machine]) -> None:
    """A second at five hertz is no measurement."""
    with pytest.raises(UsageError, match="5 frames, and 10 are needed"):
        measure_paced("x", on(Machine(lambda now: 1.0)), FEEDS, hz=5, seconds=1)
