"""Take whole groups of images for a split, of every class as near to its share as groups allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Item, SplitName

Indices = npt.NDArray[np.int64]
_TRIES = 8
_GROUPS_TRIED = 20_000  # over all tries: among many groups one order is as good as another


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

    Groups are gone through in several random orders, and the outcome that meets the shares best is kept. (From the
    largest group to the smallest would do better in one go, but hold out the largest groups under every seed.)

    Returns:
        The indices taken, and those that are left.
    """
    totals = grouped.table(whole).sum(axis=0)
    counts = grouped.table(pool)
    members = np.flatnonzero(counts.sum(axis=1))
    tries = [
        _Choice(counts, totals, share).fill(generator.permutation(members))
        for _ in range(max(1, min(_TRIES, _GROUPS_TRIED // max(len(members), 1))))
    ]
    best = min(tries, key=_Choice.error)
    chosen = best.taken[grouped.of_image[pool]]
    return np.sort(pool[chosen]), np.sort(pool[~chosen])


class _Choice:
    """Groups being taken for one split, and how far its classes are from their shares."""

    def __init__(self, counts: npt.NDArray[np.int32], totals: npt.NDArray[np.int64], share: float) -> None:
        self.counts, self.target = counts, share * totals
        self.weight = 1 / np.maximum(totals, 1) ** 2  # rare classes count as much as common ones
        self.sizes, self.squares = counts.sum(axis=1), (counts.astype(np.float64) ** 2) @ self.weight
        self.taken = np.zeros(len(counts), dtype=bool)
        self.have, self.left = np.zeros(counts.shape[1]), (counts > 0).sum(axis=0)  # left: groups train still has

    def error(self) -> float:
        """Sum up by how much the classes, and then the whole, miss their shares."""
        whole = (self.have.sum() - self.target.sum()) / max(self.target.sum(), 1)
        return float((self.weight * (self.have - self.target) ** 2).sum() + whole**2)

    def fill(self, order: Indices) -> _Choice:
        """Take every group that brings the classes nearer to their shares, then what brings the whole nearer."""
        for group in order.tolist():
            change = 2 * self.weight * (self.have - self.target) @ self.counts[group] + self.squares[group]
            if change < 0 and not ((self.counts[group] > 0) & (self.left <= 1)).any():
                self._take(group)
        while self.have.sum() < self.target.sum():
            short = self.target.sum() - self.have.sum()
            rest = self._spare(order)
            rest = rest[(self.counts[rest][:, self.have < self.target] > 0).any(axis=1)]
            # A group of twice what is missing would make it worse; but a split must not be empty.
            fitting = rest[self.sizes[rest] < 2 * short]
            if not len(fitting) and not self.taken.any():
                fitting = rest[self.sizes[rest] == self.sizes[rest].min(initial=self.sizes.sum())]
            if not len(fitting):
                break
            changes = self.counts[fitting] @ (2 * self.weight * (self.have - self.target)) + self.squares[fitting]
            self._take(int(fitting[np.argmin(changes)]))
        return self

    def _spare(self, groups: Indices) -> Indices:
        """Keep those that are not taken and without which every class still has a group in train."""
        needed = ((self.counts[groups] > 0) & (self.left <= 1)).any(axis=1)
        kept: Indices = groups[~self.taken[groups] & ~needed]
        return kept

    def _take(self, group: int) -> None:
        self.taken[group] = True
        self.have += self.counts[group]
        self.left -= self.counts[group] > 0


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
