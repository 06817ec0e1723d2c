"""Ranges from histograms against brute force on the raw values, numpy's percentiles and scipy's relative entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from edgecnn.errors import UsageError
from edgecnn.quantization.observe import Observed
from edgecnn.quantization.ranges import METHODS, Method, choose_range, relative_entropy

Array = npt.NDArray[Any]
N = 12_000


def seen(values: Array, bins: int = 2048) -> Observed:
    """Observe values with numpy alone."""
    values = values.astype(np.float32).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low == high:
        histogram = np.zeros(bins, dtype=np.int64)
        histogram[0] = values.size
    else:
        histogram = np.histogram(values, bins=bins, range=(low, high))[0].astype(np.int64)
    return Observed(
        low=low,
        high=high,
        mean=float(values.mean()),
        rms=float(np.sqrt((values**2).mean())),
        count=values.size,
        histogram=histogram,
        zeros=int((values == 0).sum()),
        at_low=int((values == low).sum()),
        at_high=int((values == high).sum()),
    )


def samples(name: str) -> Array:
    """Draw what activations look like."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=N)
    found: Array = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(4 * normal + 2, 0, 6),
        "hardswish": 2 * normal * np.clip(2 * normal + 3, 0, 6) / 6,
        "sigmoid": 1 / (1 + np.exp(-4 * normal)),
        "laplace": rng.laplace(size=N),
        "heavy tails": rng.standard_t(3, size=N),
        "lognormal": rng.lognormal(size=N),
        "uniform": rng.uniform(-1, 3, size=N),
        "negative": -np.abs(normal),
        "shifted": normal + 10,
        "sparse": np.where(rng.random(N) < 0.999, 0.0, np.abs(normal)),
        "few": normal[:50],
    }[name].astype(np.float32)
    return found


NAMES = (
    "normal", "relu", "relu6", "hardswish", "sigmoid", "laplace", "heavy tails", "lognormal", "uniform", "negative",
    "shifted", "sparse", "few",
)  # fmt: skip


def squared_error(values: Array, low: float, high: float, levels: int) -> float:
    """Quantize and dequantize as ONNX's QuantizeLinear does, and measure."""
    scale = (high - low) / levels
    zero_point = round(-low / scale)
    quantized = np.clip(np.rint(values / scale) + zero_point, 0, levels)
    return float(np.mean(((quantized - zero_point) * scale - values) ** 2))


def least_error(values: Array, levels: int, symmetric: bool) -> float:
    """Try every pair of ends on a fine grid."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if symmetric:
        peak = max(-low, high)
        return min(squared_error(values, -peak * f, peak * f, levels - 1) for f in np.linspace(0.05, 1, 400))
    shares = np.linspace(0.05, 1, 1500 if low == 0 or high == 0 else 40)
    lows, highs = (shares * low if low else [0.0]), (shares * high if high else [0.0])
    return min(squared_error(values, a, b, levels) for a in lows for b in highs)


@pytest.fixture(scope="module")
def with_outlier() -> tuple[Array, Observed]:
    """Two million normal values and one of 100 standard deviations."""
    values = np.append(np.random.default_rng(0).normal(size=2_000_000), 100.0).astype(np.float32)
    return values, seen(values)


@pytest.mark.parametrize("levels", [255, 15])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_brute_forces_best(name: str, symmetric: bool, levels: int) -> None:
    """On the raw values the chosen range has within a percent of the least error that any pair of ends on a grid has.

    Fifty values, or a dozen among zeros, are too few for that: what lies where in a bin then matters.
    """
    values = samples(name).astype(np.float64)
    low, high = choose_range(seen(values), "mse", symmetric, levels)
    error = squared_error(values, low, high, levels - 1 if symmetric else levels)
    assert error <= (1.2 if name in ("few", "sparse") else 1.01) * least_error(values, levels, symmetric)


def test_mse_cuts_where_it_pays() -> None:
    """With 15 levels the tails of a normal distribution are cut at 2 to 3 standard deviations, a uniform one nowhere."""
    low, high = choose_range(seen(samples("normal")), "mse", levels=15)
    assert -3.2 < low < -2
    assert 2 < high < 3.2
    whole = seen(samples("uniform"))
    assert choose_range(whole, "mse", levels=15) == pytest.approx((whole.low, whole.high), rel=0.03)


def test_mse_knows_spikes() -> None:
    """Values that are exactly 0 or on an end cost nothing there, so a clipped tensor keeps its range to the digit."""
    values = np.repeat(np.array([0.0, 6.0], dtype=np.float32), [900, 100])
    values = np.append(values, np.random.default_rng(0).uniform(0, 6, 20).astype(np.float32))
    assert choose_range(seen(values), "mse") == (0.0, 6.0)


@pytest.mark.parametrize("percentile", [99.99, 99.0, 80.0, 100.0])
@pytest.mark.parametrize("name", NAMES)
def test_percentile_leaves_out_what_it_says(name: str, percentile: float) -> None:
    """Beyond either end lie as many of the raw values as the percentile says, give or take a bin.

    An end that would cut zeros alone is 0; where both would, the range is the whole.
    """
    values = np.sort(samples(name).astype(np.float64))
    observed = seen(values)
    width = 1.001 * (observed.high - observed.low) / 2048
    low, high = choose_range(observed, "percentile", percentile=percentile)
    tail = round(values.size * (100 - percentile) / 200, 6)
    ends = np.percentile(values, [50 - percentile / 2, 50 + percentile / 2], method="nearest")
    if not ends.any():
        assert (low, high) == (min(0.0, observed.low), max(0.0, observed.high))
        return
    if low < 0:
        assert (values < low - width).sum() <= tail <= (values <= low + width).sum()
    else:
        assert (values < -width).sum() <= tail
    if high > 0:
        assert (values > high + width).sum() <= tail <= (values >= high - width).sum()
    else:
        assert (values > width).sum() <= tail


def test_percentile_leaves_gaps_out() -> None:
    """Where an end may lie anywhere in a stretch without values, it takes no level for any of it."""
    body = np.random.default_rng(2).uniform(-1, 1, 768)
    values = np.concatenate([np.full(128, -10.0), body, np.full(128, 20.0)])
    expected = (body.min(), body.max())
    assert choose_range(seen(values), "percentile", percentile=75.0) == pytest.approx(expected, abs=1.001 * 30 / 2048)


def test_percentile_by_default() -> None:
    """One value in twenty thousand is left out at either end unless told otherwise."""
    values = np.random.default_rng(2).normal(size=400_000)
    expected = np.percentile(values, [0.005, 99.995])
    assert choose_range(seen(values), "percentile") == pytest.approx(expected, abs=0.01)


def scipys_entropy(counts: list[float], levels_of: list[int], below: float, above: float) -> float:
    """Do the slides' steps one after the other, on lists, and leave the rest to scipy."""
    reference = [counts[0] + below, *counts[1:-1], counts[-1] + above]
    candidate = [0.0] * len(counts)
    for level in set(levels_of):
        members = [at for at, own in enumerate(levels_of) if own == level and counts[at]]
        for at in members:
            candidate[at] = sum(counts[other] for other in members) / len(members)
    for at in (0, -1):
        if reference[at] and not candidate[at]:
            candidate[at] = 0.5
    return float(stats.entropy(reference, candidate))


@pytest.mark.parametrize("seed", range(20))
def test_relative_entropy_is_scipys(seed: int) -> None:
    """Random histograms with empty bins, and values clipped at either end, cost what scipy.stats.entropy says."""
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random(40) < 0.4, 0, rng.integers(1, 100, 40)).astype(np.float64)
    counts[20] = 7
    groups = np.arange(40) * (seed + 3) // 40
    below, above = (float(value) for value in rng.integers(0, 9, 2) * (seed % 3))
    expected = scipys_entropy(counts.tolist(), groups.tolist(), below, above)
    assert relative_entropy(counts, groups, below, above) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["relu", "negative", "lognormal"])
def test_entropy_is_brute_forces_best(name: str) -> None:
    """Of a one-sided tensor, no cut at any bin is much better than the one chosen, by scipy's count.

    Zeros do not count, as they are exact whatever the cut.
    """
    values = samples(name).astype(np.float64)
    mirror = -1.0 if values.min() < 0 else 1.0
    observed = seen(values * mirror)
    loud = values[values != 0] * mirror
    counts, edges = np.histogram(loud, bins=2048, range=(observed.low, observed.high))
    centres = (edges[1:] + edges[:-1]) / 2

    def cost(end: float) -> float:
        inside = int((centres < end).sum())
        levels = np.rint(centres[:inside] / (end / 255)).astype(int)
        return scipys_entropy(counts[:inside].tolist(), levels.tolist(), 0, float(counts[inside:].sum()))

    best = min(cost(edges[at]) for at in range(64, 2049, 32))
    low, high = (mirror * end for end in choose_range(seen(values), "entropy"))
    assert min(low, high) == 0
    assert cost(max(low, high)) <= best + 0.01


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [40, 480, 4000])
def test_entropy_of_few_values(count: int, seed: int) -> None:
    """Of a few hundred values, as a layer behind global pooling has, no more than a hundredth is clipped, zeros aside.

    Most bins are then empty, and a range around hardly any value would look as good as all.
    """
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.normal(0.3, 0.6, count), 0)
    loud = values[values > 0]
    low, high = choose_range(seen(values), "entropy")
    assert low == 0
    assert np.mean(loud > high * 1.001) <= 0.01
    low, high = choose_range(seen(values - 0.3), "entropy")
    assert np.mean((values - 0.3 < low * 1.001) | (values - 0.3 > high * 1.001)) <= 0.01


def test_entropy_of_a_peak() -> None:
    """Where nearly all values lie in one bin of 2,048, the range does not shrink to that one."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(0, 1 / 2048, 99_500), rng.uniform(0, 1, 500)])
    assert choose_range(seen(values), "entropy")[1] > 6 / 2048


def test_entropy_cuts_both_ends_alike() -> None:
    """A symmetric distribution is cut at both ends, its mirror image likewise, and a shift of one end moves only that."""
    values = np.random.default_rng(8).laplace(size=200_000)
    low, high = choose_range(seen(values), "entropy")
    assert values.min() < low < 0.7 * values.min() or low == pytest.approx(values.min())
    assert choose_range(seen(-values), "entropy") == pytest.approx((-high, -low), rel=0.02)
    kept = float(np.mean((values >= low) & (values <= high)))
    assert kept > 0.999


@pytest.mark.parametrize("symmetric", [False, True])
def test_outlier_is_cut_by_all_but_min_max(with_outlier: tuple[Array, Observed], symmetric: bool) -> None:
    """One value in two million, 20 times as large as the rest, keeps its place only with min-max."""
    values, observed = with_outlier
    found = {method: choose_range(observed, method, symmetric) for method in METHODS}
    assert found["min-max"] == (-100.0 if symmetric else observed.low, 100.0)
    assert found["percentile"][1] == pytest.approx(np.percentile(values, 99.995), abs=0.06)
    assert found["entropy"][1] < 8
    assert found["mse"][1] < 50
    errors = {name: squared_error(values, *ends, 254 if symmetric else 255) for name, ends in found.items()}
    assert errors["mse"] == min(errors.values()) < errors["min-max"] / 3


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_ranges_are_sound(name: str, method: Method, symmetric: bool) -> None:
    """A range holds 0, is not empty, is no wider than what was observed and 0, and is symmetric where asked."""
    values = samples(name)
    for bins in (2048, 100, 3, 1):
        observed = seen(values, bins)
        low, high = choose_range(observed, method, symmetric)
        peak = max(-observed.low, observed.high)
        assert low <= 0 <= high
        assert low < high
        if symmetric:
            assert low == -high
            assert high <= peak
        else:
            assert min(observed.low, 0) <= low
            assert high <= max(observed.high, 0)
        assert isinstance(low, float)
        assert isinstance(high, float)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "expected", "symmetric_end"),
    [(0.0, (0.0, 1.0), 1.0), (3.0, (0.0, 3.0), 3.0), (-2.0, (-2.0, 0.0), 2.0), (1e-40, (0.0, 1.0), 1.0)],
)
def test_constant_tensors(method: Method, value: float, expected: tuple[float, float], symmetric_end: float) -> None:
    """A constant gets the range from 0 to it; zeros, and what float32 could not divide by, get (0, 1)."""
    observed = seen(np.full(100, value, dtype=np.float32))
    assert choose_range(observed, method) == expected
    assert choose_range(observed, method, symmetric=True) == (-symmetric_end, symmetric_end)


@pytest.mark.parametrize("method", METHODS)
def test_dead_tensor_with_one_live_value(method: Method) -> None:
    """Where all but one of a million values are 0, that one makes the range."""
    values = np.zeros(1_000_000, dtype=np.float32)
    values[7] = 0.25
    assert choose_range(seen(values), method) == (0.0, 0.25)


def test_bad_arguments() -> None:
    """An unknown method is refused with the known ones; so are one level and a percentile that leaves nothing."""
    observed = seen(samples("few"))
    with pytest.raises(UsageError, match="'median' is not known; choose one of min-max, entropy, percentile, mse"):
        choose_range(observed, "median")  # type: ignore[arg-type]
    for levels, percentile in ((1, 99.99), (255, 50.0), (255, 100.1), (255, float("nan"))):
        with pytest.raises(UsageError, match=f"{levels} levels, percentile {percentile}"):
            choose_range(observed, "mse", levels=levels, percentile=percentile)
