"""Bounds on a paired drop against published tables, scipy, a slow reimplementation, and exact coverage."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from edgecnn.parity.intervals import clopper_pearson_upper, detectable_drop, drop_interval, images_needed, tango_upper

# (both right, lost, gained, both wrong), the one-sided confidence of each tail, and the limits to the digits printed.
PUBLISHED = [
    ((59, 6, 16, 80), 0.975, "-0.124023", "-0.005433"),
    ((1, 1, 7, 12), 0.975, "-0.517232", "-0.026003"),
    ((20, 12, 2, 16), 0.975, "0.0611", "0.3447"),
    ((4, 9, 3, 16), 0.975, "-0.027", "0.390"),
    ((53, 16, 8, 9), 0.975, "-0.020", "0.207"),
    ((7, 25, 2, 68), 0.975, "0.139", "0.321"),
    ((43, 0, 1, 0), 0.95, "-0.095662", "0.036517"),
]


@pytest.mark.parametrize(("table", "confidence", "low", "high"), PUBLISHED)
def test_tango_as_published(table: tuple[int, int, int, int], confidence: float, low: str, high: str) -> None:
    """Both of Tango's limits are the published ones, to the last digit printed."""
    _, lost, gained, _ = table
    n = sum(table)
    for found, printed in (
        (-tango_upper(gained, lost, n, confidence), low),
        (tango_upper(lost, gained, n, confidence), high),
    ):
        assert found == pytest.approx(float(printed), abs=0.51 * 10.0 ** -len(printed.partition(".")[2]))


@pytest.mark.parametrize("n", [1, 10, 360, 719, 100_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975, 0.999])
def test_tango_without_discordant_pairs_has_a_closed_form(n: int, confidence: float) -> None:
    """Without a flip the limit is z^2 / (n + z^2)."""
    z2 = stats.norm.ppf(confidence) ** 2
    assert tango_upper(0, 0, n, confidence) == pytest.approx(z2 / (n + z2), rel=1e-9)


def _likelihood_score(lost: int, gained: int, n: int, drop: float) -> float:
    """Tango's statistic with the nuisance rate found by maximising the likelihood, not by the closed form."""

    def slope(gain_rate: float) -> float:  # of the log likelihood, falling in gain_rate
        same = n - lost - gained
        return lost / (gain_rate + drop) + gained / gain_rate - 2 * same / (1 - 2 * gain_rate - drop)

    least, most = max(0.0, -drop), (1 - drop) / 2
    gain_rate = brentq(slope, least + 1e-14, most - 1e-14, xtol=1e-15)
    return (lost - gained - n * drop) / math.sqrt(n * (2 * gain_rate + drop - drop**2))


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(6, 16, 161), (5, 3, 40), (1, 4, 719), (30, 10, 200), (3, 3, 12), (9, 1, 11)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_tango_solves_the_score_equation(lost: int, gained: int, n: int, confidence: float) -> None:
    """At the limit the score, its nuisance rate found by numerical likelihood, is the normal quantile."""
    limit = tango_upper(lost, gained, n, confidence)
    assert _likelihood_score(lost, gained, n, limit) == pytest.approx(-stats.norm.ppf(confidence), rel=1e-6)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (1, 2), (0, 719), (5, 719), (718, 719), (300, 10_000), (50_000, 1_000_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_clopper_pearson_is_the_beta_quantile(k: int, n: int, confidence: float) -> None:
    """The exact limit is scipy's beta quantile, and one where all were seen."""
    expected = 1.0 if k == n else stats.beta.ppf(confidence, k + 1, n - k)
    assert clopper_pearson_upper(k, n, confidence) == pytest.approx(expected, rel=1e-8)


def test_no_flip_in_360_images() -> None:
    """Without a flip in 360 images the bound is 0.83 points, which is also the smallest detectable drop."""
    assert round(detectable_drop(360) * 100, 2) == 0.83
    assert detectable_drop(360) == pytest.approx(stats.beta.ppf(0.95, 1, 360), rel=1e-12)
    low, high = drop_interval(0, 0, 360)
    assert high == pytest.approx(detectable_drop(360), rel=1e-9)
    assert low == pytest.approx(-high, rel=1e-12)
    assert high > tango_upper(0, 0, 360)


@pytest.mark.parametrize("n", [50, 360, 2000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975, 0.99])
def test_the_detectable_drop_is_the_bound_without_a_flip(n: int, confidence: float) -> None:
    """What is said to be detectable is what the verdict would exclude if no answer differed, at any confidence."""
    assert detectable_drop(n, confidence) == pytest.approx(drop_interval(0, 0, n, confidence)[1], rel=1e-9)


COUNTS = [(0, 0, 10), (3, 0, 360), (6, 16, 161), (40, 2, 100), (0, 9, 50), (300, 0, 10_000), (3, 3, 3000)]


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_upper_end_is_the_wider_of_two(lost: int, gained: int, n: int, confidence: float) -> None:
    """For a net loss the upper end is the higher of Tango's and the exact binomial one, for a net gain no less."""
    net, high = lost - gained, drop_interval(lost, gained, n, confidence)[1]
    tango = tango_upper(lost, gained, n, confidence)
    if net >= 0:
        assert high == pytest.approx(max(tango, stats.beta.ppf(confidence, net + 1, n - net)), rel=1e-9)
    else:
        assert high >= max(tango, -stats.beta.ppf(1 - confidence, -net, n + net + 1)) - 1e-9
        assert high <= max(tango, stats.beta.ppf(confidence, 1, n)) + 1e-9


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_lower_end_is_the_wider_of_two(lost: int, gained: int, n: int, confidence: float) -> None:
    """The lower end is the lower of Tango's and the exact binomial one, which is above zero for a net loss."""
    net, low = lost - gained, drop_interval(lost, gained, n, confidence)[0]
    tango = -tango_upper(gained, lost, n, confidence)
    exact = (
        stats.beta.ppf(1 - confidence, net, n - net + 1) if net > 0 else -stats.beta.ppf(confidence, 1 - net, n + net)
    )
    assert low == pytest.approx(min(tango, exact), rel=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
def test_the_drop_lies_between_the_ends(lost: int, gained: int, n: int) -> None:
    """The drop that was seen lies inside the interval, and the interval inside minus one to one."""
    low, high = drop_interval(lost, gained, n)
    assert -1 <= low < (lost - gained) / n < high <= 1


def test_a_clear_loss_has_a_lower_end_above_zero() -> None:
    """Twenty of a hundred lost and none gained shows a drop of more than ten points: a FAIL must be possible."""
    assert drop_interval(20, 0, 100)[0] > 0.10
    assert drop_interval(300, 0, 10_000)[0] > 0.02


def test_the_bound_grows_with_losses_and_shrinks_with_images() -> None:
    """More losses or a higher confidence widen the bound, and more images at the same rates narrow it."""
    bounds = [drop_interval(lost, 2, 300)[1] for lost in range(12)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]
    assert drop_interval(3, 2, 300, 0.99)[1] > drop_interval(3, 2, 300, 0.95)[1]
    assert drop_interval(30, 20, 3000)[1] < drop_interval(3, 2, 300)[1]


def test_the_most_extreme_counts_have_bounds() -> None:
    """All lost bounds the drop by one, all gained leaves a bound below zero, and a single image says nothing."""
    assert drop_interval(50, 0, 50)[1] == 1.0
    assert drop_interval(1, 0, 1)[1] == 1.0
    assert tango_upper(0, 50, 50) < 0
    assert drop_interval(0, 0, 1)[1] == pytest.approx(0.95, rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "confidence"),
    [(0, 0, 0, 0.95), (-1, 0, 9, 0.95), (0, -1, 9, 0.95), (5, 5, 9, 0.95), (0, 0, 9, 0.5), (0, 0, 9, 1.0)],
)
def test_impossible_counts_are_refused(lost: int, gained: int, n: int, confidence: float) -> None:
    """No images, negative counts, more flips than images, and a confidence that is none have no interval."""
    with pytest.raises(ValueError, match="no interval"):
        drop_interval(lost, gained, n, confidence)


def test_images_needed_without_a_flip() -> None:
    """Without a flip a budget of one point needs 299 images, told as 300; with those the bound is inside it."""
    exact = math.ceil(math.log(0.05) / math.log(0.99))
    assert exact == 299
    for n in (20, 100, 250):
        needed = images_needed(0, 0, n, 0.01)
        assert needed == 300
        assert drop_interval(0, 0, needed)[1] < 0.01
    assert drop_interval(0, 0, exact - 1)[1] > 0.01


@pytest.mark.parametrize(
    ("lost", "gained", "n", "budget"),
    [
        (1, 0, 360, 0.01),
        (2, 1, 200, 0.02),
        (4, 4, 360, 0.005),
        (3, 5, 719, 0.005),
        (7, 3, 1000, 0.01),
        (0, 4, 99, 0.01),
    ],
)
def test_images_needed_are_enough_and_not_far_too_many(lost: int, gained: int, n: int, budget: float) -> None:
    """At the rates seen, the number told brings the bound inside the budget, and half of it would not."""
    needed = images_needed(lost, gained, n, budget)
    assert needed is not None
    assert needed % 100 == 0

    def bound(images: int) -> float:
        return drop_interval(round(lost * images / n), round(gained * images / n), images)[1]

    assert bound(needed) < budget
    assert needed == 100 or bound(needed // 2) >= budget


@pytest.mark.parametrize(("lost", "gained", "n", "budget"), [(5, 0, 100, 0.01), (2, 1, 100, 0.01), (0, 0, 100, 0.0)])
def test_no_number_of_images_helps_a_drop_over_budget(lost: int, gained: int, n: int, budget: float) -> None:
    """Where the drop seen is no smaller than the budget, no number is promised."""
    assert images_needed(lost, gained, n, budget) is None


@cache
def _bound(lost: int, gained: int, n: int) -> float:
    return drop_interval(lost, gained, n)[1]


@pytest.mark.parametrize("n", [30, 100, 360])
@pytest.mark.parametrize(
    ("lose", "gain"), [(0.01, 0.0), (0.02, 0.0), (0.02, 0.01), (0.03, 0.02), (0.05, 0.04), (0.05, 0.02), (0.1, 0.02)]
)
def test_the_bound_misses_no_more_often_than_it_says(n: int, lose: float, gain: float) -> None:
    """Over 20,000 simulated test sets the true drop lies above the 95 % bound in no more than 5.5 % of them."""
    rng = np.random.default_rng(11)
    counts = rng.multinomial(n, [lose, gain, 1 - lose - gain], size=20_000)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    missed = sum(
        int(count)
        for (lost, gained), count in zip(pairs.tolist(), times, strict=True)
        if _bound(lost, gained, n) < lose - gain
    )
    assert missed / len(counts) <= 0.055


def test_the_bound_is_not_vacuous() -> None:
    """With 2,000 images, one flip in a hundred each way and no true drop, a budget of one point is met in most sets."""
    counts = np.random.default_rng(5).multinomial(2000, [0.01, 0.01, 0.98], size=300)
    met = np.mean([_bound(int(lost), int(gained), 2000) < 0.01 for lost, gained, _ in counts])
    assert met > 0.8


@pytest.mark.parametrize("n", [100, 360])
@pytest.mark.parametrize(("lose", "gain"), [(0.02, 0.0), (0.02, 0.01), (0.05, 0.02), (0.1, 0.02)])
def test_the_lower_end_blames_no_more_often_than_it_says(n: int, lose: float, gain: float) -> None:
    """The true drop lies below the lower end in no more than 6.5 % of simulated sets; Tango's alone is so liberal."""
    rng = np.random.default_rng(12)
    counts = rng.multinomial(n, [lose, gain, 1 - lose - gain], size=5000)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    blamed = sum(
        int(count)
        for (lost, gained), count in zip(pairs.tolist(), times, strict=True)
        if drop_interval(lost, gained, n)[0] > lose - gain
    )
    assert blamed / len(counts) <= 0.065
