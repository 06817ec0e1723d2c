"""Which image is for training, validation or test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import DataOptions, Item, Listing, SplitName
from edgecnn.errors import DataError

Indices = npt.NDArray[np.int64]


def assign_splits(
    items: Sequence[Item], labels: npt.NDArray[np.int64], listing: Listing, options: DataOptions
) -> tuple[dict[SplitName, Indices], str]:
    """Keep the source's own splits and take missing ones, seeded and stratified, from what is left.

    Returns:
        The indices of each split, and one line that states how they came about.
    """
    given: dict[SplitName, Indices] = {
        name: np.array([index for index, item in enumerate(items) if item.split == name], dtype=np.int64)
        for name in ("train", "val", "test")
    }
    free = np.array([index for index, item in enumerate(items) if item.split is None], dtype=np.int64)
    pool = np.concatenate([given["train"], free])
    generator = np.random.default_rng(options.seed)
    made = []
    total = len(pool)
    shares: dict[SplitName, float] = {
        "test": listing.test if options.test is None else options.test,
        "val": listing.val if options.val is None else options.val,
    }
    for name, share in shares.items():
        if not len(given[name]):
            given[name], pool = _take(pool, labels, share, total, generator)
            made.append(name)
    asked = sum(shares[name] for name in made)
    if asked >= 1:
        raise DataError(f"val and test together ask for a share of {asked:g}, which leaves nothing to train on")
    given["train"] = np.sort(pool)
    counts = ", ".join(f"{name} {len(indices)}" for name, indices in given.items())
    empty = [name for name, indices in given.items() if not len(indices)]
    if empty:
        raise DataError(f"too few images for a split ({counts}): add images, or change the shares of val and test")
    how = f"{' and '.join(made)} split off by class with seed {options.seed}" if made else "as the source has it"
    return given, f"{counts}; {how}"


def _take(
    pool: Indices, labels: npt.NDArray[np.int64], share: float, total: int, generator: np.random.Generator
) -> tuple[Indices, Indices]:
    """Take `share` of the original pool, of every class in proportion, and leave each class at least one."""
    if not 0 < share < 1:
        raise DataError(f"a split's share must lie between 0 and 1, not {share}")
    wanted = share * total / max(len(pool), 1)
    taken = []
    for label in np.unique(labels[pool]):
        members = generator.permutation(pool[labels[pool] == label])
        taken.append(members[: min(round(wanted * len(members)), len(members) - 1)])
    chosen = np.sort(np.concatenate(taken)) if taken else pool[:0]
    return chosen, np.setdiff1d(pool, chosen)
