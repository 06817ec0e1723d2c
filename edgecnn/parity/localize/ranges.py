"""What a quantizer's range tells by itself: cut off, or not used, compared with the others of the same model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecnn.parity.localize.points import Grid, Point
from edgecnn.parity.localize.result import BlockDifference
from edgecnn.parity.localize.rounding import FIXED_RANGE

QUANTIZED_MULTIPLE, STANDS_OUT = 3.0, 2.0
LEAST_USED, MOST_USED, USED_OTHERWISE = 0.55, 1.2, 1.6


def used_together(found: Sequence[BlockDifference], points: Sequence[Point]) -> list[float | None]:
    """Give each block the largest use of all tensors with the same steps; None where nothing can be said."""
    best: dict[tuple[float, int], float] = {}
    for one, point in zip(found, points, strict=True):
        if point.grid is not None and one.used is not None:
            best[_key(point.grid)] = max(best.get(_key(point.grid), 0.0), one.used)
    return [
        best[_key(point.grid)]
        if point.grid is not None and one.used is not None and point.op not in FIXED_RANGE
        else None
        for one, point in zip(found, points, strict=True)
    ]


def cut_off(place: int, overruns: Sequence[float | None]) -> str:
    """Say whether what a range cuts off costs far more than rounding, and more than elsewhere."""
    own = overruns[place]
    others = [one for at, one in enumerate(overruns) if at != place and one is not None]
    usual = float(np.quantile(others, 0.25)) if others else 0.0
    if own is None or own < max(QUANTIZED_MULTIPLE, STANDS_OUT * usual):
        return ""
    return f"what its quantizer's range cuts off of the reference's values is {own:.3g} times what rounding has to cost"


def too_wide(place: int, used: Sequence[float | None]) -> str:
    """Say whether a range lies idle that the others use."""
    own, usual = used[place], _usual(place, used)
    if own is None or own >= LEAST_USED or usual is None or usual < USED_OTHERWISE * own:
        return ""
    return f"the reference's values take {own:.0%} of its quantizer's range, the others' about {usual:.0%}"


def too_narrow(place: int, used: Sequence[float | None], cost: float) -> str:
    """Say whether values go beyond a range as the others' do not; `cost` is what is cut off in units of rounding."""
    own, usual = used[place], _usual(place, used)
    if own is None or own < MOST_USED or usual is None or own < USED_OTHERWISE * usual or cost < 1:
        return ""
    return f"the reference's values would take {own:.0%} of its quantizer's range, the others' about {usual:.0%}"


def _usual(place: int, used: Sequence[float | None]) -> float | None:
    others = [share for at, share in enumerate(used) if at != place and share is not None]
    return float(np.median(others)) if others else None


def _key(grid: Grid) -> tuple[float, int]:
    return grid.scale, grid.zero
