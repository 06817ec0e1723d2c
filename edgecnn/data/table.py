"""A CSV file that names images and their labels, and may name their splits and groups."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecnn.data.dataset import SPLIT_NAMES, Item, Listing, SplitName
from edgecnn.errors import DataError

SUFFIXES = (".csv", ".tsv")
_DELIMITERS = (",", ";", "\t")
# What columns are called in the wild, the more telling name first.
_PATH = ("path", "filepath", "image_path", "img_path", "filename", "file_name", "file", "image_name", "image", "img")
_LABEL = ("label", "class", "classid", "class_id", "class_name", "category", "target")
_SPLIT = ("split", "subset", "partition")
_GROUP = ("group",)


@dataclass(frozen=True)
class _Columns:
    path: int
    label: int
    split: int | None
    group: int | None


def list_table(path: Path, group_from: str | None = None) -> Listing:
    """List the images that a CSV names, by paths relative to its folder; labels in natural order.

    Groups are the column that `group_from` names, or without it the column `group` where there is one.

    Raises:
        DataError: a column is missing, or a line says what cannot be; the message names the line.
    """
    rows = _rows(path)
    first, header = next(rows, (1, []))
    columns = _columns(f"{path}, line {first}", header, group_from)
    read = [_row(path, line, len(header), cells, columns) for line, cells in rows]
    if not read:
        raise DataError(f"{path}: has no line below its header; each line names one image and its label")
    splits = {row.split for row in read}
    if splits - {None} and not splits & {None, "train"}:
        named = ", ".join(sorted(name for name in splits if name))
        raise DataError(f"{path}: its {header[columns.split or 0]} column has {named} but no train")
    labels = tuple(sorted({row.label for row in read}, key=natural))
    number = {label: index for index, label in enumerate(labels)}
    items = [
        Item(name, number[row.label], path.parent / name, row.split, row.group, row.line)
        for row in read
        for name in [_name(path.parent, row.name)]
    ]
    return Listing(labels=labels, items=items)


def natural(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Order texts as people do: numbers inside them by value, so that 2 comes before 10."""
    parts = (part for part in re.split(r"(\d+)", text) if part)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), text


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    label: str
    split: SplitName | None
    group: str | None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that hold anything, with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_DELIMITERS, key=header.count), skipinitialspace=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: cannot be read as CSV ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _columns(where: str, header: list[str], group_from: str | None) -> _Columns:
    names = [name.lower().replace(" ", "_") for name in header]

    def place(known: tuple[str, ...]) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    image, label = place(_PATH), place(_LABEL)
    if image is None or label is None:
        what = "a path" if image is None else "a label"
        aliases = ", ".join(_PATH if image is None else _LABEL)
        found = ", ".join(header) or "nothing"
        raise DataError(f"{where}: no column for {what} ({aliases}); its columns are: {found}")
    if group_from is not None:
        return _Columns(image, label, place(_SPLIT), header.index(group_from) if group_from in header else None)
    return _Columns(image, label, place(_SPLIT), place(_GROUP))


def _row(path: Path, line: int, width: int, cells: list[str], columns: _Columns) -> _Row:
    where = f"{path}, line {line}"
    if len(cells) < width or any(cells[width:]):
        raise DataError(f"{where}: has {len(cells)} values where the header has {width} columns")
    name, label = cells[columns.path], cells[columns.label]
    if not name or not label:
        raise DataError(f"{where}: the {'label' if name else 'path'} is empty")
    split = cells[columns.split] if columns.split is not None else ""
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: unknown split {split!r}; known are {', '.join(SPLIT_NAMES)}, or nothing")
    group = cells[columns.group] if columns.group is not None else None
    if group == "":
        raise DataError(f"{where}: the group is empty; every image needs one")
    return _Row(line, name, label, SPLIT_NAMES[split.lower()] if split else None, group)


def _name(folder: Path, written: str) -> str:
    """Return the path as it is meant: one written with backslashes is Windows'."""
    return written.replace("\\", "/") if "\\" in written and not (folder / written).exists() else written
