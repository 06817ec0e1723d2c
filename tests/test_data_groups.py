"""Splits by group: whole groups, every class near its share, and what is wrong with groups told in one line."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.data.dataset import Item, Listing, SplitName
from edgecnn.data.groups import with_groups
from edgecnn.data.splits import Splits, assign_splits
from edgecnn.errors import DataError

PIXEL = np.zeros((1, 1), np.uint8)


def split(
    groups: list[tuple[str, int, int]], options: DataOptions | None = None, given: list[SplitName | None] | None = None
) -> tuple[Splits, list[Item]]:
    """Split images of groups, each a name, a label and how many; the same name twice is a group of two labels."""
    rows = [(name, label) for name, label, count in groups for _ in range(count)]
    marks = given or [None] * len(rows)
    items = [
        Item(str(index), label, PIXEL, mark, name)
        for index, ((name, label), mark) in enumerate(zip(rows, marks, strict=True))
    ]
    labels = np.array([item.label for item in items], dtype=np.int64)
    listing = Listing(labels=tuple(map(str, range(labels.max() + 1))), items=items)
    return assign_splits(items, labels, listing, options or DataOptions()), items


def groups_of(result: Splits, items: list[Item]) -> dict[str, set[str | None]]:
    """List the groups of each split."""
    return {name: {items[index].group for index in where} for name, where in result.parts.items()}


def many(seed: int, classes: int = 6) -> list[tuple[str, int, int]]:
    """Make groups of very different sizes, some of two labels."""
    rng = np.random.default_rng(seed)
    groups = []
    for label in range(classes):
        for number in range(rng.integers(8, 40)):
            groups.append((f"{label}-{number}", label, int(rng.integers(1, 30))))
            if rng.random() < 0.2:
                groups.append((f"{label}-{number}", int(rng.integers(classes)), int(rng.integers(1, 9))))
    return groups


@pytest.mark.parametrize("seed", range(6))
def test_groups_never_straddle_and_classes_keep_their_shares(seed: int) -> None:
    """Every image is in one split, every group too, and of each class about a fifth and a tenth are held out."""
    result, items = split(many(seed), DataOptions(seed=seed))
    everything = np.concatenate(list(result.parts.values()))
    assert sorted(everything.tolist()) == list(range(len(items)))
    inside = groups_of(result, items)
    assert not (inside["train"] & inside["val"] | inside["train"] & inside["test"] | inside["val"] & inside["test"])
    total = Counter(item.label for item in items)
    for name, share in (("test", 0.2), ("val", 0.1)):
        counts = Counter(items[index].label for index in result.parts[name])  # type: ignore[index]
        largest = max(count for _, _, count in many(seed))
        for label in total:
            assert abs(counts[label] - share * total[label]) <= largest
        assert sum(counts.values()) == pytest.approx(share * len(items), rel=0.25)
    assert result.warnings == ()


def test_shares_are_as_near_as_by_image_where_groups_are_images() -> None:
    """Groups of one image each give every class its share to within one image."""
    result, items = split([(f"{label}-{n}", label, 1) for label in range(3) for n in range(50)])
    for name, count in (("test", 10), ("val", 5), ("train", 35)):
        assert Counter(items[index].label for index in result.parts[name]) == dict.fromkeys(range(3), count)  # type: ignore[index]


def test_the_statement_counts_the_groups() -> None:
    """The statement says that the split is by group, and by how many."""
    result, _ = split([(f"{label}-{n}", label, 4) for label in range(2) for n in range(10)])
    assert result.statement == "train 56, val 8, test 16; test and val split off by group (20 groups) with seed 0"


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same groups and another seed others."""
    one, again, other = (split(many(1), DataOptions(seed=seed))[0] for seed in (3, 3, 4))
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(one.parts[name], again.parts[name])  # type: ignore[index]
    assert one.parts["test"].tolist() != other.parts["test"].tolist()


def test_few_groups_a_class_still_fill_every_split() -> None:
    """With three groups a class, of which none is a tenth, validation and test get some, near their share of the whole."""
    result, items = split([(f"{label}-{n}", label, 10) for label in range(10) for n in range(3)])
    assert len(result.parts["test"]) == 100  # a third of each class is nearer to a fifth than nothing
    assert len(result.parts["val"]) == 30
    assert {items[index].label for index in result.parts["train"]} == set(range(10))


def test_a_class_of_one_group_stays_in_train() -> None:
    """A class with a single group is never held out, and a warning names it."""
    groups = [(f"{label}-{n}", label, 5) for label in range(2) for n in range(10)]
    result, items = split([*groups, ("only", 2, 50), ("lonely", 3, 1)])
    assert {"only", "lonely"} <= groups_of(result, items)["train"]
    assert result.warnings == ("2 of 4 classes have one group only, which stays in train: 2, 3",)


def test_a_group_of_two_labels_is_kept_for_the_class_that_needs_it() -> None:
    """A group that is one class's only one stays in train although its other class has plenty."""
    groups = [(f"{label}-{n}", label, 5) for label in range(2) for n in range(10)]
    for seed in range(5):
        result, items = split([*groups, ("both", 0, 5), ("both", 2, 5)], DataOptions(seed=seed))
        assert "both" in groups_of(result, items)["train"]


def test_a_large_share_leaves_each_class_a_group() -> None:
    """However much is asked for, each class keeps a group to train on."""
    result, items = split(many(2), DataOptions(test=0.8, val=0.15))
    assert {items[index].label for index in result.parts["train"]} == set(range(6))


def test_a_large_share_does_not_take_a_classs_only_group() -> None:
    """A class of one group stays in train even where nine tenths are asked for and taking it would come nearer."""
    groups = [(f"{label}-{n}", label, 5) for label in range(2) for n in range(20)]
    result, items = split([*groups, ("only", 2, 50)], DataOptions(test=0.9, val=0.05))
    assert "only" in groups_of(result, items)["train"]
    assert len(groups_of(result, items)["test"]) == 36


def test_two_huge_groups_a_class_can_be_split() -> None:
    """Groups much larger than a split's share still give one to it rather than none."""
    result, _ = split(
        [(f"{label}-{n}", label, 100) for label in range(2) for n in range(3)], DataOptions(val=0.01, test=0.01)
    )
    assert [len(result.parts[name]) for name in ("train", "val", "test")] == [400, 100, 100]


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups_are_refused(groups: int) -> None:
    """Where groups are too few to fill the splits the error counts them."""
    with pytest.raises(DataError, match=rf"too few groups, {groups}, for a split \(train .*, val 0, test 0\)"):
        split([(f"{n}", n, 30) for n in range(groups)])


def test_official_splits_stay_and_straddling_groups_are_counted() -> None:
    """Where the source has its splits they are kept, and a warning counts the groups that are in two of them."""
    given: list[SplitName | None] = ["train"] * 10 + ["val"] * 5 + ["test"] * 5
    groups = [("a", 0, 5), ("b", 1, 7), ("c", 0, 5), ("d", 1, 3)]
    result, _ = split(groups, given=given)
    assert result.statement == "train 10, val 5, test 5; as the source has it"
    assert result.warnings == (
        "2 groups are in more than one of the source's splits ('b' in train and val): the accuracy is flattered",
    )


def test_a_split_taken_beside_official_ones_keeps_groups_whole() -> None:
    """A validation that we take from the source's training images has whole groups of them."""
    groups = [(f"{label}-{n}", label, 4) for label in range(2) for n in range(12)]
    given: list[SplitName | None] = [
        "test" if int(name.split("-")[1]) >= 9 else "train" for name, _, count in groups for _ in range(count)
    ]
    result, items = split(groups, given=given)
    inside = groups_of(result, items)
    assert len(inside["test"]) == 6
    assert not inside["train"] & inside["val"]
    assert result.statement.endswith("; val split off by group (18 groups) with seed 0")
    assert result.warnings == ()


# The expression


def listing(*names: str) -> Listing:
    """List images of these names."""
    return Listing(labels=("x",), items=[Item(name, 0, PIXEL) for name in names])


@pytest.mark.parametrize(
    ("expression", "groups"),
    [
        (r"(\w+)_\d+\.png", ["p1", "p2"]),
        (r"p\d", ["p1", "p2"]),
        (r"^([^/]+)/(\w+)_", ["a", "b"]),
        (r"(?:a|b)/(?P<patient>p\d)", ["p1", "p2"]),
        (r"()", ["", ""]),
    ],
)
def test_the_group_is_the_first_capture_or_the_match(expression: str, groups: list[str]) -> None:
    """The first capture group is the group where there is one, and the whole match where there is none."""
    found = with_groups("x", listing("a/p1_7.png", "b/p2_8.png"), DataOptions(group_from=expression))
    assert [item.group for item in found.items] == groups


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(", r"x: --group-from '\(' is not a regular expression \(missing \), unterminated subpattern"),
        (r"zz", r"'zz' matches none of 3 names; the first it does not is a/p1_7\.png"),
        (r"p(\d)_", r"matches only 2 of 3 names; the first it does not is b/other\.png"),
        (r"(p\d)?", r"matches none of 3 names; the first it does not is a/p1_7"),
    ],
)
def test_bad_expressions_are_refused(expression: str, message: str) -> None:
    """An expression that is none, or that does not match every name, is refused with how many it matches."""
    with pytest.raises(DataError, match=message):
        with_groups("x", listing("a/p1_7.png", "a/p2_8.png", "b/other.png"), DataOptions(group_from=expression))


def photos(root: Path, table: list[list[str]]) -> str:
    """Write an image for each row of a table, and the table."""
    for number, row in enumerate(table[1:]):
        path = root / row[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    with (root / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return str(root / "a.csv")


def straddle(dataset: Dataset, groups: dict[str, str]) -> set[str]:
    """List the groups that are in more than one split."""
    inside = [
        {groups[part.name(index)] for index in range(len(part))} for part in (dataset.train, dataset.val, dataset.test)
    ]
    return inside[0] & inside[1] | inside[0] & inside[2] | inside[1] & inside[2]


@pytest.mark.parametrize("header", ["group", "patient"])
def test_a_column_of_a_table_gives_the_groups(tmp_path: Path, header: str) -> None:
    """A column called group is taken by itself, another one when it is named; elsewhere groups are torn."""
    rows = [[f"{n:02d}.png", "ab"[n % 2], f"g{n // 6}"] for n in range(60)]
    source = photos(tmp_path, [["path", "label", header], *rows])
    groups = {row[0]: row[2] for row in rows}
    dataset = open_data(source, DataOptions(group_from=None if header == "group" else header))
    assert not straddle(dataset, groups)
    assert "by group (10 groups)" in dataset.split
    if header == "patient":
        assert straddle(open_data(source), groups)


def test_an_expression_outdoes_the_group_column(tmp_path: Path) -> None:
    """An expression that names no column is searched in the paths although there is a group column."""
    rows = [[f"s{n // 12}/{n:02d}.png", "ab"[n % 2], f"g{n // 6}"] for n in range(60)]
    dataset = open_data(photos(tmp_path, [["path", "label", "group"], *rows]), DataOptions(group_from=r"s\d"))
    assert "by group (5 groups)" in dataset.split


def test_tracks_of_a_folder_stay_together(tmp_path: Path) -> None:
    """In a folder laid out as GTSRB's, an expression keeps the pictures of one track in one split, streamed or not."""
    for label in range(2):
        for track in range(8):
            for shot in range(3):
                path = tmp_path / f"{label:05d}" / f"{track:05d}_{shot:05d}.ppm"
                path.parent.mkdir(exist_ok=True)
                seed = 1000 * label + 10 * track + shot
                Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ppm")]
    for stream in (False, True):
        dataset = open_data(str(tmp_path), DataOptions(group_from=r"\d+/\d+", stream=stream))
        assert not straddle(dataset, {name: name[:11] for name in names})
        assert "(16 groups)" in dataset.split
