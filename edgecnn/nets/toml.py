"""A network described in a TOML file, with errors that name the line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgecnn.errors import MissingPackageError, UsageError
from edgecnn.layers import Conv, Depthwise, Dropout, Layer, Linear, Pool, Residual, UnfitError, trace

_KINDS = {
    "conv": Conv,
    "depthwise": Depthwise,
    "pool": Pool,
    "linear": Linear,
    "dropout": Dropout,
    "residual": Residual,
}
_INNER = ("conv", "depthwise", "pool")  # what a residual may hold
_WORDS = {
    "activation": "relu, relu6 or none",
    "padding": 'a number or "same"',
    "kernel": 'a number or "all"',
    "pooling": "max or average",
}
_HEADER = re.compile(r"\s*\[\[\s*[\"']?layer[\"']?\s*(\.\s*[\"']?layers[\"']?\s*)?\]\]")
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def read_layers(path: Path, image: tuple[int, int, int], classes: int) -> tuple[Layer, ...]:
    """Read `[[layer]]` tables, `[[layer.layers]]` inside a residual, and see that they fit (channels, height, width).

    Raises:
        UsageError: the file cannot be read, holds something else, or a layer does not fit; the line is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--net {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"--net {path}: not a text file in UTF-8") from None
    document = _parse(path, text)
    where = _Lines(text)
    layers = tuple(_layer(path, table, where, (index,)) for index, table in enumerate(_tables(path, text, document)))
    try:
        trace(layers, image, classes)
    except UnfitError as error:
        size = f"for images of {image[2]}x{image[1]}"
        raise UsageError(f"{path}, line {where.find(error.path)}: {error} ({size})") from None
    return layers


def _tables(path: Path, text: str, document: dict[str, Any]) -> list[Any]:
    """Give the tables of the layers; nothing else may stand at the top of the file."""
    foreign = next((key for key in document if key != "layer"), None)
    tables = document.get("layer", [])
    if foreign is None and isinstance(tables, list) and tables:
        return tables
    line, what = 1, "there are no layers"
    if foreign is not None:
        line, what = _line_of_key(text, foreign), f"{foreign!r} is not known here"
    elif tables != []:
        line, what = _line_of_key(text, "layer"), "'layer' is not a list of tables here"
    raise UsageError(f"{path}, line {line}: {what}; describe each layer in a table [[layer]]")


def _parse(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise MissingPackageError("reading TOML needs tomli on Python 3.10: pip install tomli") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is one too, and not a TOMLDecodeError
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else max(1, len(text.splitlines()))
        what = _PLACE.sub(f" (column {place[2]})" if place and place[1] else "", str(error))
        raise UsageError(f"{path}, line {line}: not valid TOML: {what}") from None
    except RecursionError:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from None


def _layer(path: Path, table: Any, where: _Lines, index: tuple[int, ...]) -> Layer:
    """Read one layer; `index` has a second number inside a residual."""
    if not isinstance(table, dict):
        raise UsageError(f"{path}, line {where.find(index, 'layers')}: a layer is a table, [[layer]]")
    kind = table.get("kind")
    known = _INNER if len(index) > 1 else tuple(_KINDS)
    if not isinstance(kind, str) or kind not in known:
        said = "no kind" if kind is None else f"kind {kind!r}"
        inside = " inside a residual" if len(index) > 1 else ""
        raise UsageError(f"{path}, line {where.find(index, 'kind')}: {said}; there are {', '.join(known)}{inside}")
    inner = table.get("layers")
    if kind == "residual" and isinstance(inner, list):
        for number, part in enumerate(inner):
            _layer(path, part, where, (*index, number))
    try:
        return msgspec.convert(table, type=_KINDS[kind])  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        key = at.partition("`")[0].partition("[")[0] or (re.findall(r"field `(\w+)`", message) or [None])[0]
        fields = ", ".join(_KINDS[kind].__struct_fields__)
        hint = f"; a {kind} has {fields}" if "unknown field" in message else ""
        if "enum" in message and key in _WORDS:
            hint = f"; it is {_WORDS[key]}"
        about = f"{key}: " if at else ""
        raise UsageError(f"{path}, line {where.find(index, key)}: {about}{message}{hint}") from None


class _Lines:
    """Where in the text each layer's table begins."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.headers: dict[tuple[int, ...], int] = {}
        outer, inner = -1, -1
        for number, line in enumerate(self.lines):
            header = _HEADER.match(line)
            if header and header[1]:
                inner += 1
                self.headers[outer, inner] = number
            elif header:
                outer, inner = outer + 1, -1
                self.headers[(outer,)] = number

    def find(self, index: tuple[int, ...], key: str | None = None) -> int:
        """Give the line, from 1, of a layer's header, or of a key below it; of its parent's, or the last, if it has none."""
        while index and index not in self.headers:
            index = index[:-1]
        start = self.headers.get(index, len(self.lines) - 1)
        if key is not None:
            for number in range(start + 1, len(self.lines)):
                if _HEADER.match(self.lines[number]):
                    break
                if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", self.lines[number]):
                    return number + 1
        return max(start, 0) + 1


def _line_of_key(text: str, key: str) -> int:
    pattern = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}(?![\w-])")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
