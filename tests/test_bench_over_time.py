"""Soak, pace, drift and energy, on clocks and /sys trees that are planted."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from edgecnn import registry
from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.bench import latency, over_time, paced, soak
from edgecnn.bench import run as bench_run
from edgecnn.bench.drift import judge_drift, theil_sen
from edgecnn.bench.energy import EnergyMeter
from edgecnn.bench.over_time import SoakReport, bench_soak
from edgecnn.bench.paced import measure_paced
from edgecnn.bench.run import UNTIMED, bench
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.cli.bench import DurationParam
from edgecnn.errors import UsageError
from edgecnn.report.bench import bench_text
from edgecnn.report.over_time import soak_page, soak_text
from edgecnn.report.svg import Line, plot_lines
from edgecnn.spec import Artifact, BackendRef, TensorSpec, to_json

FEEDS: dict[str, Array] = {"image": np.zeros((2, 2, 2, 1), dtype=np.uint8)}
FP32 = BackendRef.parse("onnxruntime:fp32")


class Machine:
    """A clock and a session of which each call takes what `cost` says of the moment, in microseconds; sleep is exact or late."""

    device = "cpu"
    inputs = (TensorSpec(name="image", shape=(None, 2, 2, 1), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(None, 2), dtype="float32"),)

    def __init__(self, cost: Callable[[float], float], oversleep: float = 0.0) -> None:
        self.now = 0
        self.cost, self.oversleep = cost, oversleep
        self.share: Callable[[float], float] = lambda now: 1.0
        self.used = 0.0
        self.began: list[float] = []
        self.listen: Callable[[float], None] = lambda seconds: None

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return self.now

    def process_time(self) -> float:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.now += round((seconds + self.oversleep) * 1e9)

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        start = self.now / 1e9
        self.began.append(start)
        self.now += round(self.cost(start) * 1000)
        self.used += self.share(start) * (self.now / 1e9 - start)
        self.listen(self.now / 1e9)
        return {"logits": np.zeros((len(feeds["image"]), 2), dtype=np.float32)}

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], Machine]:
    """Let the bench's modules read a machine's clock."""

    def plant(machine: Machine) -> Machine:
        for module in (soak, paced, latency):
            monkeypatch.setattr(module, "time", machine)
        return machine

    return plant


def write(root: Path, **files: object) -> None:
    """Write files of a planted /sys; two underscores stand for a slash, three for a colon."""
    for name, value in files.items():
        path = root / name.replace("___", ":").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def zone(root: Path, number: int, name: str, microjoules: object, reach: object = 1_000_000) -> Path:
    """Plant a RAPL zone and return its counter."""
    folder = root / "class" / "powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{reach}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


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


def test_energy_adds_up_packages_and_nothing_twice(tmp_path: Path) -> None:
    """Both packages count, cores inside them and the platform around them do not, nor a package's second driver."""
    first, second = zone(tmp_path, 0, "package-0", 100), zone(tmp_path, 1, "package-1", 200)
    inside, around = zone(tmp_path, 2, "core", 50), zone(tmp_path, 3, "psys", 900)
    again = zone(tmp_path, 4, "package-0", 100)
    meter = EnergyMeter(tmp_path)
    for path, count in ((first, 500_100), (second, 700_200), (inside, 999_999), (around, 999_999), (again, 500_100)):
        path.write_text(f"{count}\n")
    found = meter.total(seconds=2.0, images=100)
    assert found.joules == pytest.approx(1.2)
    assert found.watts == pytest.approx(0.6)
    assert found.joules_per_image == pytest.approx(0.012)
    assert found.domains == ("package-0", "package-1")


def test_energy_goes_on_where_the_counter_begins_again(tmp_path: Path) -> None:
    """A counter that wraps, twice between first and last reading, has counted everything that was read in between."""
    counter = zone(tmp_path, 0, "package-0", 900_000)
    meter = EnergyMeter(tmp_path)
    used = 0
    for now, spent in ((100_000, 200_000), (950_000, 850_000), (50_000, 100_000)):
        counter.write_text(f"{now}\n")
        meter.read()
        used += spent
    assert meter.read() == pytest.approx(used / 1e6)


@pytest.mark.parametrize(("count", "reach"), [("much", 10), (5, "far"), ("", 10)])
def test_counters_that_make_no_sense_are_not_readable(count: object, reach: object, tmp_path: Path) -> None:
    """A counter without a number, or one that does not say where it begins again, gives no energy and a reason."""
    zone(tmp_path, 0, "package-0", count, reach)
    found = EnergyMeter(tmp_path).total(1.0, 1)
    assert found.joules is None
    assert str(tmp_path) in str(found.reason)


def test_a_counter_for_root_alone_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Linux keeps the counter to root the reason says so."""
    counter = zone(tmp_path, 0, "package-0", 5)
    real = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path == counter:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "root alone" in str(EnergyMeter(tmp_path).total(1.0, 1).reason)


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


class Imitated(Machine):
    """A backend whose time means nothing."""

    name = "imitated"
    formats = ("onnx",)
    timed = False

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> Imitated:
        raise AssertionError("bench must not even load it")


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> BackendRef:
    """Register a backend that is not timed."""
    real = registry.get

    def get(group: Any, name: str) -> Any:
        return Imitated(lambda now: 1.0) if name == "imitated" else real(group, name)

    monkeypatch.setattr(registry, "get", get)
    return BackendRef.parse("imitated:int8")


def test_the_emulated_backend_is_not_timed() -> None:
    """Emulation says of itself that its time means nothing, and ONNX Runtime does not."""
    assert not bench_run.is_timed(BackendRef.parse("emulated:int8@haswell"))
    assert bench_run.is_timed(FP32)


def test_an_emulated_device_is_not_measured(imitated: BackendRef, bundle_folder: Path) -> None:
    """In a bench such a candidate has one line, not measured, and the others are compared with the first that is."""
    report = bench(Bundle.open(bundle_folder), [imitated, FP32], seconds=0.1, cold_runs=0)
    first, second = report.rows
    assert (first.latency, first.ratio, first.reason) == (None, None, UNTIMED)
    assert second.ratio is not None
    assert second.ratio.median == 1.0
    lines = bench_text(report).splitlines()
    assert f"imitated:int8: {UNTIMED}" in lines
    assert sum("imitated" in line for line in lines) == 1
    alone = bench(Bundle.open(bundle_folder), [imitated], seconds=0.1)
    assert not alone.trust.trusted
    assert UNTIMED in bench_text(alone)


def test_an_emulated_device_is_not_soaked(imitated: BackendRef, bundle_folder: Path) -> None:
    """Soaks and camera rates of such a candidate are refused."""
    with pytest.raises(UsageError, match="not measured"):
        bench_soak(Bundle.open(bundle_folder), [imitated], 1.0)


@pytest.mark.parametrize(
    ("written", "seconds"), [("60s", 60), ("90", 90), ("10m", 600), ("1.5 h", 5400), ("2min", 120)]
)
def test_durations_are_read(written: str, seconds: float) -> None:
    """Seconds, minutes and hours."""
    assert DurationParam().convert(written, None, None) == seconds


@pytest.mark.parametrize(
    "arguments",
    [
        ["--soak", "0s"], ["--soak", "soon"], ["--soak", "10s", "--paced", "30"], ["--soak", "10s", "--seconds", "1"],
        ["--soak", "10s", "--cold-runs", "1"], ["--html", "x.html"], ["--paced", "0"], ["--paced", "1", "--seconds", "1"],
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(arguments: list[str], bundle_folder: Path) -> None:
    """Options that contradict or do nothing are refused with exit code 2 and a single line."""
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), *arguments])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_soak_from_the_command_line(bundle_folder: Path, tmp_path: Path) -> None:
    """A soak of a second prints JSON that reads back as the report, whose page holds its plots and fetches nothing."""
    file = tmp_path / "soak.html"
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--soak", "1s", "--html", str(file), "--json"])
    assert done.exit_code == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=SoakReport)
    assert to_json(report).decode().strip() == done.stdout.strip()
    (one,) = report.soaks
    assert one.backend == f"onnxruntime:{Bundle.open(bundle_folder).manifest.default_artifact}"
    assert len(one.windows) == 10
    text = soak_text(report)
    assert ("drift: " in text, "throttling: " in text, "energy: " in text) == (True, True, True)
    page = file.read_text()
    assert page == soak_page(report)
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_pacing_from_the_command_line(bundle_folder: Path) -> None:
    """At 100 Hz for a second the report accounts for all 100 frames."""
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--paced", "100", "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.stderr
    (one,) = msgspec.json.decode(done.stdout, type=over_time.PacedReport).paced
    assert one.frames == 100
    assert json.loads(done.stdout)["conditions"]["threads"] == 1
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--paced", "100", "--seconds", "0.1"])
    assert "at 100 Hz" in done.stdout


def test_a_plot_puts_points_where_they_belong() -> None:
    """The line's points rise with the values, keep their order and proportions, and stay within the picture."""
    svg = plot_lines(
        "T<b>", "x & y", "y", [Line("a", [0, 1, 2, 4], [0, 10, 20, 40]), Line("b", [0, 4], [float("nan"), 5])]
    )
    root = ElementTree.fromstring(svg)
    line = next(one for one in root.iter() if one.tag.endswith("polyline"))
    points = np.array([[float(value) for value in pair.split(",")] for pair in line.attrib["points"].split()])
    assert np.all(np.diff(points[:, 0]) > 0)
    assert np.all(np.diff(points[:, 1]) < 0), "up is up"
    steps = np.diff(points, axis=0)
    assert steps[2] == pytest.approx(2 * steps[0], abs=0.2)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert points.min() >= 0
    assert points[:, 0].max() <= width
    assert points[:, 1].max() <= height
    assert any(one.text == "T<b>" for one in root.iter())


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 7.0], [1e12, 1.0000001e12]])
def test_any_values_can_be_plotted(values: list[float]) -> None:
    """Equal, tiny, huge and negative values give a picture whose numbers are all finite."""
    for from_zero in (True, False):
        svg = plot_lines("t", "x", "y", [Line("a", [0.0, 1.0], values)], from_zero)
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_nothing_to_plot_is_said() -> None:
    """Without a finite point there is a sentence in place of a picture."""
    assert "nothing to plot" in plot_lines("t", "x", "y", [Line("a", [0.0], [float("nan")])])
