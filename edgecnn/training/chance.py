"""Chance as a function of the seed and the step alone, so that a resumed or shared training draws the same."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *place: int | str) -> torch.Generator:
    """Make the generator of one place in the training, such as ("order", epoch) or ("step", step)."""
    return torch.Generator().manual_seed(derived_seed(seed, *place))


def derived_seed(seed: int, *place: int | str) -> int:
    """Derive an independent seed, 63 bits, by hashing."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
