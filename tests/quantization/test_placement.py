"""Placement on costs that are made up: then what must be tried, chosen and called best is known by brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from quantization import graphs, small

from edgecnn.quantization import placement as module
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.placement import Search, search_placement
from edgecnn.quantization.profile import layer_times
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.race import Speed
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.slim import file_size
from edgecnn.quantization.weight_only import shipped_size
from edgecnn.quantization.yardstick import Yardstick
from edgecnn.spec import to_json

Floats = frozenset[str]


@dataclass(frozen=True)
class Built:
    """Stands for a quantized model."""

    floats: Floats
    bytes: int = 1000


@dataclass
class World:
    """What each placement costs, and what was built and raced; `beat` asks the search's own `beaten` as a race would."""

    ratio: Callable[[Floats], float]
    sqnr_db: Callable[[Floats], float]
    bytes: Callable[[Floats], int] = lambda floats: 1000 + 10 * len(floats)
    times: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    races: list[list[Floats]] = field(default_factory=list)
    stopped: list[set[Floats]] = field(default_factory=list)

    def quantize(self, model: Any, ranges: Any, recipe: Recipe, floats: Floats = frozenset()) -> Built:
        return Built(frozenset(floats), self.bytes(frozenset(floats)))

    @contextmanager
    def open_model(self, model: Any) -> Iterator[Any]:
        yield model

    def shipped_size(self, built: Built) -> int:
        return built.bytes

    def layer_times(self, model: Any, feeds: Any) -> dict[str, float]:
        return dict(self.times[0] if isinstance(model, onnx.ModelProto) else self.times[1])

    def race(
        self, sessions: Mapping[str, Any], reference: str, feeds: Any, seconds: float,
        beaten: Callable[[str, Mapping[str, Speed]], bool],
    ) -> dict[str, Speed]:  # fmt: skip
        assert isinstance(sessions[reference], onnx.ModelProto)
        candidates = {name: built.floats for name, built in sessions.items() if name != reference}
        self.races.append(list(candidates.values()))
        speeds = {name: small.speed(self.ratio(floats)) for name, floats in candidates.items()}
        everybody = {**speeds, reference: small.speed(1.0)}
        self.stopped.append({candidates[name] for name in candidates if beaten(name, everybody)})
        return speeds

    def search(self, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, measured: bool = True) -> Search:
        for name in ("quantize", "open_model", "race", "layer_times", "shipped_size"):
            monkeypatch.setattr(module, name, getattr(self, name))
        return search_placement(model, {}, Recipe(), Judge(self), measured)  # type: ignore[arg-type]


@dataclass
class Judge:
    """Stands for the yardstick."""

    world: World

    def sqnr_db(self, built: Built) -> float:
        return self.world.sqnr_db(built.floats)

    def one(self) -> dict[str, Any]:
        return {}


def sums(costs: Mapping[str, float], base: float) -> Callable[[Floats], float]:
    return lambda floats: base + sum(costs.get(node, 0.0) for node in floats)


def deep(layers: int, last: str = "Gemm") -> onnx.ModelProto:
    """Make convolutions c0, c1, ... and at the end a Gemm, g, or one more of them."""
    nodes = [graphs.node("Conv", f"{f'c{n - 1}' if n else 'x'} w", f"c{n}") for n in range(layers)]
    if last == "Gemm":
        nodes += [graphs.node("Flatten", f"c{layers - 1}", "flat"), graphs.node("Gemm", "flat v", "g")]
    weights = {"w": np.ones((1, 1, 1, 1)), **({"v": np.ones((4, 2))} if last == "Gemm" else {})}
    return graphs.graph(nodes, (1, 2, 2), outputs=nodes[-1].output[0], **weights)


def tried(search: Search) -> set[Floats]:
    return {frozenset(one.floats) for one in search.tried}


def test_the_first_generation_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, each layer by itself, up to four leading convolutions, and those with the last layer, in one race."""
    model = deep(6)
    world = World(ratio=lambda floats: 0.5 + len(floats), sqnr_db=lambda floats: 30.0)
    search = world.search(model, monkeypatch)
    leading = [frozenset(f"c{n}" for n in range(count)) for count in range(5)]
    first = {*leading, *(floats | {"g"} for floats in leading), *(frozenset({f"c{n}"}) for n in range(6))}
    assert set(world.races[0]) == first
    assert len(world.races[0]) == len(first)
    assert first <= tried(search)
    assert search.chosen.floats == ()


def test_the_first_generation_begins_where_the_profiler_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that gain nothing by int8 are left in float together, and then those that gain little, up to most of them."""
    floating = {"c0": 10.0, "c1": 50.0, "c2": 20.0, "c3": 31.0, "c4": 40.0, "c5": 9.0, "product": 1.0}
    # The gains are -2 40 -1 1 10; `product` has no weights, so it is no layer.
    quantized = {"c0": 12.0, "c1": 10.0, "c2": 21.0, "c3": 30.0, "c4": 30.0, "g": 1.0, "product": 9.0}
    world = World(ratio=lambda floats: 0.5, sqnr_db=lambda floats: 30.0, times=(floating, quantized))
    world.search(deep(6), monkeypatch)
    first = set(world.races[0])
    assert {frozenset({"c0", "c2"}), frozenset({"c0", "c2", "c3"}), frozenset({"c0", "c2", "c3", "c4"})} <= first
    assert not any("product" in floats or {"c1", "c4"} <= floats for floats in first)


def test_layers_are_timed_under_their_own_names() -> None:
    """The profiler's times, whose kernels are renamed and fused, come back by layer, for the float and the int8 model."""
    model, feeds = small.chain(), {"x": small.images(1)}
    built = quantize(model, small.ranges_of(model, {"x": small.images()}), Recipe(), ["b"])
    for one in (model, built):
        times = layer_times(one, feeds)
        assert set(times) == {"a", "b", "c", "g"}
        assert all(time >= 0 for time in times.values())


def test_the_fastest_of_the_exact_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first layer in float that is quicker wins; one that is quicker still but costs a decibel does not."""
    world = World(ratio=sums({"c0": -0.1, "c1": -0.2, "c2": 0.1, "g": 0.1}, 0.6), sqnr_db=sums({"c1": -1.0}, 30.0))
    search = world.search(deep(3), monkeypatch)
    assert search.chosen.floats == ("c0",)
    assert search.chosen.speed is not None
    assert search.chosen.speed.ratio == pytest.approx(0.5)


def test_of_equally_fast_ones_the_most_exact_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies within 2 % are the same, and then the error decides; one that is 3 % slower is not among them."""
    world = World(
        ratio=sums({"c0": 0.005, "c1": 0.02, "c2": 0.1, "g": 0.1}, 0.5),
        sqnr_db=sums({"c0": 3.0, "c1": 9.0, "c2": 5.0}, 30.0),
    )
    search = world.search(deep(3), monkeypatch)
    assert search.chosen.floats == ("c0",)
    assert "the most exact of 2 placements within 2% of the fastest" in search.reason
    assert f"of {len(search.tried)} measured" in search.reason


def test_what_helps_apart_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inner layers that each pay are found together in the second generation, three in the third."""
    world = World(
        ratio=sums({"c2": -0.05, "c4": -0.06, "g": -0.04, **{f"c{n}": 0.1 for n in (0, 1, 3, 5)}}, 0.6),
        sqnr_db=sums({"c2": 1.0, "c4": 1.0, "g": 1.0}, 30.0),
    )
    search = world.search(deep(6), monkeypatch)
    assert frozenset({"c2", "c4"}) in world.races[1]
    assert search.chosen.floats == ("c2", "c4", "g")
    assert len(world.races) == 3


def test_a_layer_that_does_not_pay_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three leading layers that help as a whole, a middle one that costs is left out again."""
    ratio = {frozenset({"c0", "c2"}): 0.4, frozenset({"c0", "c1", "c2"}): 0.45}
    world = World(ratio=lambda floats: ratio.get(floats, 0.6), sqnr_db=lambda floats: 30.0)
    search = world.search(deep(6), monkeypatch)
    assert search.chosen.floats == ("c0", "c2")


def test_parents_race_again_with_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each later race holds the best so far, so that they are compared with what is new on one clock."""
    world = World(
        ratio=sums({"c0": -0.1, "c1": 0.1, "c2": 0.03, "c3": 0.04, "g": 0.05}, 0.6),
        sqnr_db=sums({"c0": 0.1, "c1": 2.0, "c2": 0.3, "c3": 0.4, "g": 0.5}, 30.0),
    )
    search = world.search(deep(4), monkeypatch)
    assert len(world.races) == 3
    for number in (1, 2):
        known = {floats for earlier in world.races[:number] for floats in earlier}
        assert {min(known, key=world.ratio), max(known, key=world.sqnr_db)} <= set(world.races[number])
        assert set(world.races[number]) - known
    assert len(tried(search)) == len(search.tried)


def test_only_who_is_slower_and_no_more_exact_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """`beaten` names a candidate if another is clearly faster, by their intervals, at no greater error."""
    world = World(ratio=sums({"c0": -0.1, "c1": 0.005, "c2": 0.1, "g": 0.1}, 0.6), sqnr_db=sums({"c2": 4.0}, 30.0))
    world.search(deep(3), monkeypatch)
    first = world.races[0]
    expected = {
        mine for mine in first
        if any(world.ratio(other) + 0.01 < world.ratio(mine) - 0.01 and world.sqnr_db(other) >= world.sqnr_db(mine) for other in first)
    }  # fmt: skip
    assert expected == world.stopped[0]
    assert frozenset({"c2"}) not in expected
    assert frozenset({"c0"}) not in expected


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random costs those marked are exactly those that no other is as good as everywhere and better somewhere."""
    rng = np.random.default_rng(seed)
    costs: dict[Floats, tuple[float, float, int]] = {}

    def cost(floats: Floats) -> tuple[float, float, int]:
        # Coarse, so that there are ties.
        return costs.setdefault(floats, (rng.integers(5, 9) / 10, float(rng.integers(20, 25)), int(rng.integers(1, 4))))

    world = World(lambda floats: cost(floats)[0], lambda floats: cost(floats)[1], lambda floats: cost(floats)[2])
    search = world.search(deep(5), monkeypatch)
    for one in search.tried:
        ratio, sqnr_db, size = cost(frozenset(one.floats))
        others = [cost(frozenset(other.floats)) for other in search.tried]
        better = [
            (a, b, c) for a, b, c in others
            if a <= ratio and b >= sqnr_db and c <= size and (a < ratio or b > sqnr_db or c < size)
        ]  # fmt: skip
        assert one.front is (not better)
    assert any(one.front for one in search.tried)
    # The chosen one is as exact as asked, and no other that is so is 2 % faster.
    base = cost(frozenset())
    exact = [cost(frozenset(one.floats)) for one in search.tried if cost(frozenset(one.floats))[1] >= base[1] - 0.5]
    chosen = cost(frozenset(search.chosen.floats))
    assert chosen in exact
    assert chosen[0] <= 1.02 * min(ratio for ratio, *_ in exact)
    level = [one for one in exact if one[0] <= 1.02 * min(ratio for ratio, *_ in exact)]
    smallest = min(size for *_, size in level)
    # A dB less of error is worth 2 % more of the file.
    worth = [sqnr - 50 * (size / smallest - 1) for _, sqnr, size in level]
    assert chosen[1] - 50 * (chosen[2] / smallest - 1) == pytest.approx(max(worth))


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [({"c1": 8.0}, ()), ({"c0": 0.9}, ()), ({"c0": 1.1}, ("c0",)), ({"g": 3.0, "c0": 2.0, "c1": 9.0}, ("g",))],
)
def test_another_machines_target_goes_by_error_alone(
    gains: dict[str, float], chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raced, and only a first or last layer that saves more than a decibel stays in float."""
    world = World(ratio=lambda floats: 1 / 0, sqnr_db=sums(gains, 30.0))
    search = world.search(deep(3), monkeypatch, measured=False)
    assert world.races == []
    assert search.chosen.floats == chosen
    assert search.reason == "by error alone: the target is not this machine"
    assert all(one.speed is None for one in search.tried)


@pytest.mark.parametrize("measured", [False, True])
def test_a_net_of_one_layer_has_one_placement(measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its only layer in float nothing would be quantized, so that is not tried."""
    world = World(ratio=lambda floats: 0.5, sqnr_db=lambda floats: 30.0)
    search = world.search(deep(1, last="Conv"), monkeypatch, measured)
    assert [one.floats for one in search.tried] == [()]
    assert search.chosen.floats == ()
    assert search.chosen.front


@pytest.mark.parametrize("measured", [False, True])
def test_a_net_without_a_plain_convolution_is_placed(measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed convolutions are layers as any; all of them in int8 is still what the others are held against."""
    nodes = [graphs.node("ConvTranspose", "x w", "t"), graphs.node("ConvTranspose", "t w", "y")]
    world = World(ratio=sums({"t": -0.1}, 0.6), sqnr_db=sums({"t": 2.0}, 30.0))
    search = world.search(graphs.graph(nodes, (1, 2, 2), w=np.ones((1, 1, 1, 1))), monkeypatch, measured)
    assert search.chosen.floats == ("t",)
    assert tried(search) == {frozenset(), frozenset({"t"}), frozenset({"y"})}


def test_any_name_of_a_node_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes called as the race calls its own, or like two others together, are told apart all the same."""
    model = deep(4)
    renamed = {"c0": "float", "c1": "all", "c2": "a", "c3": "all+a"}
    for node in model.graph.node:
        node.name = renamed.get(node.name, node.name)
    world = World(ratio=sums({"float": -0.1, "all": -0.05, "all+a": 0.2}, 0.6), sqnr_db=lambda floats: 30.0)
    search = world.search(model, monkeypatch)
    assert search.chosen.floats == ("all", "float")
    for one in search.tried:
        assert one.speed is not None
        assert one.speed.ratio == pytest.approx(world.ratio(frozenset(one.floats)))


def test_a_search_goes_through_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was searched comes back from its report as it was, also where a placement gave no finite answer."""
    model, feeds = small.chain(), from_arrays({"x": small.images()})
    yardstick = Yardstick(model, feeds)
    ranges = small.ranges_of(model, {"x": small.images()})
    worst = yardstick.sqnr_db
    monkeypatch.setattr(yardstick, "sqnr_db", lambda built: -300.0 if len(built.graph.node) % 2 else worst(built))
    search = search_placement(model, ranges, Recipe(), yardstick, measured=False)
    assert msgspec.json.decode(to_json(search), type=Search) == search


def test_real_models_are_built_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the chain, with errors and sizes as they are and no clock, a layer in float that lowers the error is found."""
    model, feeds = small.chain(), from_arrays({"x": small.images()})
    yardstick = Yardstick(model, feeds)
    raced: list[int] = []

    def race(sessions: Mapping[str, Any], reference: str, one: Mapping[str, Any], *rest: Any) -> dict[str, Speed]:
        outputs = {name: session.run(one)["y"] for name, session in sessions.items()}
        assert all(output.shape == (1, small.CLASSES) for output in outputs.values())
        raced.append(len(sessions))
        return {name: small.speed(0.5) for name in sessions if name != reference}

    monkeypatch.setattr(module, "race", race)
    ranges = small.ranges_of(model, {"x": small.images()})
    search = search_placement(model, ranges, Recipe(), yardstick)
    assert raced
    assert search.chosen.sqnr_db == max(one.sqnr_db for one in search.tried)
    assert "c" in search.chosen.floats  # which takes the loud channels in faint weights
    built = quantize(model, ranges, Recipe(), search.chosen.floats)
    assert search.chosen.bytes == shipped_size(built) < file_size(built)
