"""Splits: the shares of every class, the seed, and splits that the source has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from photos import Array

from edgecnn.data import DataOptions
from edgecnn.data.dataset import Item, Listing, SplitName
from edgecnn.data.splits import assign_splits
from edgecnn.errors import DataError


def split(
    counts: dict[int, int], options: DataOptions, given: list[SplitName | None] | None = None
) -> tuple[dict[SplitName, list[int]], Array, str]:
    """Split items of so many of each label; `given` are the splits that the source has."""
    labels = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    labels = labels if given else np.random.default_rng(9).permutation(labels)
    marks = given or [None] * len(labels)
    items = [
        Item(str(index), int(label), np.zeros((1, 1), np.uint8), mark)
        for index, (label, mark) in enumerate(zip(labels, marks, strict=True))
    ]
    listing = Listing(labels=tuple(str(label) for label in counts), items=items)
    parts, statement, _ = assign_splits(items, labels, listing, options)
    return {name: where.tolist() for name, where in parts.items()}, labels, statement


def test_splits_have_their_shares_of_every_class() -> None:
    """Of every class a fifth goes to the test and a tenth of the whole to the validation, as worked out by hand."""
    parts, labels, statement = split({0: 100, 1: 50, 2: 10}, DataOptions())
    counts = {name: Counter(labels[where].tolist()) for name, where in parts.items()}
    assert counts["test"] == {0: 20, 1: 10, 2: 2}
    assert counts["val"] == {0: 10, 1: 5, 2: 1}
    assert counts["train"] == {0: 70, 1: 35, 2: 7}
    assert statement == "train 112, val 16, test 32; test and val split off by class with seed 0"


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.3, 0.3), (0.05, 0.5), (0.45, 0.45)])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_image_is_in_exactly_one_split(val: float, test: float, seed: int) -> None:
    """No image is in two splits, none is lost, and each share is met to within one image a class."""
    counts = {0: 41, 1: 23, 2: 5, 3: 90}
    parts, labels, _ = split(counts, DataOptions(val=val, test=test, seed=seed))
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(len(labels)))
    for label, count in counts.items():
        for name, share in (("test", test), ("val", val)):
            got = sum(labels[index] == label for index in parts[name])  # type: ignore[index]
            assert abs(got - share * count) <= 1
    assert set(labels[parts["train"]]) == set(counts)


def test_the_seed_alone_decides_the_split() -> None:
    """The same seed gives the same split and another seed another."""
    one, other, third = (split({0: 60, 1: 60}, DataOptions(seed=seed))[0] for seed in (4, 4, 5))
    assert one == other
    assert all(one[name] != third[name] for name in one)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["val", "test"])
def test_impossible_shares_are_refused(name: str, share: float) -> None:
    """A share that does not lie between 0 and 1 is refused with its value."""
    options = msgspec.structs.replace(DataOptions(), **{name: share})
    with pytest.raises(DataError, match=f"between 0 and 1, not {share}"):
        split({0: 20, 1: 20}, options)


@pytest.mark.parametrize(("val", "test"), [(0.6, 0.6), (0.5, 0.5), (0.2, 0.9)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    """Shares of validation and test that add up to everything are refused."""
    with pytest.raises(DataError):
        split({0: 40, 1: 40}, DataOptions(val=val, test=test))


def test_a_large_share_leaves_each_class_one_training_image() -> None:
    """However large the test's share, each class keeps an image to train on."""
    parts, labels, _ = split({0: 30, 1: 30, 2: 1}, DataOptions(test=0.9, val=0.05))
    assert set(labels[parts["train"]]) == {0, 1, 2}


def test_too_few_images_for_a_split_are_refused() -> None:
    """Where a split comes out empty, the counts and the way out are told."""
    with pytest.raises(DataError, match=r"too few images for a split \(train 4, val 0, test 0\)"):
        split({0: 2, 1: 2}, DataOptions())


def test_the_sources_own_splits_are_kept() -> None:
    """Splits that the source has are kept, whatever seed and shares are asked for."""
    given: list[SplitName | None] = ["train", "val", "test", "train", "val", "test", "train"]
    for options in (DataOptions(), DataOptions(seed=3, val=0.4, test=0.5)):
        parts, _, statement = split({0: 3, 1: 4}, options, given)
        assert parts == {"train": [0, 3, 6], "val": [1, 4], "test": [2, 5]}
        assert statement == "train 3, val 2, test 2; as the source has it"


@pytest.mark.parametrize("missing", ["val", "test"])
def test_only_the_missing_split_is_taken_from_train(missing: str) -> None:
    """Where the source lacks one split it is taken from train, and the other stays."""
    present: Any = "test" if missing == "val" else "val"
    given: list[SplitName | None] = [present if index % 4 == 0 else "train" for index in range(80)]
    parts, _, statement = split({0: 40, 1: 40}, DataOptions(val=0.2, test=0.2), given)
    held: Any = missing
    assert parts[present] == list(range(0, 80, 4))
    assert len(parts[held]) == 12
    assert sorted(parts["train"] + parts[held]) == [index for index in range(80) if index % 4]
    assert statement.endswith(f"; {missing} split off by class with seed 0")
