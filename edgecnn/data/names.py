"""Names for classes that a source only numbers, from a text file beside it."""

from __future__ import annotations

from pathlib import Path

from edgecnn.errors import DataError


def name_classes(file: Path, count: int) -> tuple[str, ...]:
    """Read the name of class 0, 1, ... from the lines of a file; where it is not there, the numbers are the names.

    There may be more names than the `count` classes that were seen.

    Raises:
        DataError: the file cannot be read, or has too few lines, an empty one, or one twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return tuple(str(number) for number in range(count))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if len(names) < count:
        raise DataError(f"{file}: names {len(names)} classes, but there are {count}; give each a line, class 0 first")
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            what = f"{name!r} is there twice" if name else "there is no name"
            raise DataError(f"{file}, line {number}: {what}; each class needs one of its own")
    return names
