"""Take whole groups of images for a split, of every class as near to its share as groups allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, SplitName

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grouped:
    """The group of each image by number, int64 (N,), the groups' names, and the images' labels."""

    of_image: Indices
    names: tuple[str, ...]
    labels: Indices

    @classmethod
    def of(cls, items: Sequence[Item], labels: Indices) -> Grouped | None:
        """Number the groups of some items, in the order of their names; None where no item has one."""
        groups = [item.group for item in items]
        if not groups or any(group is None for group in groups):
            return None
        names = sorted({group for group in groups if group is not None})
        number = {name: index for index, name in enumerate(names)}
        return cls(np.array([number[str(group)] for group in groups], dtype=np.int64), tuple(names), labels)

    def number(self, where: Indices) -> int:
        """Count the groups of some images."""
        return len(np.unique(self.of_image[where]))

    def table(self, where: Indices) -> npt.NDArray[np.int32]:
        """Count some images by group and class, int32 (groups, classes)."""
        counts = np.zeros((len(self.names), int(self.labels.max(initial=0)) + 1), dtype=np.int32)
        np.add.at(counts, (self.of_image[where], self.labels[where]), 1)
        return counts


def take_groups(
    grouped: Grouped, whole: Indices, pool: Indices, share: float, generator: np.random.Generator
) -> tuple[Indices, Indices]:
    """Take groups of about `share` of the images `whole` out of `pool`, and leave each class at least one group.

    First, from the largest group to the smallest, what brings the classes nearer to their shares; then, where
    groups are too coarse for that, what brings the whole nearer to its share. Ties are decided by the seed.

    Returns:
        The indices taken, and those that are left.
    """
    totals = grouped.table(whole).sum(axis=0)
    counts, target = grouped.table(pool), share * totals
    weight = 1 / np.maximum(totals, 1) ** 2  # rare classes count as much as common ones
    sizes, squares = counts.sum(axis=1), (counts.astype(np.float64) ** 2) @ weight
    order = generator.permutation(np.flatnonzero(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    have, left = np.zeros(counts.shape[1]), (counts > 0).sum(axis=0)  # left: groups of each class that train has
    taken = np.zeros(len(counts), dtype=bool)

    def cost(groups: Indices) -> npt.NDArray[np.float64]:
        """Return how much worse the classes would meet their shares with each group than without."""
        change: npt.NDArray[np.float64] = counts[groups] @ (2 * weight * (have - target)) + squares[groups]
        return change

    def spare(groups: Indices) -> Indices:
        needed = ((counts[groups] > 0) & (left <= 1)).any(axis=1)
        kept: Indices = groups[~taken[groups] & ~needed]
        return kept

    def take(group: Indices) -> None:
        nonlocal have, left
        taken[group] = True
        have, left = have + counts[group][0], left - (counts[group][0] > 0)

    for group in order.reshape(-1, 1):
        if len(spare(group)) and cost(group)[0] < 0:
            take(group)
    while have.sum() < target.sum():
        short = target.sum() - have.sum()
        rest = spare(order)
        # A group of twice what is missing would make it worse; but a split must not be empty.
        fitting = rest[sizes[rest] < 2 * short]
        if not len(fitting) and not taken.any():
            fitting = rest[sizes[rest] == sizes[rest].min(initial=len(pool))]
        if not len(fitting):
            break
        take(fitting[[np.argmin(cost(fitting))]])
    chosen = taken[grouped.of_image[pool]]
    return np.sort(pool[chosen]), np.sort(pool[~chosen])


def single_groups(grouped: Grouped, pool: Indices) -> list[int]:
    """List the classes that have one group only."""
    return [int(label) for label in np.flatnonzero((grouped.table(pool) > 0).sum(axis=0) == 1)]


def straddling(grouped: Grouped, parts: Mapping[SplitName, Indices]) -> list[tuple[str, list[SplitName]]]:
    """List the groups that are in more than one split, and in which."""
    inside = {name: set(grouped.of_image[where].tolist()) for name, where in parts.items()}
    found = []
    for number, group in enumerate(grouped.names):
        where = [name for name, members in inside.items() if number in members]
        if len(where) > 1:
            found.append((group, where))
    return found
