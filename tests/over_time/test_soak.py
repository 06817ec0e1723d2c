"""Soaks: drift, rates, throttling and other work, on a clock and a /sys that are planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from over_time.machine import FEEDS, Machine, write, zone
from scipy import stats

from edgecnn.bench import over_time, soak
from edgecnn.bench.drift import judge_drift, theil_sen
from edgecnn.cli import cli
from edgecnn.errors import UsageError


def test_the_slope_is_scipys() -> None:
    """Slope and interval of Theil and Sen are those of scipy, on noise with a trend and with outliers."""
    rng = np.random.default_rng(0)
    for n in (3, 4, 10, 61):
        x = np.sort(rng.random(n)) * 60
        y = 100 - 0.3 * x + rng.standard_t(2, n)
        expected = stats.theilslopes(y, x, 0.95)
        assert theil_sen(x, y) == pytest.approx((expected.slope, expected.low_slope, expected.high_slope), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "noise", "trend"),
    [
        (0.0, 0.005, "steady"),
        (-0.2, 0.01, "slower"),
        (0.3, 0.01, "faster"),
        (0.0, 0.3, "unclear"),
        (-0.001, 0.0005, "steady"),
    ],
)
def test_planted_drift_is_found(change: float, noise: float, trend: str) -> None:
    """A planted change of the rate is called by its name, its size lies in the interval, and noise is not a trend."""
    rng = np.random.default_rng(1)
    seconds = np.arange(60.0)
    rates = 1000 * (1 + change * (seconds / seconds[-1] - 0.5)) * (1 + rng.normal(0, noise, 60))
    found = judge_drift(seconds, rates)
    assert found.trend == trend
    assert found.low - 1e-9 <= change <= found.high + 1e-9


def test_a_soak_counts_every_image(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """At a steady pace every window has the planted rate and latency, and images are calls times the batch."""
    machine = on(Machine(lambda now: 500.0))
    found = soak.soak("x", machine, FEEDS, 30, tmp_path)
    assert len(found.windows) == 60
    assert found.images == 2 * (len(machine.began) - 1)  # one call warms up
    assert all(window.images_per_second == pytest.approx(4000, rel=1e-3) for window in found.windows)
    assert {(window.p50_us, window.p99_us) for window in found.windows} == {(500.0, 500.0)}
    assert (found.drift.trend, found.slowest) == ("steady", pytest.approx(1.0, abs=1e-3))
    assert found.seconds == pytest.approx(30, rel=1e-3)


def test_a_soak_finds_the_machine_slowing_down(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A net that takes half as long again after a minute is found slower by about that, and a short stall is not a trend."""
    slowing = soak.soak("x", on(Machine(lambda now: 500 * (1 + now / 120))), FEEDS, 60, tmp_path)
    assert slowing.drift.trend == "slower"
    assert slowing.drift.low < 1 / 1.5 - 1 < slowing.drift.high + 0.1
    assert slowing.drift.change == pytest.approx(-0.4, abs=0.05)  # of the median rate
    stalled = soak.soak("x", on(Machine(lambda now: 5000.0 if 30 < now < 32 else 500.0)), FEEDS, 60, tmp_path)
    assert stalled.drift.trend == "steady"
    assert stalled.slowest == pytest.approx(0.1, abs=0.02)


def test_a_soak_misses_no_round_of_the_energy_counter(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A counter that begins again a dozen times in a soak has counted all that the planted watts amount to."""
    counter = zone(tmp_path, 0, "package-0", 0, reach=50_000_000)
    machine = on(Machine(lambda now: 20_000.0))  # few calls, each of which writes the counter
    with counter.open("r+") as file:

        def spend(now: float) -> None:
            file.seek(0)  # in place: a disk takes its time over a file that is emptied first
            file.write(f"{round(now * 10e6) % 50_000_000:08}\n")
            file.flush()

        machine.listen = spend
        found = soak.soak("x", machine, FEEDS, 60, tmp_path).energy
    assert found.watts == pytest.approx(10.0, rel=0.01)
    assert found.joules == pytest.approx(600.0, rel=0.01)


def test_a_soak_tells_other_work_from_heat(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """Windows in which the process had half of its processor are counted, and slow ones that had all of it are not."""
    crowded = Machine(lambda now: 1000.0 if 20 < now <= 40 else 500.0)
    crowded.share = lambda now: 0.5 if 20 < now <= 40 else 1.0
    assert soak.soak("x", on(crowded), FEEDS, 60, tmp_path).disturbed in (20, 21)
    assert soak.soak("x", on(Machine(crowded.cost)), FEEDS, 60, tmp_path).disturbed == 0


def test_calls_longer_than_a_window_are_still_measured(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """A net of seconds a call gives windows of one call each, with its true rate."""
    found = soak.soak("x", on(Machine(lambda now: 400_000.0)), FEEDS, 10, tmp_path)
    assert all(window.images_per_second == pytest.approx(5.0) for window in found.windows)
    assert found.drift.trend == "steady"


def test_ctrl_c_keeps_what_a_soak_has_found(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """After some windows Ctrl-C ends a soak with these, and says so; before it is Ctrl-C as anywhere."""

    def at(end: float) -> Callable[[float], float]:
        def cost(now: float) -> float:
            if now > end:
                raise KeyboardInterrupt
            return 500.0

        return cost

    found = soak.soak("x", on(Machine(at(30.5))), FEEDS, 60, tmp_path)
    assert (len(found.windows), found.interrupted) == (30, True)
    assert found.images == pytest.approx(30 * 4000, rel=0.001)
    assert found.seconds == pytest.approx(30, abs=0.51)
    with pytest.raises(KeyboardInterrupt):
        soak.soak("x", on(Machine(at(5.5))), FEEDS, 60, tmp_path)


def test_ctrl_c_in_a_soak_is_told_and_leaves_with_130(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures until then are printed, the candidates after it are not begun, and the exit code says what happened."""
    plain, begun = soak.soak, list[str]()

    def cut(name: str, *arguments: Any) -> soak.Soak:
        begun.append(name)
        return msgspec.structs.replace(plain(name, *arguments), interrupted=True)

    monkeypatch.setattr(over_time, "soak", cut)
    command = ["bench", str(bundle_folder), "--soak", "1s", "-c", "onnxruntime:fp32", "-c", "onnxruntime:int8"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 130
    assert begun == ["onnxruntime:fp32"]
    assert result.stdout.startswith("interrupted by Ctrl-C: of the time until then\nonnxruntime:fp32: ")


def test_a_soak_of_a_moment_is_refused(on: Callable[[Machine], Machine]) -> None:
    """Less than a second says nothing of time."""
    with pytest.raises(UsageError, match="at least 1 s"):
        soak.soak("x", on(Machine(lambda now: 1.0)), FEEDS, 0.5)


def test_throttling_is_told_by_each_of_its_signs(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """Counts that rise, a clock that comes down, heat and the firmware's flags that appear during the soak are told."""
    cpu = "devices__system__cpu__cpu0__"
    write(tmp_path, **{
        "class__thermal__thermal_zone0__type": "soc", "class__thermal__thermal_zone0__temp": 45_000,
        f"{cpu}cpufreq__scaling_cur_freq": 3_000_000, f"{cpu}thermal_throttle__core_throttle_count": 7,
        "devices__platform__soc__soc___firmware__get_throttled": "0x0",
    })  # fmt: skip
    machine = on(Machine(lambda now: 500.0))

    def heat(now: float) -> None:
        if now > 10:
            write(tmp_path, **{
                "class__thermal__thermal_zone0__temp": 91_000, f"{cpu}cpufreq__scaling_cur_freq": 1_500_000,
                f"{cpu}thermal_throttle__core_throttle_count": 12,
                "devices__platform__soc__soc___firmware__get_throttled": "0x4",
            })  # fmt: skip
            machine.listen = lambda seconds: None

    machine.listen = heat
    found = soak.soak("x", machine, FEEDS, 20, tmp_path).throttling
    assert "the cores slowed down 5 times for heat" in found.signs
    assert "the clock came down to 1500 from 3000 MHz" in found.signs
    assert "the firmware says: throttled now" in found.signs
    assert (found.hottest, found.celsius_before, found.celsius_highest) == ("soc", 45.0, 91.0)
    assert found.not_readable == ()


def test_a_cool_machine_shows_no_sign(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """Counts of long ago and a steady clock are no signs."""
    cpu = "devices__system__cpu__cpu0__"
    write(tmp_path, **{
        "class__thermal__thermal_zone0__type": "soc", "class__thermal__thermal_zone0__temp": 45_000,
        f"{cpu}cpufreq__scaling_cur_freq": 3_000_000, f"{cpu}thermal_throttle__core_throttle_count": 7,
    })  # fmt: skip
    assert soak.soak("x", on(Machine(lambda now: 500.0)), FEEDS, 5, tmp_path).throttling.signs == ()


def test_what_cannot_be_read_is_said_to_be_so(on: Callable[[Machine], Machine], tmp_path: Path) -> None:
    """In an empty /sys nothing is readable, and that is told rather than taken for coolness."""
    found = soak.soak("x", on(Machine(lambda now: 500.0)), FEEDS, 5, tmp_path)
    assert found.throttling.not_readable == ("temperature", "clock rate", "throttle counts")
    assert (found.energy.joules, found.energy.watts) == (None, None)
    assert "no package counts its energy" in str(found.energy.reason)
