"""From what a tensor was seen to hold to the range its quantizer covers; what lies outside is clipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgecnn.errors import UsageError
from edgecnn.quantization.observe import Floats, Observed, bin_of

Method = Literal["min-max", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)
Range = tuple[float, float]

LEVELS = 255
PERCENTILE = 99.99
# A tensor that stays below this is all zero to a quantizer: its step would underflow in float32.
TINY = 1e-35
# Relative entropy tells nothing of a range so narrow that nearly all is clipped, or all that is left lies in a bin or
# two: the distributions compared are then the same. Of few values, or very peaked ones, it would be chosen.
_FEWEST_BINS = 8
_MOST_CLIPPED = 0.01
# Where a clipped value falls into a bin that held nothing, it is expected half as often as once.
_UNSEEN = 0.5
_OCTAVES = 10
_ZOOMS = 3
_ZOOM_STEPS = 4


def choose_range(
    observed: Observed, method: Method, symmetric: bool = False, levels: int = LEVELS, percentile: float = PERCENTILE
) -> Range:
    """Choose the range (low, high) for quantization into `levels` equal steps.

    It always contains 0, which must be exact; beyond that it is never wider than what was observed, and never empty:
    a tensor of zeros gets (0, 1). With `symmetric` it is (-high, high), for number types without a zero point.

    - "min-max": all that was observed.
    - "percentile": without half of what `percentile` leaves, in percent, at either end.
    - "mse": the least expected squared error, of rounding and clipping together.
    - "entropy": the least relative entropy of the quantized distribution (Migacz, 8-bit Inference with TensorRT,
      GTC 2017, slides 29 to 36), here for ranges with two ends; see `relative_entropy`.

    Raises:
        UsageError: the method is unknown, or `levels` or `percentile` is not one that could be meant.
    """
    if method not in METHODS:
        raise UsageError(f"calibration method {method!r} is not known; choose one of {', '.join(METHODS)}")
    if levels < 2 or not 50 < percentile <= 100:
        raise UsageError(f"{levels} levels, percentile {percentile}: at least 2 are needed, and from 50 to 100")
    low, high = min(0.0, observed.low), max(0.0, observed.high)
    peak = max(-low, high)
    if peak < TINY:
        return (-1.0, 1.0) if symmetric else (0.0, 1.0)
    whole = (-peak, peak) if symmetric else (low, high)
    levels -= levels % 2 if symmetric else 0  # as many steps below zero as above
    if method == "min-max" or observed.low == observed.high:
        return whole
    if method == "percentile":
        return _percentile(observed, percentile, symmetric) or whole
    cost = _squared_error(observed, levels) if method == "mse" else _divergence(observed, levels)
    return _search(cost, whole, symmetric)


def _percentile(observed: Observed, percentile: float, symmetric: bool) -> Range | None:
    """Find the ends by interpolation within bins and jumps at spikes; None where nothing but zeros would be left."""
    spread, points, masses = _without_spikes(observed)
    edges = observed.edges
    knots = np.sort(np.concatenate([edges, points]))
    even = np.interp(knots, edges, np.concatenate([[0.0], np.cumsum(spread)]))
    jumps = [even + masses @ (points[:, None] < knots), even + masses @ (points[:, None] <= knots)]
    below = np.stack(jumps, axis=1).ravel()  # how many values lie below each knot, and how many up to it
    tail = observed.count * (1 - percentile / 100) / 2
    # Where the count stands still, over empty bins, either end stops at the side of the gap that is nearer to the middle.
    positions = [np.searchsorted(below, tail, side="right"), np.searchsorted(below, observed.count - tail)]
    low = _crossing(np.repeat(knots, 2), below, tail, int(positions[0]))
    high = _crossing(np.repeat(knots, 2), below, observed.count - tail, int(positions[1]))
    low, high = min(0.0, low), max(0.0, high)
    peak = max(-low, high)
    if peak < TINY:
        return None
    return (-peak, peak) if symmetric else (low, high)


def _crossing(knots: Floats, below: Floats, wanted: float, at: int) -> float:
    """Interpolate between knot `at` and the one before, between which the count passes what is wanted."""
    at = min(max(at, 1), knots.size - 1)
    rise = below[at] - below[at - 1]
    share = min(max((wanted - below[at - 1]) / rise, 0.0), 1.0) if rise else 0.0
    return float(knots[at - 1] + (knots[at] - knots[at - 1]) * share)


def _search(cost: Callable[[float, float], float], whole: Range, symmetric: bool) -> Range:
    """Find the ends of least cost: in half octaves down to a thousandth of the whole, then ever closer around the best.

    Costs have their least value in a wide valley, so that a coarse grid does not miss it. Among equals the widest wins.
    """
    ratio = 2**-0.5
    best, least = whole, cost(*whole)
    offsets = range(2 * _OCTAVES + 1)
    for _ in range(_ZOOMS + 1):
        factors = [ratio**offset for offset in offsets]
        for low, high in _pairs(best, whole, factors, symmetric):
            found = cost(low, high)
            if found < least:
                (best, least) = (low, high), found
        ratio **= 1 / _ZOOM_STEPS
        offsets = range(-_ZOOM_STEPS, _ZOOM_STEPS + 1)
    return best


def _pairs(around: Range, whole: Range, factors: list[float], symmetric: bool) -> list[Range]:
    lows = sorted({max(whole[0], around[0] * factor) for factor in factors})
    highs = sorted({min(whole[1], around[1] * factor) for factor in factors}, reverse=True)
    return [(-high, high) for high in highs] if symmetric else list(itertools.product(lows, highs))


def _squared_error(observed: Observed, levels: int) -> Callable[[float, float], float]:
    """Make the cost of a range: the mean squared error of quantizing what was observed.

    Within a bin values are taken to be spread evenly. Let the grid's steps be d, and k(x) the level nearest to x, from
    the first to the last there is. The integral of the squared error from 0 to x is then k d^3 / 12 + (x - k d)^3 / 3:
    k whole cells, and what x lies beside its level, near or, once clipped, far. Values on spikes are not spread.
    """
    spread, points, masses = _without_spikes(observed)
    edges = observed.edges
    density = spread / (edges[1] - edges[0])

    def cost(low: float, high: float) -> float:
        step = (high - low) / levels
        zero = np.rint(-low / step)
        nearest = np.clip(np.rint(edges / step), -zero, levels - zero)
        beside = edges - nearest * step
        integral = nearest * (step**3 / 12) + beside * beside * beside / 3
        at_points = points - step * np.clip(np.rint(points / step), -zero, levels - zero)
        return float(density @ np.diff(integral) + masses @ np.square(at_points)) / observed.count

    return cost


def _without_spikes(observed: Observed) -> tuple[Floats, Floats, Floats]:
    """Part the histogram from the values that are exactly 0, least or largest: counts left, and points with theirs."""
    spikes = {0.0: observed.zeros, observed.low: observed.at_low, observed.high: observed.at_high}
    points = np.array([value for value, count in spikes.items() if count])
    masses = np.array([count for count in spikes.values() if count], dtype=np.float64)
    spread = observed.histogram.astype(np.float64)
    np.subtract.at(spread, bin_of(points, observed.low, observed.high, spread.size), masses)
    return spread, points, masses


def _divergence(observed: Observed, levels: int) -> Callable[[float, float], float]:
    """Make the cost of a range: the relative entropy that quantization to it costs, zeros aside.

    Zeros are exact whatever the range, and behind a ReLU they are half of all values: they would drown the rest.
    """
    histogram = observed.histogram.astype(np.float64)
    edges = observed.edges
    centres = (edges[1:] + edges[:-1]) / 2
    if observed.zeros:
        histogram[bin_of(np.zeros(1), observed.low, observed.high, histogram.size)] -= observed.zeros
    most = _MOST_CLIPPED * histogram.sum()

    def cost(low: float, high: float) -> float:
        first, last = np.searchsorted(centres, (low, high))
        below, above = histogram[:first].sum(), histogram[last:].sum()
        if last - first < _FEWEST_BINS or below + above > most:
            return np.inf
        step = (high - low) / levels
        groups = np.rint(centres[first:last] / step).astype(np.int64)
        return relative_entropy(histogram[first:last], groups - groups[0], below, above)

    return cost


def relative_entropy(counts: Floats, groups: npt.NDArray[np.int64], below: float, above: float) -> float:
    """Compare, in nats, what a range is to represent with what its levels can.

    The one distribution P is `counts`, with the `below` and `above` that are clipped added to the outermost bins.
    The other, Q, is `counts` without those, spread evenly over the bins of each of the `groups` (one number a bin,
    from 0, the level it is rounded to) that hold any. So a range too wide pays for bins that share a level, and one
    too narrow for values that were clipped. Nothing is divided by zero: bins that hold nothing take no part, and an
    outermost one that holds but clipped values counts as half seen in Q.
    """
    reference = counts.copy()
    reference[0] += below
    reference[-1] += above
    in_group = np.bincount(groups, weights=counts)
    filled = np.bincount(groups, weights=counts > 0)
    candidate = np.where(counts > 0, (in_group / np.maximum(filled, 1))[groups], 0.0)
    taking_part = reference > 0
    p, q = reference[taking_part], np.maximum(candidate[taking_part], _UNSEEN)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
