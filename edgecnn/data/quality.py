"""Look a data set over before anything is trained on it, and list what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgecnn.data.checks import check
from edgecnn.data.dataset import DataOptions, Dataset, LabelledImages, SplitName
from edgecnn.data.near import Sketches, near_duplicates
from edgecnn.data.open import Source, read_source, split_source
from edgecnn.data.splits import Splits
from edgecnn.data.survey import Survey, survey
from edgecnn.errors import DataError
from edgecnn.spec import Frozen

Kind = Literal[
    "unusable", "broken", "conflict", "leak", "near leak", "duplicate", "near duplicate", "one colour", "imbalance",
    "small class", "group",
]  # fmt: skip
WEIGHTY: tuple[Kind, ...] = ("unusable", "broken", "conflict", "leak", "near leak")
SMALL_CLASS = 10  # training images below which a class is called small
IMBALANCE = 10.0  # largest over smallest class from which a set is called unbalanced


class Shown(Frozen, frozen=True):
    """One image of a finding."""

    name: str
    label: str
    split: str | None


class Case(Frozen, frozen=True):
    """One thing found: the images it is about, if any, and what is to be said of them."""

    images: tuple[Shown, ...] = ()
    note: str = ""


class Finding(Frozen, frozen=True):
    """All cases of one kind; a `weighty` one makes a result that is measured on these data doubtful."""

    kind: Kind
    title: str
    weighty: bool
    cases: tuple[Case, ...]


class ClassCount(Frozen, frozen=True):
    """How many readable images a class has, by split where the set can be split."""

    label: str
    images: int
    train: int | None = None
    val: int | None = None
    test: int | None = None


class DataReport(Frozen, frozen=True):
    """What a source holds and what is wrong with it; images are compared as the network would see them, at `shape`."""

    source: str
    images: int
    listed: int
    shape: tuple[int, int, int]
    streamed: bool
    split: str | None
    classes: tuple[ClassCount, ...]
    imbalance: float | None
    as_saved: Survey
    findings: tuple[Finding, ...]

    def weighty(self) -> tuple[Finding, ...]:
        """List the findings for which `--strict` says no."""
        return tuple(finding for finding in self.findings if finding.weighty)


def check_data(source: str, options: DataOptions) -> tuple[DataReport, LabelledImages]:
    """Look a source over, in memory that does not grow with its pixels where they are streamed.

    Returns:
        The report, and all images that can be read.

    Raises:
        DataError: it is not a source, or none of its images can be read.
    """
    opened = read_source(source, options)
    whole, skipped = opened.scanned.images, opened.scanned.skipped
    if not len(whole):
        raise DataError(
            f"{source}: none of the {len(opened.listing.items)} images can be read; the first: {skipped[0]}"
        )
    found = _Findings(opened, *_split(source, opened, options))
    found.add_all()
    report = DataReport(
        source=source,
        images=len(whole),
        listed=len(opened.listing.items),
        shape=opened.preprocess.shape,
        streamed=not whole.in_memory,
        split=found.splits.statement if found.splits else None,
        classes=found.classes,
        imbalance=_imbalance(found.classes),
        as_saved=survey(opened.listing.items),
        findings=tuple(found.list),
    )
    return report, whole


def _split(source: str, opened: Source, options: DataOptions) -> tuple[Splits | None, str | None]:
    """Split as training would; what training would refuse is the second value."""
    whole, identity = opened.scanned.images, opened.scanned.identity
    splits = None
    try:
        splits = split_source(source, opened, options)
        parts = {name: whole.subset(where) for name, where in splits.parts.items()}
        dataset = Dataset(
            source, opened.listing.labels, opened.preprocess, parts["train"], parts["val"], parts["test"], ""
        )
        check(dataset, {name: identity[where] for name, where in splits.parts.items()})
    except DataError as error:
        return splits, str(error)
    return splits, None


class _Findings:
    """The findings of one source, as they are collected."""

    def __init__(self, opened: Source, splits: Splits | None, refusal: str | None) -> None:
        self.opened, self.splits, self.refusal = opened, splits, refusal
        self.images = opened.scanned.images
        self.labels = opened.listing.labels
        self.list: list[Finding] = []
        self.split_of: list[SplitName | None] = [None] * len(self.images)
        if splits:
            for name, where in splits.parts.items():
                for index in where.tolist():
                    self.split_of[index] = name
        self.classes = _count(self.labels, self.images.labels, splits)

    def add_all(self) -> None:
        """Look for everything, the gravest first."""
        self._add("unusable", "training would refuse this set", [Case(note=self.refusal)] if self.refusal else [])
        broken = [Case(note=line) for line in self.opened.scanned.skipped]
        self._add("broken", f"{_of(broken, 'image')} cannot be read", broken)
        self._add_duplicates()
        self._add_one_colour()
        self._add_classes()
        group = [Case(note=line) for line in self.splits.warnings] if self.splits else []
        self._add("group", "groups cannot be held apart everywhere", group)

    def _add(self, kind: Kind, title: str, cases: Sequence[Case]) -> None:
        if cases:
            self.list.append(Finding(kind=kind, title=title, weighty=kind in WEIGHTY, cases=tuple(cases)))

    def _add_duplicates(self) -> None:
        identity = self.opened.scanned.identity
        same = _groups(identity)
        firsts = np.unique(identity, return_index=True)[1]
        near = near_duplicates(self.images, Sketches.of(self.images), np.sort(firsts))
        conflicts = [group for group in same if len({self.images.items[index].label for index in group}) > 1]
        leaks = [group for group in same if len({self.split_of[index] for index in group}) > 1]
        near_leaks = [(group, least) for group, least in near if len({self.split_of[index] for index in group}) > 1]
        exact, alike = "of identical images", "of nearly identical images"
        self._add("conflict", f"{_of(conflicts, 'set')} {exact} with different labels", self._cases(conflicts))
        self._add("leak", f"{_of(leaks, 'set')} {exact} in more than one split", self._cases(leaks))
        self._add("near leak", f"{_of(near_leaks, 'set')} {alike} in more than one split", self._near(near_leaks))
        spare = sum(len(group) - 1 for group in same)
        self._add("duplicate", f"{_of(same, 'set')} {exact}, {spare} images too many", self._cases(same))
        self._add("near duplicate", f"{_of(near, 'set')} {alike}", self._near(near))

    def _cases(self, groups: Iterable[Sequence[int]]) -> list[Case]:
        return [Case(images=self._shown(group)) for group in groups]

    def _near(self, groups: Iterable[tuple[Sequence[int], float]]) -> list[Case]:
        cases = []
        for group, least in groups:
            labels = {self.images.items[index].label for index in group}
            differ = ", of different labels" if len(labels) > 1 else ""
            cases.append(
                Case(
                    images=self._shown(group),
                    note=f"correlation {least:.4f}{' or more' if len(group) > 2 else ''}{differ}",
                )
            )
        return cases

    def _shown(self, indices: Iterable[int]) -> tuple[Shown, ...]:
        return tuple(
            Shown(name=item.name, label=self.labels[item.label], split=self.split_of[index])
            for index in indices
            for item in [self.images.items[index]]
        )

    def _add_one_colour(self) -> None:
        plain: list[int] = []
        start = 0
        for chunk in self.images.chunks():
            flat = (chunk == chunk[:, :1, :1]).all(axis=(1, 2, 3))
            plain += (start + np.flatnonzero(flat)).tolist()
            start += len(chunk)
        self._add("one colour", f"{_of(plain, 'image')} of one colour only", self._cases([index] for index in plain))

    def _add_classes(self) -> None:
        ratio = _imbalance(self.classes)
        if ratio is not None and ratio >= IMBALANCE:
            most, least = (choose(self.classes, key=lambda one: one.images) for choose in (max, min))
            note = f"{most.label} has {most.images} images, {least.label} has {least.images}"
            self._add("imbalance", f"the largest class is {ratio:.1f} times the smallest", [Case(note=note)])
        small = [
            Case(note=f"{one.label}: {count} {'training ' if self.splits else ''}image{'' if count == 1 else 's'}")
            for one in self.classes
            for count in [one.images if one.train is None else one.train]
            if count < SMALL_CLASS
        ]
        many = f"{len(small)} class{'' if len(small) == 1 else 'es'}"
        self._add("small class", f"{many} with fewer than {SMALL_CLASS} images to train on", small)


def _count(labels: Sequence[str], of_image: npt.NDArray[np.int64], splits: Splits | None) -> tuple[ClassCount, ...]:
    size = len(labels)
    total = np.bincount(of_image, minlength=size).tolist()
    if splits is None:
        return tuple(ClassCount(label=label, images=count) for label, count in zip(labels, total, strict=True))
    parts = {name: np.bincount(of_image[where], minlength=size).tolist() for name, where in splits.parts.items()}
    return tuple(
        ClassCount(
            label=label, images=total[at], train=parts["train"][at], val=parts["val"][at], test=parts["test"][at]
        )
        for at, label in enumerate(labels)
    )


def _groups(identity: npt.NDArray[np.int64]) -> list[list[int]]:
    """List the places of equal numbers, where there are two or more, in the order of the first."""
    order = np.argsort(identity, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(identity[order])) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def _imbalance(classes: Sequence[ClassCount]) -> float | None:
    """Return by how many times the largest class exceeds the smallest; None where one has no image."""
    counts = [one.images for one in classes]
    return max(counts) / min(counts) if min(counts) else None


def _of(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
