"""Which layers stay in float: searched with latency and error measured together on this machine, not by rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack

import onnx

from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.profile import layer_times
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.race import Speed, race
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.weight_only import shipped_size
from edgecnn.quantization.yardstick import Yardstick, open_model
from edgecnn.spec import Frozen

Floats = frozenset[str]
_GENERATIONS = 3
_SECONDS = 0.25  # of timing a candidate, where it is not beaten before
_PARENTS = 4  # placements that the next generation is made from
_DEEPEST = 4  # leading convolutions that are left in float together, at the most
_MOST = 48  # candidates of one generation
_THRESHOLDS = 8  # placements that the profiler suggests, about
_SAME = 0.02  # latencies that differ by less are the same: then the error decides
_BYTES_A_DB = 0.02  # of the file that a dB less error may add
_CLEARLY_DB = 1.0  # of error that a layer in float must save where latency is not measured
_LEVEL_DB = 0.5  # of error that a faster placement may lose against all layers in int8


class Placement(Frozen, frozen=True):
    """One choice of layers in float, by their nodes' names, and what it was measured to give.

    `speed` is against the float model, None where the target is not this machine. `front` says that no other is
    better in latency, error and size at once.
    """

    floats: tuple[str, ...]
    sqnr_db: float
    bytes: int
    speed: Speed | None = None
    front: bool = False


class Search(Frozen, frozen=True):
    """All placements that were tried, and the one chosen with the reason."""

    tried: tuple[Placement, ...]
    chosen: Placement
    reason: str


def search_placement(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    recipe: Recipe,
    yardstick: Yardstick,
    measured: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Try placements in generations and choose one.

    The first generation leaves in float nothing, what ONNX Runtime's profiler saw gain least by int8, the first and last
    layers in all small combinations, and each layer by itself; each further one joins the best with one another and takes single layers back. In each, candidates
    take turns on the clock, and one stops as soon as another is clearly faster at no greater error.
    `measured` False, for a target that is not this machine, goes by error alone and keeps to the first generation.
    """
    layers = [layer.node for layer in layers_of(model)]
    known: dict[Floats, Placement] = {}
    # First what the profiler suggests: a large net has more layers than a generation has places.
    suggested = _by_profile(model, ranges, recipe, yardstick) if measured else []
    wanted: Iterable[Floats] = [frozenset(), *suggested, *_first_generation(model)]
    for generation in range(_GENERATIONS if measured else 1):
        fresh = [floats for floats in dict.fromkeys(wanted) if floats not in known and len(floats) < len(layers)][
            :_MOST
        ]
        if not fresh:
            break
        say(f"placement: generation {generation + 1}, {len(fresh)} candidates")
        parents = [set(one.floats) for one in _parents(known.values())]
        known |= _measure(model, ranges, recipe, yardstick, fresh, measured, [frozenset(floats) for floats in parents])
        wanted = _next_generation(_parents(known.values()))
    tried = _with_front(list(known.values()))
    chosen, reason = _choose(tried, ends={layers[0], layers[-1]})
    return Search(tried=tuple(tried), chosen=chosen, reason=reason)


def _first_generation(model: onnx.ModelProto) -> list[Floats]:
    layers = layers_of(model)
    convolutions = [layer.node for layer in layers if layer.op == "Conv"]
    last = layers[-1].node
    leading = [frozenset(convolutions[:count]) for count in range(max(0, min(_DEEPEST, len(convolutions) - 1)) + 1)]
    return [*leading, *(floats | {last} for floats in leading), *(frozenset({layer.node}) for layer in layers)]


def _by_profile(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], recipe: Recipe, yardstick: Yardstick
) -> list[Floats]:
    """Leave in float what the profiler saw gain less than a threshold by int8, for a range of thresholds.

    Where most of a net does not gain, as in one full of HardSwish, this begins from the float side.
    """
    floating, quantized = (layer_times(one, yardstick.one()) for one in (model, quantize(model, ranges, recipe)))
    layers = {layer.node for layer in layers_of(model)}  # a product of two activations is timed too
    gains = {node: time - quantized[node] for node, time in floating.items() if node in quantized and node in layers}
    thresholds = sorted({0.0, *_quantiles(gains.values())})
    return [frozenset(node for node, gain in gains.items() if gain < threshold) for threshold in thresholds]


def _quantiles(values: Collection[float]) -> list[float]:
    ordered = sorted(value for value in values if value > 0)
    return [ordered[len(ordered) * step // _THRESHOLDS] for step in range(_THRESHOLDS)] if ordered else []


def _next_generation(parents: list[Placement]) -> list[Floats]:
    sets = [frozenset(parent.floats) for parent in parents]
    joined = [one | other for index, one in enumerate(sets) for other in sets[index + 1 :]]
    fewer = [floats - {node} for floats in sets for node in sorted(floats)]
    return [*joined[: _MOST // 2], *fewer, *joined[_MOST // 2 :]]


def _parents(tried: Iterable[Placement]) -> list[Placement]:
    """Take the fastest and the most exact, in turn."""
    everybody = list(tried)
    exact = sorted(everybody, key=lambda one: -one.sqnr_db)
    fast = sorted((one for one in everybody if one.speed), key=lambda one: one.speed.ratio if one.speed else 0)
    mixed = [one for pair in zip(fast or exact, exact, strict=False) for one in pair]
    return list(dict.fromkeys(mixed))[: 2 * _PARENTS]


def _measure(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    recipe: Recipe,
    yardstick: Yardstick,
    fresh: list[Floats],
    measured: bool,
    again: list[Floats],
) -> dict[Floats, Placement]:
    """Build and judge candidates; those of `again` race along, so that all that may be chosen were on one clock."""
    built = {floats: quantize(model, ranges, recipe, floats) for floats in dict.fromkeys([*fresh, *again])}
    errors = {floats: yardstick.sqnr_db(one) for floats, one in built.items()}
    speeds: dict[str, Speed] = {}
    if measured:
        names = {floats: str(number) for number, floats in enumerate(built)}
        by_name = {name: errors[floats] for floats, name in names.items()}

        def beaten(name: str, now: Mapping[str, Speed]) -> bool:
            mine = now[name]
            return any(
                other != name and speed.high < mine.low and by_name[other] >= by_name[name]
                for other, speed in now.items()
                if other in by_name
            )

        with ExitStack() as stack:
            sessions = {name: stack.enter_context(open_model(built[floats])) for floats, name in names.items()}
            sessions["float"] = stack.enter_context(open_model(model))
            found = race(sessions, "float", yardstick.one(), _SECONDS, beaten)
        speeds = {name: found[name] for name in by_name}
        return {
            floats: Placement(
                floats=tuple(sorted(floats)), sqnr_db=errors[floats], bytes=shipped_size(built[floats]),
                speed=speeds[names[floats]],
            )
            for floats in built
        }  # fmt: skip
    return {
        floats: Placement(floats=tuple(sorted(floats)), sqnr_db=errors[floats], bytes=shipped_size(one))
        for floats, one in built.items()
    }


def _with_front(tried: list[Placement]) -> list[Placement]:
    """Mark those that no other beats in latency, error and size at once."""

    def costs(one: Placement) -> tuple[float, float, int]:
        return (one.speed.ratio if one.speed else 0.0, -one.sqnr_db, one.bytes)

    def beats(one: Placement, other: Placement) -> bool:
        a, b = costs(one), costs(other)
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [
        Placement(
            **{
                **{name: getattr(one, name) for name in ("floats", "sqnr_db", "bytes", "speed")},
                "front": not any(beats(other, one) for other in tried),
            }
        )
        for one in tried
    ]


def _choose(tried: list[Placement], ends: Collection[str]) -> tuple[Placement, str]:
    """Choose the fastest that is about as exact as all layers in int8; of equally fast ones the most exact for its size."""
    base = next(one for one in tried if not one.floats)
    exact = [one for one in tried if one.sqnr_db >= base.sqnr_db - _LEVEL_DB]
    if base.speed is None:
        # Not measured: a layer in float is taken only where it clearly lowers the error, and only at the ends, where
        # it costs no conversion of its own.
        single = [one for one in exact if len(one.floats) == 1 and one.floats[0] in ends]
        better = [one for one in single if one.sqnr_db > base.sqnr_db + _CLEARLY_DB]
        chosen = max(better, key=lambda one: one.sqnr_db, default=base)
        return chosen, "by error alone: the target is not this machine"
    quickest = min(one.speed.ratio for one in exact if one.speed)
    level = [one for one in exact if one.speed and one.speed.ratio <= quickest * (1 + _SAME)]
    smallest = min(one.bytes for one in level)
    chosen = max(level, key=lambda one: one.sqnr_db - (one.bytes / smallest - 1) / _BYTES_A_DB)
    return (
        chosen,
        f"the most exact of {len(level)} placements within {_SAME:.0%} of the fastest, of {len(tried)} measured; a dB is "
        f"worth {_BYTES_A_DB:.0%} of the file",
    )
