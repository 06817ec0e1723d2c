"""The learning rate at each step, as a pure function: what is resumed needs no state of it."""

from __future__ import annotations

import math

_START, _END = 1 / 25, 1 / 250_000  # of the peak


def rate(step: int, steps: int, warmup: float) -> float:
    """Give the learning rate at a step, from 0, as a share of the peak.

    It rises by half a cosine over the share `warmup` of all steps and falls by half a cosine to almost nothing: with
    a long rise this is one-cycle (Smith and Topin 2019), with a short one a cosine schedule (Loshchilov and Hutter
    2017).
    """
    rise = max(1.0, warmup * steps) - 1
    last = max(steps - 1, 1)
    if step <= rise and rise > 0:
        return _between(_START, 1.0, step / rise)
    return _between(1.0, _END, (step - rise) / max(last - rise, 1e-9))


def _between(first: float, last: float, share: float) -> float:
    """Go from one value to the other along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
