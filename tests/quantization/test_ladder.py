"""The climb: with remedies and verdicts that are made up its order is known; on a net that int8 ruins it must end well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from quantization import graphs, hard, small

from edgecnn.errors import QuantizationError, UsageError
from edgecnn.parity import Verdict
from edgecnn.parity.decisions import Decisions
from edgecnn.quantization import ladder as module
from edgecnn.quantization import rungs as remedies_module
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.ladder import Climb, Ladder
from edgecnn.quantization.placement import Placement, Search
from edgecnn.quantization.race import Speed
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.rungs import Attempt, Remedy, Workshop, float_layers
from edgecnn.quantization.state import FILE, State
from edgecnn.quantization.yardstick import Yardstick
from edgecnn.spec import Tolerance

NOTE = "rung"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calibration observed is not kept from one test to another."""
    monkeypatch.setenv("EDGECNN_CACHE", "/dev/null")


def marked(attempt: Attempt, name: str) -> Attempt:
    """Write into an attempt's model which rung made it, and from which it was made."""
    model = onnx.ModelProto.FromString(attempt.model.SerializeToString())
    made_of = next((entry.value for entry in model.metadata_props), "")
    helper.set_model_props(model, {NOTE: f"{made_of}>{name}" if made_of else name})
    return replace(attempt, model=model)


def mark_of(model: onnx.ModelProto) -> str:
    return next((entry.value for entry in model.metadata_props), "min-max")


@dataclass
class Judge:
    """Stands for the evaluation: gives each rung, by the last part of its mark, the losses it is told to."""

    losses: Mapping[str, int]
    n: int = 2000
    asked: list[tuple[str, int]] = field(default_factory=list)
    killed_at: str | None = None

    def judge(self, built: onnx.ModelProto, look: int = 1) -> Decisions:
        name = mark_of(built).rpartition(">")[2]
        if name == self.killed_at:
            raise KeyboardInterrupt
        self.asked.append((name, look))
        return small.decided(self.losses[name], self.n, look)


class Counting(Yardstick):
    """A yardstick that counts how often it is asked."""

    asked = 0

    def sqnr_db(self, quantized: onnx.ModelProto) -> float:
        self.asked += 1
        return super().sqnr_db(quantized)


@pytest.fixture(scope="module")
def feeds() -> Any:
    return from_arrays({"x": small.images()})


@pytest.fixture
def workshop(feeds: Any) -> Workshop:
    return Workshop(feeds, Recipe(), Counting(small.chain(), feeds))


def steps(*names: str) -> Callable[[], list[Remedy]]:
    """Make remedies that mark the attempt they are given."""

    def make(name: str) -> Callable[[Workshop, Attempt], Attempt | str]:
        return lambda workshop, best: marked(best, name)

    return lambda: [Remedy(name, make(name)) for name in names]


def climbed(
    workshop: Workshop, judge: Judge, state: State | None = None, place: bool = False, stop_after: str | None = None,
    said: list[str] | None = None, store: bool = False,
) -> Climb:  # fmt: skip
    say = (lambda text: None) if said is None else said.append
    return Ladder(small.chain(), workshop, judge, place, False, state, say, store).climb(stop_after)  # type: ignore[arg-type]


def told(climb: Climb) -> list[str]:
    return [rung.name for rung in climb.rungs]


def test_climbing_ends_with_the_first_that_passes(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried after a PASS; that rung is the best, and its model is what is given."""
    monkeypatch.setattr(module, "remedies", steps("one", "two", "three"))
    judge = Judge({"min-max": 100, "one": 60, "two": 0, "three": 0})
    climb = climbed(workshop, judge)
    assert told(climb) == ["min-max", "one", "two"]
    assert [name for name, _ in judge.asked] == ["min-max", "one", "two"]
    assert climb.best == 2
    assert climb.rungs[2].decisions is not None
    assert climb.rungs[2].decisions.verdict is Verdict.PASS
    assert mark_of(climb.model) == mark_of(climb.attempt.model) == "one>two"


def test_a_first_rung_that_passes_is_all(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """If min-max will do no remedy is even made."""
    monkeypatch.setattr(module, "remedies", lambda: [Remedy("never", lambda workshop, best: 1 / 0)])  # type: ignore[arg-type,return-value]
    assert told(climbed(workshop, Judge({"min-max": 0}))) == ["min-max"]


def test_too_few_images_end_the_climb_where_nothing_is_lost(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one lost answer no remedy can show more; with one, it could."""
    monkeypatch.setattr(module, "remedies", steps("one", "two"))
    judge = Judge({"min-max": 1, "one": 0, "two": 0}, n=100)
    climb = climbed(workshop, judge)
    assert told(climb) == ["min-max", "one"]
    assert climb.best == 1
    assert {rung.decisions.verdict for rung in climb.rungs if rung.decisions} == {Verdict.INCONCLUSIVE}


def test_each_remedy_starts_from_the_best_so_far(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What made things worse is not built upon; the best of all is kept at the end, where none passed."""
    monkeypatch.setattr(module, "remedies", steps("better", "worse", "best", "last"))
    judge = Judge({"min-max": 300, "better": 200, "worse": 400, "best": 100, "last": 150})
    climb = climbed(workshop, judge)
    assert told(climb) == ["min-max", "better", "worse", "best", "last", "QAT"]
    assert climb.best == 3
    assert mark_of(climb.model) == "better>best"
    assert climb.rungs[-1].note == "no training images were given"


def test_every_look_asks_for_more_and_only_looks_count(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of judged rungs goes with each judgement; a rung without a model was no look."""
    plan = [*steps("one")(), Remedy("none", lambda workshop, best: "does not apply"), *steps("two")()]
    monkeypatch.setattr(module, "remedies", lambda: plan)
    judge = Judge({"min-max": 300, "one": 200, "two": 100})
    climb = climbed(workshop, judge)
    assert judge.asked == [("min-max", 1), ("one", 2), ("two", 3)]
    assert [rung.note for rung in climb.rungs][:4] == [None, None, "does not apply", None]
    assert climb.rungs[2].decisions is None
    assert climb.rungs[2].accuracy is None


def test_rungs_are_compared_at_one_confidence(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later rung that loses a little less is the better one, though its own bound, at more confidence, is wider."""
    monkeypatch.setattr(module, "remedies", steps("one", "two", "three"))
    climb = climbed(workshop, Judge({"min-max": 100, "one": 130, "two": 140, "three": 99}))
    first, last = climb.rungs[0].decisions, climb.rungs[3].decisions
    assert first is not None
    assert last is not None
    assert last.drop_high > first.drop_high
    assert climb.best == 3


def test_of_equal_losses_the_lesser_error_is_better(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rungs that lose as much are told apart by the error of their answers."""

    def wider(workshop: Workshop, best: Attempt) -> Attempt:
        return marked(
            replace(best, ranges={name: (2 * low, 2 * high) for name, (low, high) in best.ranges.items()}), "wide"
        )

    def better(workshop: Workshop, best: Attempt) -> Attempt:
        return marked(replace(best, floats=("c",)), "float")

    monkeypatch.setattr(module, "remedies", lambda: [Remedy("wide", wider), Remedy("float", better)])
    climb = climbed(workshop, Judge({"min-max": 100, "wide": 100, "float": 100}))
    errors = [rung.sqnr_db for rung in climb.rungs[:3]]
    assert None not in errors
    assert errors[1] < errors[0] < errors[2]  # type: ignore[operator]
    assert climb.best == 2
    assert mark_of(climb.model) == "float"  # so "wide" was not built upon


def test_a_remedy_that_fails_is_a_note(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remedy that raises, and one whose model cannot be built, are told, and the climb goes on from the best."""

    def fails(workshop: Workshop, best: Attempt) -> Attempt:
        raise QuantizationError("no such luck")

    plan = [
        Remedy("fails", fails),
        Remedy("unbuilt", lambda workshop, best: replace(best, ranges={})),
        *steps("good")(),
    ]
    monkeypatch.setattr(module, "remedies", lambda: plan)
    said: list[str] = []
    climb = climbed(workshop, Judge({"min-max": 100, "good": 0}), said=said)
    assert told(climb) == ["min-max", "fails", "unbuilt", "good"]
    assert climb.rungs[1].note == "no such luck"
    assert climb.rungs[2].note is not None
    assert climb.rungs[2].note.startswith("ONNX Runtime's quantizer refused the graph")
    assert (climb.best, mark_of(climb.model)) == (3, "good")
    assert "fails: no such luck" in said


def test_where_not_even_the_first_can_be_built_that_is_an_error(feeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a first rung there is nothing to mend."""
    workshop = Workshop(feeds, Recipe(), Yardstick(small.chain(), feeds))
    monkeypatch.setattr(Workshop, "ranges", lambda self, model, method: {})
    with pytest.raises(QuantizationError, match="refused the graph"):
        climbed(workshop, Judge({"min-max": 0}))


def test_a_rung_to_stop_after_ends_it(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The climb ends after the rung that was named, whatever its verdict, and with a name that no rung has it does not begin."""
    monkeypatch.setattr(module, "remedies", steps("one", "two"))
    assert told(climbed(workshop, Judge({"min-max": 200, "one": 100}), stop_after="one")) == ["min-max", "one"]
    with pytest.raises(UsageError) as caught:
        climbed(workshop, Judge({}), stop_after="minmax")
    assert str(caught.value) == "no rung is called 'minmax' to stop after; there are min-max, one, two, QAT"
    judge = Judge({"min-max": 200, "one": 100, "two": 100})
    with pytest.raises(UsageError):
        climbed(workshop, judge, stop_after="d in float")
    assert judge.asked == []


def placed(monkeypatch: pytest.MonkeyPatch, *floats: str) -> list[int]:
    """Let the search choose; returns the calls it got."""
    calls: list[int] = []
    chosen = Placement(floats=floats, sqnr_db=30.0, bytes=1)

    def search(*rest: Any) -> Search:
        calls.append(1)
        return Search(tried=(chosen,), chosen=chosen, reason="told to")

    monkeypatch.setattr(module, "search_placement", search)
    return calls


LOSSES = {"min-max": 300, "one": 250, "two": 200}


def test_a_climb_goes_on_where_it_was_killed(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third rung, the first two are not measured again, and all ends as if nothing had happened."""
    monkeypatch.setattr(module, "remedies", steps("one", "two"))
    calls = placed(monkeypatch, "a")
    whole = climbed(workshop, Judge(LOSSES), State(tmp_path / "whole", "key"), place=True, stop_after="two")
    with pytest.raises(KeyboardInterrupt):
        climbed(workshop, Judge(LOSSES, killed_at="two"), State(tmp_path / "killed", "key"), place=True)
    searched, judge, asked, said = len(calls), Judge(LOSSES), workshop.yardstick.asked, list[str]()  # type: ignore[attr-defined]
    again = climbed(workshop, judge, State(tmp_path / "killed", "key"), place=True, stop_after="two", said=said)
    assert judge.asked == [("two", 3)]
    assert workshop.yardstick.asked == asked + 1  # type: ignore[attr-defined]
    assert len(calls) == searched
    assert [text for text in said if "earlier" in text] == [
        f"{name}: taken from an earlier run" for name in ("min-max", "one")
    ]
    assert again.search == whole.search
    assert again.search is not None
    assert (told(again), again.best) == (told(whole), whole.best)
    assert again.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert [rung.decisions for rung in again.rungs] == [rung.decisions for rung in whole.rungs]


def test_a_finished_climb_measures_nothing_again(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers in float too come from the state, without trying each layer once more; only what makes no model is asked again."""
    monkeypatch.setattr(module, "remedies", steps("one", "two"))
    placed(monkeypatch)
    monkeypatch.setattr(Judge, "judge", by_floats)
    first = climbed(workshop, Judge(LOSSES), State(tmp_path, "key"), place=True)
    assert told(first)[3:-1] == ["c in float", f"{told(first)[4].partition(' ')[0]} in float"]
    asked, judge = workshop.yardstick.asked, Judge(LOSSES)  # type: ignore[attr-defined]
    unmade = [Remedy(name, lambda workshop, best: 1 / 0) for name in ("one", "two")]  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(module, "remedies", lambda: unmade)
    again = climbed(workshop, judge, State(tmp_path, "key"), place=True)
    assert judge.asked == []
    assert workshop.yardstick.asked == asked  # type: ignore[attr-defined]
    assert again.rungs == first.rungs
    assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)


def by_floats(self: Judge, built: onnx.ModelProto, look: int = 1) -> Decisions:
    """Judge a model the better the more layers it has in float."""
    self.asked.append((mark_of(built), look))
    quantized = sum(tensor.name.endswith(".weight_quantized") for tensor in built.graph.initializer)
    return small.decided(50 + 20 * quantized)


def test_killed_among_layers_in_float_the_rest_is_the_same(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill behind the first layer in float the second is the one that an undisturbed climb finds."""
    monkeypatch.setattr(module, "remedies", list)
    placed(monkeypatch)
    monkeypatch.setattr(Judge, "judge", by_floats)
    whole = climbed(workshop, Judge({}), State(tmp_path / "whole", "key"), place=True)
    climbed(workshop, Judge({}), State(tmp_path / "parted", "key"), place=True, stop_after=whole.rungs[1].name)
    judge = Judge({})
    again = climbed(workshop, judge, State(tmp_path / "parted", "key"), place=True)
    assert len(judge.asked) == 1
    assert [(rung.name, rung.floats) for rung in again.rungs] == [(rung.name, rung.floats) for rung in whole.rungs]
    assert len(again.rungs[2].floats) == 2


def test_float_layers_are_stored_small_at_the_end(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best rung's layers in float are int8 on disk where the verdict stays; that is one more look, and is resumed."""
    monkeypatch.setattr(module, "remedies", steps("one"))
    monkeypatch.setattr(remedies_module, "stored_small", lambda built, yardstick: ("b", "c"))
    placed(monkeypatch, "b", "c")
    judge = Judge({"min-max": 100, "one": 0})
    climb = climbed(workshop, judge, State(tmp_path, "key"), place=True, store=True)
    assert told(climb) == ["min-max", "one", "one, int8 on disk"]
    assert judge.asked == [("min-max", 1), ("one", 2), ("one", 3)]
    assert climb.best == 2
    assert set(climb.attempt.stored) == {"b", "c"}
    held = {tensor.name for tensor in climb.model.graph.initializer}
    assert {"b.weight.int8", "c.weight.int8"} <= held
    assert "b.weight" not in held
    assert climb.rungs[2].bytes is not None
    assert climb.rungs[1].bytes is not None
    assert climb.rungs[2].bytes < 0.95 * climb.rungs[1].bytes
    judge = Judge({})
    again = climbed(workshop, judge, State(tmp_path, "key"), place=True, store=True)
    assert judge.asked == []
    assert (again.rungs, again.attempt.stored, again.model) == (climb.rungs, climb.attempt.stored, climb.model)


def test_float_weights_stay_where_the_verdict_would_not(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the smaller file passes no more, the larger one is the best."""
    monkeypatch.setattr(module, "remedies", list)
    monkeypatch.setattr(remedies_module, "stored_small", lambda built, yardstick: ("b", "c"))
    placed(monkeypatch, "b", "c")

    def judge(self: Judge, built: onnx.ModelProto, look: int = 1) -> Decisions:
        return small.decided(15 if any(node.op_type == "Cast" for node in built.graph.node) else 0)

    monkeypatch.setattr(Judge, "judge", judge)
    climb = climbed(workshop, Judge({}), place=True, store=True)
    assert told(climb) == ["min-max", "min-max, int8 on disk"]
    assert (climb.best, climb.attempt.stored) == (0, ())


def test_with_nothing_in_float_there_is_nothing_to_store(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all layers are int8, or those in float are small, the images are not looked at again."""
    for floats in ((), ("g",)):
        placed(monkeypatch, *floats)
        assert told(climbed(workshop, Judge({"min-max": 0}), place=True, store=True)) == ["min-max"]


def test_another_key_climbs_anew(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another data set or recipe has left counts for nothing."""
    monkeypatch.setattr(module, "remedies", steps("one"))
    climbed(workshop, Judge({"min-max": 100, "one": 100}), State(tmp_path, "key"))
    judge = Judge({"min-max": 100, "one": 100})
    climbed(workshop, judge, State(tmp_path, "other"))
    assert judge.asked == [("min-max", 1), ("one", 2)]


def test_a_damaged_state_climbs_anew(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that is cut off is ignored; a model that is damaged costs its own rung alone."""
    monkeypatch.setattr(module, "remedies", steps("one", "two"))
    losses = {"min-max": 300, "one": 200, "two": 100}
    first = climbed(workshop, Judge(losses), State(tmp_path, "key"))
    model = next(path for path in tmp_path.glob("*.float.onnx") if mark_of(onnx.load(str(path))) == "one")
    model.write_bytes(b"")
    judge = Judge(losses)
    again = climbed(workshop, judge, State(tmp_path, "key"))
    assert judge.asked == [("one", 2)]
    assert [rung.decisions for rung in again.rungs] == [rung.decisions for rung in first.rungs]
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    judge = Judge(losses)
    climbed(workshop, judge, State(tmp_path, "key"))
    assert [name for name, _ in judge.asked] == ["min-max", "one", "two"]


def test_the_layer_that_costs_most_goes_to_float_first(workshop: Workshop) -> None:
    """Each step takes the one whose rounding costs most, by trying all; half of the layers at the most."""
    ranges = small.ranges_of(small.chain(), {"x": small.images()})
    base = Attempt(small.chain(), ranges)
    found = list(float_layers(workshop, base))
    assert [name for name, _ in found] == [f"{name} in float" for name in order(workshop, base, 2)]
    assert [len(attempt.floats) for _, attempt in found] == [1, 2]


def order(workshop: Workshop, base: Attempt, count: int) -> list[str]:
    chosen: list[str] = []
    for _ in range(count):
        errors = {
            name: workshop.yardstick.sqnr_db(replace(base, floats=(*chosen, name)).build(Recipe()))
            for name in ("a", "b", "c", "g")
            if name not in chosen
        }
        chosen.append(max(errors, key=errors.__getitem__))
    return chosen


def test_a_net_of_one_layer_ends_without_one_in_float(tmp_path: Path) -> None:
    """There is nothing to leave in float, and the climb goes through all other rungs to its end."""
    rng = np.random.default_rng(0)
    nodes = [graphs.node("Conv", "x w.weight", "a"), graphs.node("Flatten", "a", "y")]
    model = small.inferred(graphs.graph(nodes, (3, 1, 1), **{"w.weight": rng.normal(0, 1, (4, 3, 1, 1))}))
    feeds = from_arrays({"x": rng.normal(0, 1, (40, 3, 1, 1)).astype(np.float32)})
    workshop = Workshop(feeds, Recipe(), Yardstick(model, feeds))
    always = type("Always", (), {"judge": lambda self, built, look=1: small.decided(100)})()
    climb = Ladder(model, workshop, always, place=True, timed=False).climb()
    assert told(climb)[0] == "min-max"
    assert told(climb)[-1] == "QAT"
    assert not any("in float" in name for name in told(climb))
    assert all(rung.floats == () for rung in climb.rungs)


def test_rungs_are_raced_against_the_float_model(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where speed counts each rung's own model runs against the source, on one image."""
    raced: list[dict[str, Any]] = []

    def race(sessions: Mapping[str, Any], reference: str, one: Mapping[str, Any], seconds: float) -> dict[str, Speed]:
        raced.append({name: session.run(one)["y"] for name, session in sessions.items()})
        assert reference == "float"
        return {"quantized": small.speed(0.4)}

    monkeypatch.setattr(module, "race", race)
    climb = Ladder(small.chain(), workshop, Judge({"min-max": 0}), place=False).climb()  # type: ignore[arg-type]
    assert climb.rungs[0].speed == small.speed(0.4)
    one = workshop.yardstick.one()
    np.testing.assert_allclose(raced[0]["float"], small.reference(small.chain(), one)[0], atol=1e-5)
    assert not np.array_equal(raced[0]["float"], raced[0]["quantized"])


def climb_of(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> tuple[Climb, list[str]]:
    """Climb with real remedies and real verdicts, labelled by the float model; QAT is told of if it is ever asked."""
    asked: list[str] = []

    def qat(*rest: Any) -> str:
        asked.append("QAT")
        return "not in this test"

    monkeypatch.setattr(module, "quantization_aware", qat)
    images = hard.images(800, 1)
    scores = graphs.run(model, {"image": images})["logits"]
    ordered = np.sort(scores, axis=1)
    clear = np.argsort(ordered[:, -2] - ordered[:, -1])[:400]  # what hangs in the balance tells nothing of a remedy
    feeds = from_arrays({"image": images[clear]}, scores[clear].argmax(axis=1))
    evaluation = Evaluation.of(model, feeds, Tolerance(max_drop=0.03))
    calibration = from_arrays({"image": hard.images(64, 2)})
    workshop = Workshop(calibration, Recipe(), Yardstick(model, calibration))
    return Ladder(model, workshop, evaluation, place=False, timed=False).climb(), asked


def test_a_net_that_int8_ruins_is_saved_by_equalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels a hundred times too loud are beyond other ranges and biases; equalized, the loss is within budget, untrained."""
    climb, asked = climb_of(small.inferred(hard.hard_net(0)), monkeypatch)
    assert climb.rungs[0].decisions is not None
    assert climb.rungs[0].decisions.verdict is not Verdict.PASS
    best = climb.rungs[climb.best]
    assert best.name == "equalization"
    assert climb.best == len(climb.rungs) - 1
    assert best.decisions is not None
    assert best.decisions.verdict is Verdict.PASS
    assert asked == []
    assert best.sqnr_db is not None
    assert climb.rungs[0].sqnr_db is not None
    assert best.sqnr_db > climb.rungs[0].sqnr_db + 10


def test_ranges_are_chosen_anew_once_channels_are_equal() -> None:
    """From ranges that clip, equalization goes to whichever method is best after it, and gives what it gives from min-max."""
    model = small.inferred(hard.hard_net(3))
    calibration = from_arrays({"image": hard.images(64, 2)})
    workshop = Workshop(calibration, Recipe(), Yardstick(model, calibration))
    equalization = next(remedy for remedy in remedies_module.remedies() if remedy.name == "equalization")
    found = {}
    for method in ("min-max", "entropy"):
        made = equalization.make(workshop, Attempt(model, workshop.ranges(model, method), method=method))  # type: ignore[arg-type]
        assert isinstance(made, Attempt)
        found[method] = workshop.yardstick.sqnr_db(made.build(Recipe()))
        own = replace(made, ranges=workshop.ranges(made.model, method))  # type: ignore[arg-type]
        assert found[method] >= workshop.yardstick.sqnr_db(own.build(Recipe()))
    assert found["entropy"] == pytest.approx(found["min-max"], abs=1)
    assert found["min-max"] > 35


def test_a_net_that_int8_takes_well_needs_no_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function without the loud channels passes on the first rung."""
    climb, _ = climb_of(small.inferred(hard.easy_net(0)), monkeypatch)
    assert told(climb) == ["min-max"]


def test_the_rungs_come_in_their_order() -> None:
    """Ranges first, then equalization, and biases only after it."""
    assert [remedy.name for remedy in remedies_module.remedies()] == [
        "entropy", "percentile", "mse", "equalization", "bias correction",
    ]  # fmt: skip
