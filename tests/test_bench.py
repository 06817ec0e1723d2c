"""The bench: latencies on a clock that only the sessions move, trust, cold starts, and the whole on a real bundle."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import msgspec
import numpy as np
import pytest

from edgecnn import host
from edgecnn.backends.base import Array, CheckedSession, SessionOptions, Tensors
from edgecnn.bench import cold, latency
from edgecnn.bench import run as bench_run
from edgecnn.bench.cold import measure_cold_start
from edgecnn.bench.latency import Latency, measure_latency, ratio
from edgecnn.bench.run import BenchReport, bench
from edgecnn.bench.trust import judge_trust
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, EdgecnnError, UsageError
from edgecnn.host import Host, Load
from edgecnn.spec import BackendRef, TensorSpec, to_json

FP32 = BackendRef(backend="onnxruntime", artifact="fp32")
INT8 = BackendRef(backend="onnxruntime", artifact="int8")
FEEDS: dict[str, Array] = {"image": np.zeros((4, 2, 2, 1), dtype=np.uint8)}


class Clock:
    """A clock that stands still unless it is told to move."""

    def __init__(self) -> None:
        self.now = 1_000_000_000  # nanoseconds
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return self.now


class Session:
    """A session whose calls take as many microseconds of the clock as `cost` says for each."""

    device = "cpu"
    inputs = (TensorSpec(name="image", shape=(None, 2, 2, 1), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(None, 2), dtype="float32"),)

    def __init__(self, clock: Clock, name: str, cost: Callable[[int], float]) -> None:
        self._clock, self._name, self._cost = clock, name, cost
        self.taken: list[float] = []

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        microseconds = self._cost(len(self.taken))
        self.taken.append(microseconds)
        self._clock.calls.append(self._name)
        self._clock.now += round(microseconds * 1000)
        return {"logits": np.zeros((len(feeds["image"]), 2), dtype=np.float32)}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the latency module reads."""
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def test_every_call_is_accounted_for(clock: Clock) -> None:
    """First call, warm-up, one untimed call a round and the timed ones are all the calls there are."""
    session = Session(clock, "a", lambda call: 100.0)
    found = measure_latency({"a": session}, FEEDS, seconds=0.4)["a"]
    rounds = len(found.round_medians_us)
    assert rounds == 20
    assert found.warmup_calls in (1000, 1001)  # 0.1 s of 100 us
    assert len(session.taken) == 1 + found.warmup_calls + rounds + found.n
    assert found.n == pytest.approx(rounds * 199, abs=rounds)  # of 20 ms, the first 100 us are not counted


def test_statistics_are_of_all_timed_calls_with_nothing_trimmed(clock: Clock) -> None:
    """Percentiles, mean and maximum are numpy's over every timed call, the slow ones included."""
    rng = np.random.default_rng(0)
    costs = rng.gamma(4, 50, 100_000).round(3)
    costs[rng.integers(3000, 100_000, 400)] = 4000.0
    session = Session(clock, "a", lambda call: float(costs[call]))
    found = measure_latency({"a": session}, FEEDS, seconds=1.0)["a"]
    timed = _timed(session, found)
    assert found.n == len(timed) > 3000
    assert found.max_us == pytest.approx(4000.0)
    assert found.mean_us == pytest.approx(timed.mean(), rel=1e-9)
    ordered = np.sort(timed)
    for share, value in ((50, found.p50_us), (90, found.p90_us), (99, found.p99_us)):
        assert value == pytest.approx(ordered[int(np.ceil(share / 100 * len(ordered))) - 1], rel=1e-9)
    assert found.images_per_second == pytest.approx(4 / found.p50_us * 1e6)
    assert found.batch == 4


def _timed(session: Session, found: Latency) -> np.ndarray:
    """Replay the rounds' rule on the costs that the session kept, and return those that were timed."""
    calls, kept = session.taken[1 + found.warmup_calls :], []
    for _ in found.round_medians_us:
        spent, calls = calls[0] * 1000, calls[1:]
        count = 0
        while not count or spent < 20_000_000:
            kept.append(calls[count])
            spent += round(calls[count] * 1000)
            count += 1
        calls = calls[count:]
    assert not calls
    return np.array(kept)


def test_the_first_call_and_the_warm_up_do_not_count(clock: Clock) -> None:
    """A first call a thousand times slower, and a slow warm-up, are told apart from what is timed."""
    session = Session(clock, "a", lambda call: 50_000.0 if call == 0 else 20_000.0 if call <= 10 else 50.0)
    found = measure_latency({"a": session}, FEEDS, seconds=0.2)["a"]
    assert found.first_us == 50_000.0
    assert found.warmup_calls == 10
    assert (found.p50_us, found.max_us, found.mean_us) == (50.0, 50.0, pytest.approx(50.0))


def test_the_warm_up_lasts_ten_calls_at_least(clock: Clock) -> None:
    """A session too slow for the warm-up's time is still called ten times before it is timed."""
    found = measure_latency({"a": Session(clock, "a", lambda call: 300_000.0)}, FEEDS, seconds=0.1)["a"]
    assert found.warmup_calls == 10
    assert found.n == len(found.round_medians_us) == 8


def test_sessions_take_turns_and_change_their_order(clock: Clock) -> None:
    """Each round runs every session once, and the next round starts with the next session."""
    sessions = {name: Session(clock, name, lambda call: 1000.0) for name in "abc"}
    found = measure_latency(sessions, FEEDS, seconds=0.12)
    assert clock.calls[:3] == ["a", "b", "c"]
    timed = clock.calls[3 + sum(row.warmup_calls for row in found.values()) :]
    turns = [name for name, _ in groupby(timed)]
    assert turns == [name for name, _ in groupby("abcbcacababcbcacababcbca")]  # abc, bca, cab, and again: eight rounds


def test_the_ratio_of_a_session_twice_as_slow_is_two(clock: Clock) -> None:
    """The ratio is of the rounds' medians, round by round, and against itself it is one."""
    sessions = {"slow": Session(clock, "slow", lambda call: 200.0), "fast": Session(clock, "fast", lambda call: 100.0)}
    found = measure_latency(sessions, FEEDS, seconds=0.2)
    assert _values(ratio(found["slow"], found["fast"])) == (2.0, 2.0, 2.0)
    assert _values(ratio(found["fast"], found["slow"])) == (0.5, 0.5, 0.5)
    assert _values(ratio(found["fast"], found["fast"])) == (1.0, 1.0, 1.0)


def _values(value: latency.Ratio) -> tuple[float, float, float]:
    """Return median and quartiles."""
    return value.median, value.low, value.high


def test_drift_of_the_machine_touches_all_sessions_alike(clock: Clock) -> None:
    """While the machine becomes five times slower, the ratio of two sessions hardly moves, which is why they take turns."""

    def drifting(base: float) -> Callable[[int], float]:
        return lambda call: base * (1 + (clock.now - 1_000_000_000) / 1e9)

    sessions = {"slow": Session(clock, "slow", drifting(150.0)), "fast": Session(clock, "fast", drifting(100.0))}
    found = measure_latency(sessions, FEEDS, seconds=2.0)
    fast = np.array(found["fast"].round_medians_us)
    assert fast[-1] > 3 * fast[0]
    between = ratio(found["slow"], found["fast"])
    assert 1.5 / 1.03 < between.low <= between.median <= between.high < 1.5 * 1.03
    assert found["fast"].round_spread > 0.3


def test_the_spread_is_of_the_rounds(clock: Clock) -> None:
    """Steady calls have no spread, and rounds that take turns at two speeds have the quartiles' distance."""
    steady = measure_latency({"a": Session(clock, "a", lambda call: 100.0)}, FEEDS, seconds=0.2)["a"]
    assert steady.round_spread == 0.0
    medians = np.array(steady.round_medians_us)
    assert np.all(medians == 100.0)
    restless = Session(clock, "b", lambda call: 100.0 + 100.0 * ((clock.now // 20_000_000) % 2))
    found = measure_latency({"b": restless}, FEEDS, seconds=0.4)["b"]
    low, middle, high = np.percentile(found.round_medians_us, [25, 50, 75])
    assert found.round_spread == pytest.approx((high - low) / middle)
    assert found.round_spread > 0.3


def test_more_seconds_mean_more_rounds_and_never_fewer_than_eight(clock: Clock) -> None:
    """The rounds follow the seconds asked for, and a moment still gives eight."""
    for seconds, rounds in ((1e-6, 8), (0.1, 8), (0.3, 15), (1.0, 50)):
        found = measure_latency({"a": Session(clock, "a", lambda call: 500.0)}, FEEDS, seconds=seconds)["a"]
        assert len(found.round_medians_us) == rounds


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (1, 0.0), (1, -1.0)])
def test_nothing_to_measure_is_an_error(count: int, seconds: float, clock: Clock) -> None:
    """No session, or no time, is refused before anything is called."""
    sessions = {str(index): Session(clock, "a", lambda call: 1.0) for index in range(count)}
    with pytest.raises(UsageError, match="at least one session"):
        measure_latency(sessions, FEEDS, seconds)
    assert clock.calls == []


def test_a_session_that_sleeps_is_slower_on_the_real_clock() -> None:
    """On the machine's own clock a session that sleeps is told from one that does nothing, by a wide margin."""

    class Sleeper(Session):
        def run(self, feeds: Mapping[str, Array]) -> Tensors:
            time.sleep(0.003)
            return {}

    class Idler(Session):
        def run(self, feeds: Mapping[str, Array]) -> Tensors:
            return {}

    idle = Clock()
    sessions = {"sleeper": Sleeper(idle, "s", lambda call: 0), "idler": Idler(idle, "i", lambda call: 0)}
    found = measure_latency(sessions, FEEDS, seconds=0.1)
    assert found["sleeper"].p50_us >= 3000
    assert ratio(found["sleeper"], found["idler"]).median > 10


MACHINE = Host(
    system="Linux", machine="x86_64", cpu="some", features=(), cores=4, usable_threads=4, governor="performance",
    cgroup_cpus=None, python="3.11", packages={},
)  # fmt: skip
QUIET = Load(load_average=0.1, throttled_periods=3, stolen_ticks=1000, memory_available_mb=4000)


def _latency(n: int = 5000, spread: float = 0.01) -> Latency:
    return Latency(
        n=n, batch=1, p50_us=1, p90_us=1, p99_us=1, max_us=1, mean_us=1, first_us=1, warmup_calls=1,
        images_per_second=1, round_spread=spread, round_medians_us=(1.0,),
    )  # fmt: skip


def test_a_quiet_machine_is_trusted() -> None:
    """Without a reason against it the measurement is trusted."""
    found = judge_trust(MACHINE, QUIET, QUIET, [_latency(), _latency()])
    assert found.trusted
    assert found.reasons == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"busy": {"busy_cores": 1.1}}, "other work kept 1.1 of 4 cores busy"),
        ({"after": {"throttled_periods": 4}}, "throttled"),
        ({"after": {"stolen_ticks": 1101}}, "took 1.0 s of CPU time away"),
        ({"machine": {"governor": "powersave"}}, "governor is powersave"),
        ({"machine": {"governor": "ondemand"}}, "governor is ondemand"),
        ({"latency": {"spread": 0.11}}, "spread by 11% (interquartile), over 10%"),
        ({"latency": {"n": 999}}, "only 999 timed calls"),
    ],
)
def test_each_reason_alone_takes_the_trust_away(change: dict[str, dict[str, Any]], reason: str) -> None:
    """Other load, throttling, stolen time, a saving governor, unsteady rounds and few calls each are told."""
    machine = msgspec.structs.replace(MACHINE, **change.get("machine", {}))
    before, after = (msgspec.structs.replace(QUIET, **change.get(name, {})) for name in ("before", "after"))
    found = judge_trust(
        machine, before, after, [_latency(), _latency(**change.get("latency", {}))], **change.get("busy", {})
    )
    assert not found.trusted
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_what_is_just_allowed_is_trusted() -> None:
    """A quarter of the cores busy, any load average, a second of stolen time and old throttling are no reasons."""
    before = msgspec.structs.replace(QUIET, load_average=8.0)
    after = msgspec.structs.replace(QUIET, load_average=9.0, stolen_ticks=1100)
    assert judge_trust(MACHINE, before, after, [_latency(n=1000, spread=0.10)], busy_cores=1.0).trusted


def test_reasons_add_up_and_no_candidates_are_not_trusted() -> None:
    """All reasons are told, not the first alone, and a measurement of nothing is not trusted."""
    assert len(judge_trust(MACHINE, QUIET, QUIET, [_latency(n=5, spread=0.5)], busy_cores=4.0).reasons) == 3
    assert not judge_trust(MACHINE, QUIET, QUIET, []).trusted


def _fake_child(monkeypatch: pytest.MonkeyPatch, returncode: int = 0, stderr: str = "") -> list[list[str]]:
    """Answer in place of child processes: the number of the start in milliseconds, spread over the stamps."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        number = len(commands)
        stamps = {"started": 1, "imported": 11, "loaded": 31, "answered": 61}
        scaled = {name: value * number * 1_000_000 for name, value in stamps.items()}
        return SimpleNamespace(
            returncode=returncode, stderr=stderr, stdout=json.dumps({**scaled, "peak_kb": 1000 * number})
        )

    monkeypatch.setattr(cold.subprocess, "run", run)
    monkeypatch.setattr(cold, "time", SimpleNamespace(monotonic_ns=lambda: 0))
    return commands


def test_cold_starts_are_medians_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four starts the first does not count, and each part is the median of the other three."""
    commands = _fake_child(monkeypatch)
    found = measure_cold_start(Path("some"), [FP32], threads=2, runs=3)["onnxruntime:fp32"]
    assert len(commands) == 4
    assert found.runs == 3
    expected = {"interpreter_ms": 3, "import_ms": 30, "load_ms": 60, "first_run_ms": 90, "total_ms": 183}
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)
    assert found.peak_mb == pytest.approx(3000 * 1024 / 1e6)


def test_cold_starts_take_turns_in_fresh_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates start in turn, each in a process of this interpreter with its bundle, name and threads."""
    commands = _fake_child(monkeypatch)
    found = measure_cold_start(Path("some/where"), [FP32, INT8], threads=3, runs=2)
    assert list(found) == ["onnxruntime:fp32", "onnxruntime:int8"]
    assert [command[4] for command in commands] == ["onnxruntime:fp32", "onnxruntime:int8"] * 3
    assert commands[0] == [sys.executable, "-m", "edgecnn.bench.child", "some/where", "onnxruntime:fp32", "3"]


@pytest.mark.parametrize(
    ("stderr", "said"), [("Traceback\n  File\nValueError: no heap\n", "no heap"), ("", "no message")]
)
def test_a_child_that_fails_is_an_error(stderr: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends badly is an error with the last line that it wrote."""
    _fake_child(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(BackendError, match=f"onnxruntime:fp32 failed in a fresh process: .*{said}$"):
        measure_cold_start(Path("some"), [FP32], threads=1, runs=1)


def test_a_real_cold_start_adds_up(bundle_folder: Path) -> None:
    """A real child's parts are positive, add up to its total, and its memory is a Python process's."""
    found = measure_cold_start(bundle_folder, [FP32], threads=1, runs=1)["onnxruntime:fp32"]
    parts = [found.interpreter_ms, found.import_ms, found.load_ms, found.first_run_ms]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(found.total_ms)
    assert 10 < found.peak_mb < 2000


def test_a_child_prints_nothing_but_its_stamps_and_needs_no_torch(bundle_folder: Path) -> None:
    """The child writes one JSON object, its stamps in order, and imports no torch for an ONNX artifact."""
    program = "import sys\nfrom edgecnn.bench.child import main\nmain(sys.argv[1:])\nsys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", program, str(bundle_folder), "onnxruntime:int8", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stamps = json.loads(done.stdout)
    order = [stamps[name] for name in ("started", "imported", "loaded", "answered")]
    assert order == sorted(order)
    assert stamps["peak_kb"] > 0


def test_a_real_child_that_fails_says_why(bundle_folder: Path) -> None:
    """An artifact that is not there is told by the child's own message."""
    with pytest.raises(BackendError, match="no artifact is called 'nothing'"):
        measure_cold_start(bundle_folder, [BackendRef(backend="onnxruntime", artifact="nothing")], threads=1, runs=1)


@pytest.fixture(scope="module")
def report(bundle_folder: Path) -> BenchReport:
    """Return a short measurement of both artifacts."""
    return bench(Bundle.open(bundle_folder), [INT8, FP32], batch=3, seconds=0.2, cold_runs=0)


def test_a_bench_reports_every_candidate(report: BenchReport, bundle_folder: Path) -> None:
    """Rows are in the order asked for, with the files' sizes, and the first is what the others are compared with."""
    assert [(row.backend, row.artifact) for row in report.rows] == [
        ("onnxruntime:int8", "int8"),
        ("onnxruntime:fp32", "fp32"),
    ]
    for row in report.rows:
        assert row.size == (bundle_folder / f"{row.artifact}.onnx").stat().st_size
        assert row.latency.batch == report.batch == 3
        assert len(row.latency.round_medians_us) == 10
        assert 0 < row.latency.p50_us <= row.latency.p90_us <= row.latency.p99_us <= row.latency.max_us
        assert row.latency.images_per_second == pytest.approx(3e6 / row.latency.p50_us)
        assert row.cold_start is None
    assert _values(report.rows[0].ratio) == (1.0, 1.0, 1.0)
    second = np.array(report.rows[1].latency.round_medians_us) / np.array(report.rows[0].latency.round_medians_us)
    assert report.rows[1].ratio.median == pytest.approx(np.median(second))


def test_a_bench_reports_its_conditions(report: BenchReport) -> None:
    """Host, load before and after, threads and seconds stand beside the numbers, and the trust follows from them."""
    assert report.host == host.fingerprint()
    assert (report.threads, report.seconds) == (1, 0.2)
    assert report.load_after.stolen_ticks >= report.load_before.stolen_ticks
    assert report.trust == judge_trust(
        report.host,
        report.load_before,
        report.load_after,
        [row.latency for row in report.rows],
        report.busy_cores_before,
    )


def test_a_bench_report_survives_json(report: BenchReport) -> None:
    """A report written as JSON and read back is the same report."""
    assert msgspec.json.decode(to_json(report), type=BenchReport) == report


@dataclasses.dataclass
class _Seen:
    """What the fake measurement was handed."""

    options: list[SessionOptions]
    shapes: list[tuple[int, ...]]
    closed: list[str]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> _Seen:
    """Replace measuring and cold starts by notes of what was asked of them."""
    notes = _Seen([], [], [])
    real_open, exit_ = bench_run.open_session, CheckedSession.__exit__

    def open_session(ref: BackendRef, artifact: Any, options: SessionOptions) -> CheckedSession:
        notes.options.append(options)
        return real_open(ref, artifact, options)

    def measure(
        sessions: Mapping[str, CheckedSession], feeds: Mapping[str, Array], seconds: float
    ) -> dict[str, Latency]:
        notes.shapes += [array.shape for array in feeds.values()]
        if seconds > 100:
            raise BackendError("worn out")
        return {name: _latency() for name in sessions}

    def leave(self: CheckedSession, *arguments: Any) -> None:
        notes.closed.append(self.device)
        exit_(self, *arguments)

    monkeypatch.setattr(bench_run, "open_session", open_session)
    monkeypatch.setattr(bench_run, "measure_latency", measure)
    monkeypatch.setattr(CheckedSession, "__exit__", leave)
    return notes


@pytest.mark.parametrize(("threads", "used"), [(0, 5), (1, 1), (3, 3)])
def test_threads_are_those_asked_for_and_zero_is_all(
    threads: int, used: int, bundle_folder: Path, seen: _Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions and report have the threads asked for, and 0 means all that this process may use."""
    monkeypatch.setattr(host, "usable_threads", lambda: 5)
    found = bench(Bundle.open(bundle_folder), [FP32, INT8], threads=threads, cold_runs=0)
    assert found.threads == used
    assert [options.threads for options in seen.options] == [used, used]


@pytest.mark.parametrize("batch", [1, 32, 77])
def test_a_batch_is_made_of_golden_pixels(batch: int, bundle_folder: Path, seen: _Seen) -> None:
    """A batch larger than the goldens repeats them, and one smaller takes the first."""
    bench(Bundle.open(bundle_folder), [FP32], batch=batch, cold_runs=0)
    assert seen.shapes == [(batch, 8, 8, 1)]


def test_sessions_are_closed_also_when_measuring_fails(bundle_folder: Path, seen: _Seen) -> None:
    """Every session that was opened is closed again, whether measuring succeeds or not."""
    bench(Bundle.open(bundle_folder), [FP32, INT8], cold_runs=0)
    assert len(seen.closed) == 2
    with pytest.raises(BackendError, match="worn out"):
        bench(Bundle.open(bundle_folder), [FP32, INT8], seconds=1000, cold_runs=0)
    assert len(seen.closed) == 4


def test_cold_starts_join_their_rows(bundle_folder: Path, seen: _Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate's cold start stands in its own row, with the threads of the bench."""
    commands = _fake_child(monkeypatch)
    found = bench(Bundle.open(bundle_folder), [FP32, INT8], threads=2, cold_runs=1)
    assert len(commands) == 4
    assert {command[5] for command in commands} == {"2"}
    starts = [row.cold_start for row in found.rows]
    assert [start.total_ms for start in starts if start is not None] == pytest.approx([3 * 61, 4 * 61])


@pytest.mark.parametrize(
    ("refs", "batch", "threads"), [([], 1, 1), ([FP32, INT8, FP32], 1, 1), ([FP32], 0, 1), ([FP32], 1, -1)]
)
def test_what_cannot_be_measured_is_refused(
    refs: list[BackendRef], batch: int, threads: int, bundle_folder: Path
) -> None:
    """No candidates, one of them twice, an empty batch and negative threads are the user's mistakes."""
    with pytest.raises(UsageError, match="bench needs"):
        bench(Bundle.open(bundle_folder), refs, batch=batch, threads=threads, cold_runs=0)


@pytest.mark.parametrize("ref", [BackendRef(backend="onnxruntime", artifact="x"), BackendRef(backend="nobody")])
def test_an_unknown_candidate_is_refused_before_anything_is_timed(
    ref: BackendRef, bundle_folder: Path, seen: _Seen
) -> None:
    """A backend or artifact that no one knows stops the bench before the first session opens."""
    with pytest.raises(EdgecnnError, match=r"x|nobody"):
        bench(Bundle.open(bundle_folder), [FP32, ref], cold_runs=0)
    assert seen.options == []
