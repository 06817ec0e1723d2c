"""Which image is for training, validation or test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import DataOptions, Item, Listing, SplitName
from edgecnn.data.group_splits import Grouped, single_groups, straddling, take_groups
from edgecnn.errors import DataError

Indices = npt.NDArray[np.int64]


class Splits(NamedTuple):
    """The indices of each split, one line that states how they came about, and what to be warned of."""

    parts: dict[SplitName, Indices]
    statement: str
    warnings: tuple[str, ...]


def assign_splits(
    items: Sequence[Item], labels: npt.NDArray[np.int64], listing: Listing, options: DataOptions
) -> Splits:
    """Keep the source's own splits and take missing ones, seeded and stratified, from what is left.

    Where items have groups, whole groups are taken.

    Raises:
        DataError: the shares are impossible, or a split would be empty.
    """
    given: dict[SplitName, Indices] = {
        name: np.array([index for index, item in enumerate(items) if item.split == name], dtype=np.int64)
        for name in ("train", "val", "test")
    }
    free = np.array([index for index, item in enumerate(items) if item.split is None], dtype=np.int64)
    pool = np.concatenate([given["train"], free])
    grouped = Grouped.of(items, labels)
    alone = single_groups(grouped, pool) if grouped else []
    generator = np.random.default_rng(options.seed)
    made: list[SplitName] = []
    shares: dict[SplitName, float] = {
        "test": listing.test if options.test is None else options.test,
        "val": listing.val if options.val is None else options.val,
    }
    whole = pool
    for name, share in shares.items():
        if not len(given[name]):
            if not 0 < share < 1:
                raise DataError(f"a split's share must lie between 0 and 1, not {share}")
            if grouped:
                given[name], pool = take_groups(grouped, whole, pool, share, generator)
            else:
                given[name], pool = _take(pool, labels, share, len(whole), generator)
            made.append(name)
    asked = sum(shares[name] for name in made)
    if asked >= 1:
        raise DataError(f"val and test together ask for a share of {asked:g}, which leaves nothing to train on")
    given["train"] = np.sort(pool)
    counts = ", ".join(f"{name} {len(indices)}" for name, indices in given.items())
    empty = [name for name, indices in given.items() if not len(indices)]
    if empty:
        what = f"too few groups, {grouped.number(whole)}," if grouped else "too few images"
        raise DataError(f"{what} for a split ({counts}): add images, or change the shares of val and test")
    how = f"by group ({grouped.number(whole)} groups)" if grouped else "by class"
    how = f"{' and '.join(made)} split off {how} with seed {options.seed}" if made else "as the source has it"
    warnings = _warnings(listing, grouped, given, alone if made else []) if grouped else ()
    return Splits(given, f"{counts}; {how}", warnings)


def _take(
    pool: Indices, labels: npt.NDArray[np.int64], share: float, total: int, generator: np.random.Generator
) -> tuple[Indices, Indices]:
    """Take `share` of the original pool, of every class in proportion, and leave each class at least one."""
    wanted = share * total / max(len(pool), 1)
    taken = []
    for label in np.unique(labels[pool]):
        members = generator.permutation(pool[labels[pool] == label])
        taken.append(members[: min(round(wanted * len(members)), len(members) - 1)])
    chosen = np.sort(np.concatenate(taken)) if taken else pool[:0]
    return chosen, np.setdiff1d(pool, chosen)


def _warnings(listing: Listing, grouped: Grouped, parts: dict[SplitName, Indices], alone: list[int]) -> tuple[str, ...]:
    warnings = []
    if alone:
        names = ", ".join(listing.labels[label] for label in alone[:5]) + (", ..." if len(alone) > 5 else "")
        warnings.append(
            f"{len(alone)} of {len(listing.labels)} classes have one group only, which stays in train: {names}"
        )
    split = straddling(grouped, parts)
    if split:
        first, where = split[0]
        warnings.append(
            f"{len(split)} groups are in more than one of the source's splits ({first!r} in {' and '.join(where)}): "
            "the accuracy is flattered"
        )
    return tuple(warnings)
