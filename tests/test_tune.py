"""Tuning: what is tried, what parity lets through, what is written, and that predict runs what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgecnn import host
from edgecnn.backends import providers
from edgecnn.backends.base import CheckedSession, SessionOptions, Tensors, open_session
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.device import candidates, timing, trials
from edgecnn.device.gate import Gate
from edgecnn.device.profile import Profile, Settings, chosen, look_up, write_profile
from edgecnn.device.racing import Interval
from edgecnn.device.trials import Trials, said
from edgecnn.device.tune import is_better, profile_of, tune
from edgecnn.errors import BackendError, DeviceError, UsageError, VerdictError
from edgecnn.parity.verdict import Verdict
from edgecnn.report.tune import tune_text
from edgecnn.spec import BackendRef

FP32, INT8 = BackendRef.parse("onnxruntime:fp32"), BackendRef.parse("onnxruntime:int8")
CUDA = BackendRef.parse("onnxruntime:fp32@cuda:0")


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plugins that happen to be installed: what is tuned is then the same on every machine."""
    monkeypatch.setattr(providers, "plugins", dict)


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Open the bundle on a machine of four CPUs, with a settings folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    monkeypatch.setattr(host, "usable_threads", lambda: 4)
    monkeypatch.setattr(host, "busy_cores", lambda seconds=0.3: 0.0)
    return Bundle.open(bundle_folder)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[Settings], float]]]:
    """Let candidates take the planted seconds an image instead of being timed; sessions are loaded all the same."""
    plan: dict[str, Callable[[Settings], float]] = {}
    rng = np.random.default_rng(0)

    def sampler(self: Trials, one: Settings, session: CheckedSession) -> Callable[[], float]:
        assert session.device == "cpu"
        return lambda: plan["cost"](one) * float(np.exp(rng.normal(0, 0.01)))

    monkeypatch.setattr(Trials, "_sampler", sampler)
    yield plan
    assert plan


def cost(one: Settings, **factors: float) -> float:
    """Multiply what is planted for each setting that a candidate has."""
    value = 1.0
    for name, factor in factors.items():
        value *= factor if name in (one.backend.partition(":")[2], one.optimization, f"t{one.threads}") else 1.0
    return value * (factors.get("spinning", 1.0) if one.spinning else 1.0)


def test_the_default_is_first_and_the_nearest_follow() -> None:
    """Candidates begin with what runs without a profile, each differs from all others, and the distance only grows."""
    default = candidates.default_settings(INT8, 4)
    assert (default.options, default.batch) == (SessionOptions(threads=4), 1)
    found = candidates.kinds([INT8, FP32], default, "latency")
    assert found[0] == default
    assert len(set(found)) == len(found) == 2 * 4 * 3
    apart = [candidates.distance(one, default) for one in found]
    assert apart == sorted(apart)
    assert len({said(one) for one in found}) == len(found)


def test_threads_and_spinning_are_for_the_cpu() -> None:
    """Another device gets no choice of threads, and one thread alone none of spinning."""
    default = candidates.default_settings(INT8, 4)
    found = candidates.kinds([INT8, CUDA], default, "latency")
    assert {one.threads for one in found if one.backend == str(CUDA)} == {4}
    assert {one.threads for one in found if one.backend == str(INT8)} == {1, 2, 3, 4}
    spinning = candidates.with_spinning(default, default)
    assert {one.threads for one in spinning if one.spinning} == {2, 3, 4}
    only = candidates.default_settings(INT8, 1)
    assert candidates.with_spinning(only, only) == [only]
    assert not [
        one for one in candidates.with_spinning(found[-1], default) if one.spinning and one.backend == str(CUDA)
    ]


@pytest.mark.parametrize(
    ("usable", "counts"), [(1, {1}), (2, {1, 2}), (6, {1, 2, 3, 4, 5, 6}), (24, {*range(1, 9), 16, 24})]
)
def test_thread_counts(usable: int, counts: set[int]) -> None:
    """All numbers up to eight, above that powers of two and all there are, the most first."""
    found = candidates.thread_counts(usable)
    assert set(found) == counts
    assert found[0] == usable


def test_batches_are_for_throughput() -> None:
    """For latency every candidate runs one image; for throughput several, and the batch is then a race of its own."""
    default = candidates.default_settings(INT8, 2)
    assert {one.batch for one in candidates.kinds([INT8], default, "latency")} == {1}
    many = candidates.kinds([INT8], default, "throughput")
    assert many[0] == default
    assert {one.batch for one in many[1:]} == {candidates.MANY}
    assert {one.batch for one in candidates.in_batches(many[1], default)} == set(candidates.BATCHES)


def test_what_is_asked_for_is_all_that_is_tried(bundle: Bundle) -> None:
    """Named artifacts are the only ones, the first is the default, and without a name the bundle's default comes first."""
    assert candidates.references(bundle, [FP32]) == ([FP32], [])
    everything, _ = candidates.references(bundle, [])
    assert everything[0].artifact == bundle.manifest.default_artifact
    assert {ref.artifact for ref in everything if ref.device == "cpu"} == {"fp32", "int8"}
    with pytest.raises(UsageError, match="only onnxruntime"):
        candidates.references(bundle, [BackendRef.parse("torch")])


def test_a_device_that_is_listed_and_cannot_be_used_is_named(
    bundle: Bundle, planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that the wheel holds and the machine has no hardware for is left out with its reason, and the rest race."""
    real, load = OnnxRuntimeBackend.devices, OnnxRuntimeBackend.load

    def no_gpu(self: OnnxRuntimeBackend, artifact: Any, device: str, options: SessionOptions) -> Any:
        if device == "cuda:0":
            raise DeviceError("asked for CUDA, and there is none")
        return load(self, artifact, device, options)

    monkeypatch.setattr(OnnxRuntimeBackend, "devices", lambda self: (*real(self), "cuda:0"))
    monkeypatch.setattr(OnnxRuntimeBackend, "load", no_gpu)
    planted["cost"] = lambda one: cost(one, t1=0.5)
    found = tune(bundle, seconds=5)
    assert found.settings is not None
    assert {name for name, _ in found.unusable} == {"onnxruntime:fp32@cuda:0", "onnxruntime:int8@cuda:0"}
    assert not [row for row in found.rows if "cuda" in row.said]
    assert "not usable: onnxruntime:fp32@cuda:0: asked for CUDA" in tune_text(found)
    with pytest.raises(DeviceError, match="there is none"):
        tune(bundle, seconds=5, asked=[CUDA])


def test_the_planted_fastest_wins_and_is_what_predict_gets(bundle: Bundle, planted: dict[str, Any]) -> None:
    """Artifact, level, threads and spinning of the planted optimum are found, written, and chosen for predict and serve."""
    planted["cost"] = lambda one: cost(one, fp32=0.7, extended=0.8, t2=0.5, t1=0.9, spinning=0.6)
    found = tune(bundle, seconds=5)
    best = Settings(backend="onnxruntime:fp32", threads=2, spinning=True, optimization="extended", batch=1)
    assert found.settings == best
    assert found.complete
    assert found.gain is not None
    assert (
        found.gain.low
        < 0.7 * 0.8 * 0.5 * 0.6 / (1 if found.default.backend.endswith("int8") else 0.7)
        < found.gain.high
    )
    write_profile(profile_of(found))
    choice = chosen(bundle, None, None)
    assert (choice.ref, choice.options) == (FP32, best.options)
    with open_session(choice.ref, bundle.artifact("fp32"), choice.options) as session:
        native = session.inner._session.get_session_options()  # type: ignore[attr-defined]
        assert native.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_throughput_finds_the_batch(bundle: Bundle, planted: dict[str, Any]) -> None:
    """For throughput the planted best batch is in the profile, with the settings that suit it."""
    planted["cost"] = lambda one: cost(one, fp32=2.0 if one.backend == str(FP32) else 1.0, t3=0.8) * {1: 1.0, 4: 0.7, 16: 0.9, 64: 1.5}[one.batch]  # fmt: skip
    found = tune(bundle, "throughput", seconds=5)
    assert found.settings is not None
    assert (found.settings.threads, found.settings.batch) == (3, 4)
    write_profile(profile_of(found))
    assert chosen(bundle, None, None).batch == 4


def test_where_nothing_is_better_the_defaults_are_kept(bundle: Bundle, planted: dict[str, Any]) -> None:
    """With all alike, or the default the fastest, the profile says default, and predict runs with its defaults."""
    for plan in (lambda one: 1.0, lambda one: cost(one, extended=1.3, basic=1.5, t1=2, t2=1.5, t3=1.2, spinning=1.1, fp32=1.4)):  # fmt: skip
        planted["cost"] = plan
        found = tune(bundle, seconds=5, asked=[INT8, FP32])
        assert found.settings is None
        assert "the defaults are as good" in tune_text(found)
        write_profile(profile_of(found))
        profile = look_up(bundle)
        assert isinstance(profile, Profile)
        assert profile.settings is None
        assert chosen(bundle, None, None).options == SessionOptions()


@pytest.mark.parametrize("luck", [0.95, 1.05])
def test_a_winner_by_luck_of_loading_is_not_kept(luck: float, bundle: Bundle, planted: dict[str, Any]) -> None:
    """A gain no larger than what two copies of the default differ by, either way, is noise and is not written."""
    planted["cost"] = lambda one: cost(one, extended=0.97)
    loaded: list[str] = []
    real, final = Trials._sampler, Trials.final

    def lucky(self: Trials, one: Settings, session: CheckedSession) -> Callable[[], float]:
        sample = real(self, one, session)
        loaded.append(said(one))
        copy = loaded.count(said(one)) % 2 == 0  # each heat loads the default, and then its copy
        return lambda: sample() * (luck if copy else 1.0)

    def heats(self: Trials, default: Settings, winner: Settings, seconds: float) -> tuple[Interval, Interval]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trials, "_sampler", lucky)
            return final(self, default, winner, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "final", heats)
        found = tune(bundle, seconds=5, asked=[INT8])
    assert found.gain is not None
    assert found.noise is not None
    assert found.noise.median == pytest.approx(luck, abs=0.01)
    assert found.gain.high < 1
    assert found.settings is None


@pytest.mark.parametrize(
    ("gain", "noise", "better"),
    [
        ((0.8, 0.7, 0.9), (1.0, 0.99, 1.01), True),
        ((0.97, 0.96, 0.98), (1.0, 0.975, 1.02), False),
        ((0.99, 0.97, 1.001), (1.1, 1.05, 1.2), False),
        ((0.97, 0.96, 0.98), (1.03, 1.02, 1.04), False),
        ((1.2, 1.1, 1.3), (1.4, 1.35, 1.5), False),
    ],
)
def test_better_is_beyond_one_and_beyond_the_copy(
    gain: tuple[float, float, float], noise: tuple[float, float, float], better: bool
) -> None:
    """All of the winner's interval has to lie below one, and further from it than the copy's may, on either side."""

    def interval(values: tuple[float, float, float]) -> Interval:
        return Interval(median=values[0], low=values[1], high=values[2])

    assert is_better(interval(gain), interval(noise)) is better
    assert not is_better(None, None)


class Faulty:
    """A backend around the real one whose answers, under some options, are wrong."""

    def __init__(self, wrong: Callable[[SessionOptions], bool]) -> None:
        self.wrong = wrong

    def open(self, ref: BackendRef, artifact: Any, options: SessionOptions, backend: Any = None) -> CheckedSession:
        session = open_session(ref, artifact, options, backend)
        if self.wrong(options):
            run = session._run

            def shifted(feeds: Mapping[str, Any]) -> Tensors:
                outputs = run(feeds)
                moved = outputs["logits"] + np.eye(1, outputs["logits"].shape[1], dtype=np.float32)
                soft = np.exp(moved - moved.max(axis=1, keepdims=True))
                return {"logits": moved, "probabilities": soft / soft.sum(axis=1, keepdims=True)}

            session._run = shifted
        return session


def test_wrong_answers_do_not_race(bundle: Bundle, planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A level at which the answers are wrong is out with parity's reason, however fast it is; the right ones race on."""
    monkeypatch.setattr(trials, "open_session", Faulty(lambda options: options.optimization == "extended").open)
    planted["cost"] = lambda one: cost(one, extended=0.1, t1=0.5)
    heard: list[str] = []
    found = tune(bundle, seconds=5, asked=[FP32], tell=heard.append)
    assert found.settings is not None
    assert (found.settings.threads, found.settings.optimization) == (1, "all")
    out = [row for row in found.rows if row.verdict is Verdict.FAIL]
    assert {row.settings.optimization for row in out} == {"extended"}
    assert all(row.rounds == 0 and row.us is None and "error" in row.reason for row in out)
    assert any(line.startswith("out: ") for line in heard)
    assert "out: " in tune_text(found)


def test_a_default_that_fails_parity_is_the_verdict(
    bundle: Bundle, planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the default's own answers are wrong nothing is tuned, and the exit code is that of a verdict."""
    planted["cost"] = lambda one: 1.0
    monkeypatch.setattr(trials, "open_session", Faulty(lambda options: True).open)
    with pytest.raises(VerdictError, match="the default, is FAIL in parity"):
        tune(bundle, seconds=5, asked=[FP32])
    done = CliRunner().invoke(cli, ["tune", str(bundle.root), "-c", "onnxruntime:fp32"])
    assert done.exit_code == 3


def test_what_does_not_load_is_out(bundle: Bundle, planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that the backend refuses is out with its words, and the others race."""

    def refusing(ref: BackendRef, artifact: Any, options: SessionOptions) -> CheckedSession:
        if options.threads == 3:
            raise BackendError("three is too many")
        return open_session(ref, artifact, options)

    monkeypatch.setattr(trials, "open_session", refusing)
    planted["cost"] = lambda one: cost(one, t2=0.5)
    found = tune(bundle, seconds=5, asked=[FP32])
    assert found.settings is not None
    assert found.settings.threads == 2
    refused = [row for row in found.rows if row.reason == "three is too many"]
    assert {row.settings.threads for row in refused} == {3}


@pytest.mark.parametrize("batch", [1, 3, 64, 100])
def test_the_gate_judges_in_the_batches_that_will_run(batch: int, bundle: Bundle) -> None:
    """Goldens are answered in batches of the candidate's size, whatever it is, and a fault in one place of it is found."""
    gate, sizes = Gate(bundle), list[int]()
    goldens = len(bundle.goldens().pixels)
    with ExitStack() as stack:
        session = stack.enter_context(open_session(FP32, bundle.artifact("fp32"), SessionOptions(threads=1)))
        run = session._run

        def counting(feeds: Mapping[str, Any]) -> Tensors:
            sizes.append(len(feeds["image"]))
            return run(feeds)

        session._run = counting
        assert gate.judge(FP32, session, batch).verdict is Verdict.PASS
        assert set(sizes) == {batch}
        assert len(sizes) == -(-goldens // batch)

        def faulty(feeds: Mapping[str, Any]) -> Tensors:
            outputs = {name: array.copy() for name, array in run(feeds).items()}
            outputs["logits"][0] = outputs["logits"][0][::-1]
            return outputs

        session._run = faulty
        assert gate.judge(FP32, session, batch).verdict is Verdict.FAIL


def test_a_round_leaves_the_cores_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round of threads that spin on, the wait lasts as long as they use the processor, and not for ever."""

    class Clock:
        now, busy_until, slept = 0.0, 0.03, 0

        def perf_counter(self) -> float:
            return self.now

        def process_time(self) -> float:
            return min(self.now, self.busy_until)

        def sleep(self, seconds: float) -> None:
            self.slept += 1
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    timing.wait_for_rest()
    assert 0.03 <= clock.now < 0.04
    clock = Clock()
    clock.busy_until = 99.0
    monkeypatch.setattr(timing, "time", clock)
    timing.wait_for_rest()
    assert 0.1 <= clock.now < 0.11


def test_a_round_is_the_median_without_the_cold_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of short calls the first is left out; a long call counts, and is enough."""

    class Session:
        def __init__(self, costs: list[float]) -> None:
            self.costs, self.now, self.calls = costs, 0.0, 0

        def run(self, feeds: Mapping[str, Any]) -> Tensors:
            self.now += self.costs[min(self.calls, len(self.costs) - 1)]
            self.calls += 1
            return {}

        def perf_counter(self) -> float:
            return self.now

    short = Session([0.0019, 0.0001])
    monkeypatch.setattr(timing, "time", short)
    assert timing.time_round(short, {}, settle=False) == pytest.approx(0.0001)  # type: ignore[arg-type]
    assert short.calls >= 50
    long = Session([0.5])
    monkeypatch.setattr(timing, "time", long)
    assert timing.time_round(long, {}, settle=False) == pytest.approx(0.5)  # type: ignore[arg-type]
    assert long.calls == 1


@pytest.mark.parametrize(("threads", "spinning", "waits"), [(2, True, 1), (2, False, 0), (1, True, 0)])
def test_a_sample_is_of_one_image_and_waits_for_spinning_threads(
    threads: int, spinning: bool, waits: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate's sample is its round over its batch, fed so many goldens, and ends with a wait where threads spin on."""
    waited, fed = list[int](), list[int]()
    monkeypatch.setattr(timing, "wait_for_rest", lambda: waited.append(1))
    one = Settings(backend=str(FP32), threads=threads, spinning=spinning, optimization="all", batch=4)
    with open_session(FP32, bundle.artifact("fp32"), one.options) as session:
        run = session._run

        def slow(feeds: Mapping[str, Any]) -> Tensors:
            fed.append(len(feeds["image"]))
            return run(feeds)

        session._run = slow
        whole = Trials(bundle, print)._sampler(one, session)()
        monkeypatch.setattr(trials, "time_round", lambda *arguments: 8.0)
        assert Trials(bundle, print)._sampler(one, session)() == 2.0
    assert whole > 0
    assert set(fed) == {4}
    assert len(waited) == waits


def test_no_time_is_refused(bundle: Bundle) -> None:
    """Zero seconds are the user's mistake."""
    with pytest.raises(UsageError, match="more than 0"):
        tune(bundle, seconds=0)


def test_the_command_writes_a_profile_or_with_dry_run_none(
    bundle: Bundle, planted: dict[str, Any], tmp_path: Path
) -> None:
    """Stdout is the table or one JSON document, stderr tells the race, and --dry-run leaves the settings folder alone."""
    planted["cost"] = lambda one: cost(one, t2=0.5)
    arguments = ["tune", str(bundle.root), "-c", "onnxruntime:fp32", "--seconds", "3"]
    done = CliRunner().invoke(cli, [*arguments, "--dry-run", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["threads"] == 2
    assert not (tmp_path / "settings").exists()
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.stderr
    assert "stops, slower: " in done.stderr
    assert "onnxruntime:fp32, 2 threads takes 0." in done.stdout
    (written,) = (tmp_path / "settings").rglob("*.json")
    assert str(written) in done.stderr
    assert chosen(bundle, None, None).options.threads == 2
