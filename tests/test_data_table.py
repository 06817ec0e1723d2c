"""CSV files that list images, as they are met in the wild, and as they must not be."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.data.folders import list_folders
from edgecnn.data.table import list_table, natural
from edgecnn.errors import DataError


def picture(path: Path, seed: int) -> Path:
    """Write one small colour image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with thirty images in `img`, numbered."""
    for index in range(30):
        picture(tmp_path / "img" / f"{index:02d}.png", index)
    return tmp_path


def write(path: Path, rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8") -> str:
    """Write rows as CSV with the standard library and return the path as text."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return str(path)


def rows(count: int = 30, header: tuple[str, str] = ("path", "label"), classes: int = 3) -> list[list[str]]:
    """List images and labels `k0`, `k1`, ... in turn."""
    return [list(header)] + [[f"img/{index:02d}.png", f"k{index % classes}"] for index in range(count)]


def labelled(dataset: Dataset) -> dict[str, str]:
    """Map every image's name to its label's."""
    parts = (dataset.train, dataset.val, dataset.test)
    return {part.name(index): dataset.labels[part.labels[index]] for part in parts for index in range(len(part))}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_of_any_delimiter_are_read(root: Path, delimiter: str, encoding: str, newline: str) -> None:
    """Commas, semicolons and tabs, a byte order mark or none, and both line ends give the same set."""
    source = Path(write(root / "labels.csv", rows(), delimiter, encoding))
    source.write_bytes(source.read_bytes().replace(b"\r\n", newline.encode()))
    dataset = open_data(str(source))
    assert labelled(dataset) == dict(rows()[1:])
    assert dataset.labels == ("k0", "k1", "k2")
    index = 4
    with Image.open(root / dataset.train.name(index)) as image:
        np.testing.assert_array_equal(dataset.train.pixels[index], np.asarray(image))


@pytest.mark.parametrize(
    "header",
    [("path", "label"), ("Filename", "ClassId"), ("FILE", "class"), ("image", "class_id"), ("file name", "Category")],
)
def test_columns_go_by_many_names(root: Path, header: tuple[str, str]) -> None:
    """The columns for path and label are found by the names they have in the wild, whatever the case and place."""
    named = [["7", *reversed(row)] for row in rows(header=header)]
    named[0][0] = "Width"
    assert len(labelled(open_data(write(root / "a.csv", named)))) == 30


def test_gtsrbs_own_table_is_read(tmp_path: Path) -> None:
    """A table as GTSRB distributes it, with semicolons and boxes, beside its .ppm images, gives classes by value."""
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index in range(120):
        picture(tmp_path / f"{index:05d}.ppm", index)
        lines.append(f"{index:05d}.ppm;9;9;1;1;8;8;{index % 12}")
    (tmp_path / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    dataset = open_data(str(tmp_path / "GT-final_test.csv"))
    assert dataset.labels == tuple(map(str, range(12)))
    assert labelled(dataset)["00023.ppm"] == "11"
    assert dataset.skipped == ()


def test_gtsrbs_class_folders_are_read(tmp_path: Path) -> None:
    """Class folders with a CSV beside the .ppm images are read as folders; the CSV is no image and no fault."""
    for name in ("00000", "00001"):
        for index in range(10):
            picture(tmp_path / name / f"00000_{index:05d}.ppm", index + 50 * int(name))
        (tmp_path / name / f"GT-{name}.csv").write_text("Filename;ClassId\n00000_00000.ppm;0\n")
    assert len(list_folders(tmp_path).items) == 20
    dataset = open_data(str(tmp_path))
    assert dataset.labels == ("00000", "00001")
    assert len(labelled(dataset)) == 20
    assert dataset.skipped == ()
    with Image.open(tmp_path / dataset.train.name(0)) as image:
        np.testing.assert_array_equal(dataset.train.pixels[0], np.asarray(image))


def test_the_tables_splits_are_kept(root: Path) -> None:
    """A split column in any of the usual words is kept, and rows without a word go to train."""
    words = ["train", "Training", "", "valid", "val", "TEST", "testing", "train", "train", "train"]
    table = [[*row, words[index % 10]] for index, row in enumerate(rows()[1:])]
    dataset = open_data(write(root / "a.csv", [["path", "label", "split"], *table]))
    assert dataset.split == "train 18, val 6, test 6; as the source has it"
    assert {dataset.test.name(index)[5] for index in range(6)} == {"5", "6"}
    assert {dataset.val.name(index)[5] for index in range(6)} == {"3", "4"}


def test_splits_without_train_are_refused(root: Path) -> None:
    """A split column that never says train is refused with what it says."""
    table = [[*row, "test"] for row in rows()[1:]]
    with pytest.raises(DataError, match=r"a\.csv: its split column has test but no train"):
        open_data(write(root / "a.csv", [["path", "label", "split"], *table]))


def test_images_may_lie_anywhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Paths that climb out of the table's folder, absolute ones, and Windows' backslashes lead to their images."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "lists").mkdir()
    table = rows()[:1]
    for index in range(30):
        name = [f"../img/{index:02d}.png", str(picture(elsewhere / f"{index}.png", 99 + index)), f"..\\img\\{index:02d}.png"][index % 3]  # fmt: skip
        table.append([name, str(index % 2)])
    dataset = open_data(write(root / "lists" / "a.csv", table))
    assert dataset.skipped == ()
    assert len(labelled(dataset)) == 30


def test_labels_are_in_natural_order(root: Path) -> None:
    """Numbers count by value, alone and inside names, so that label 2 comes before label 10."""
    table = rows()[:1] + [[f"img/{index:02d}.png", str(index % 11)] for index in range(30)]
    assert list_table(Path(write(root / "a.csv", table))).labels == tuple(map(str, range(11)))
    assert sorted(["k10", "k2", "k1", "a", "10", "9", "b3c10", "b3c9"], key=natural) == [
        "9", "10", "a", "b3c9", "b3c10", "k1", "k2", "k10",
    ]  # fmt: skip
    assert sorted(["01", "1", "1.5", "é", "É", "-1"], key=natural)[0] == "01"


def test_quoted_cells_and_trailing_delimiters_are_read(root: Path) -> None:
    """Cells in quotes may hold the delimiter, cells are stripped, empty lines and empty last columns do no harm."""
    body = "".join(f'"img/{index:02d}.png", "stop, or yield {index % 2}" ,\n\n' for index in range(30))
    (root / "a.csv").write_text("\npath,label\n" + body)
    assert open_data(str(root / "a.csv")).labels == ("stop, or yield 0", "stop, or yield 1")


def test_missing_images_are_skipped_by_line(root: Path) -> None:
    """A row whose image is not there is skipped like a broken file, by the table's line, unless strict."""
    table = rows()
    table[4][0], table[9][0] = "img/gone.png", "img"
    source = write(root / "a.csv", table)
    dataset = open_data(source)
    assert len(labelled(dataset)) == 28
    assert [line.partition(": ")[0] for line in dataset.skipped] == [f"{source}, line 5", f"{source}, line 10"]
    assert "gone.png: cannot be read (No such file or directory)" in dataset.skipped[0]
    with pytest.raises(DataError, match=r"2 broken files, the first: .*a\.csv, line 5: .*gone\.png"):
        open_data(source, DataOptions(strict=True))


BAD = {
    "no label": ("path,size\nx.png,3\n", r"line 1: no column for a label \(label, class.*its columns are: path, size"),
    "no path": ("id,label\n1,a\n", r"line 1: no column for a path \(path, .*its columns are: id, label"),
    "one column": ("path\nx.png\n", r"line 1: no column for a label .*its columns are: path"),
    "no header": ("img/01.png,cat\nimg/02.png,dog\n", r"line 1: no column for a path .*: img/01.png, cat"),
    "empty file": ("", r"line 1: no column for a path .*its columns are: nothing"),
    "no rows": ("path,label\n\n", r"a\.csv: has no line below its header"),
    "empty label": ("path,label\nx.png,a\ny.png,\n", r"a\.csv, line 3: the label is empty"),
    "empty path": ("path,label\n,a\n", r"a\.csv, line 2: the path is empty"),
    "unknown split": ("path,label,split\nx.png,a,train\ny.png,a,tset\n", r"a\.csv, line 3: unknown split 'tset'; known"),
    "empty group": ("path,label,group\nx.png,a,g\ny.png,a,\n", r"a\.csv, line 3: the group is empty"),
    "short row": ("path,label,split\nx.png,a\n", r"a\.csv, line 2: has 2 values where the header has 3 columns"),
    "long row": ("path,label\nx.png,a,b\n", r"a\.csv, line 2: has 3 values where the header has 2 columns"),
    "open quote": ('path,label\nx.png,a\n"y.png,a\n', r"a\.csv, line 3: has 1 values where the header has 2 columns"),
    "one class": ("path,label\n" + "".join(f"img/{n:02d}.png,a\n" for n in range(9)), r"one class only \(a\)"),
    "nothing there": ("path,label\nx.png,a\ny.png,b\n", r"none of the 2 images can be read; the first: .*line 2: "),
    "too few": ("path,label\nimg/01.png,a\nimg/02.png,b\n", r"too few images for a split \(train 2, val 0, test 0\)"),
    "more classes than images": (
        "path,label,split\nimg/01.png,a,train\nimg/02.png,b,val\nimg/03.png,c,test\n",
        r"a\.csv: no training image of b, c; every class needs some",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_by_line(root: Path, name: str) -> None:
    """What a table must not say is one line that names the file, and the line where there is one."""
    text, message = BAD[name]
    (root / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(root / "a.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"path,label\nx\xff.png,a\n", b"\xff\xfep\0a\0", b"path,label\nx\0.png,a\ny.png,b\n"])
def test_bytes_that_are_no_text_are_refused(root: Path, data: bytes) -> None:
    """A table in another encoding, or with null bytes in it, is an error of ours that names it."""
    (root / "a.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.csv"):
        open_data(str(root / "a.csv"))


def test_a_table_streams_too(root: Path) -> None:
    """A table's images can be decoded on each use, with the same result."""
    source = write(root / "a.csv", rows())
    memory, streamed = (open_data(source, DataOptions(stream=stream)) for stream in (False, True))
    assert not streamed.train.in_memory
    assert streamed.train.sha256() == memory.train.sha256()


def test_the_same_image_may_be_listed_twice(root: Path) -> None:
    """An image listed under two names for one file is kept twice: what it means is the data check's to say."""
    table = [*rows(), ["img/00.png", "k1"]]
    dataset = open_data(write(root / "a.csv", table))
    names = [part.name(index) for part in (dataset.train, dataset.val, dataset.test) for index in range(len(part))]
    assert Counter(names)["img/00.png"] == 2
