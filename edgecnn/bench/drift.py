"""A slope that outliers do not bend, with an interval: does a rate change over time?"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgecnn.spec import Frozen

NOTICEABLE = 0.02  # of the rate, over the whole time
Trend = Literal["steady", "slower", "faster", "unclear"]
Floats = npt.NDArray[np.float64]


class Drift(Frozen, frozen=True):
    """By which share the rate changed from the first to the last window, -0.1 being a tenth slower, with a 95 % interval."""

    change: float
    low: float
    high: float
    trend: Trend


def theil_sen(x: Floats, y: Floats, confidence: float = 0.95) -> tuple[float, float, float]:
    """Give the median of the slopes between all pairs of points, and an interval for it by Kendall's variance.

    Theil, "A rank-invariant method of linear and polynomial regression analysis" (1950); Sen, "Estimates of the regression
    coefficient based on Kendall's tau", JASA 63 (1968), equation 2.6 for the interval. `x` (n,) without equal values, n of 3
    at least. The interval takes the points for independent; windows of one run are not quite, so it is somewhat narrow.
    """
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    count, n = len(slopes), len(x)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((count - reach) / 2) - 1)
    high = min(count - 1, round((count + reach) / 2))
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def judge_drift(seconds: Floats, rates: Floats) -> Drift:
    """Say by how much rates (n,) at the times `seconds` (n,) changed, over all of the time, as a share of their median."""
    scale = float((seconds[-1] - seconds[0]) / np.median(rates))
    change, low, high = (slope * scale for slope in theil_sen(seconds, rates))
    trend: Trend = "unclear"
    if low > -NOTICEABLE and high < NOTICEABLE:
        trend = "steady"
    elif high < 0 and change < -NOTICEABLE:
        trend = "slower"
    elif low > 0 and change > NOTICEABLE:
        trend = "faster"
    return Drift(change=change, low=low, high=high, trend=trend)
