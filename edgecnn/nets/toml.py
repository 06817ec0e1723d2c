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
_HEADER = re.compile(r"\s*\[\[\s*layer\s*(\.\s*layers\s*)?\]\]")


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
    foreign = sorted(set(document) - {"layer"})
    tables = document.get("layer")
    if foreign or not isinstance(tables, list) or not tables:
        line = _line_of_key(text, foreign[0], 0) if foreign else 1
        what = f"{foreign[0]!r} is not known here" if foreign else "there are no layers"
        raise UsageError(f"{path}, line {line}: {what}; describe each layer in a table [[layer]]")
    where = _Lines(text)
    layers = tuple(_layer(path, table, where, (index,)) for index, table in enumerate(tables))
    try:
        trace(layers, image, classes)
    except UnfitError as error:
        size = f"for images of {image[2]}x{image[1]}"
        raise UsageError(f"{path}, line {where.find(error.path)}: {error} ({size})") from None
    return layers


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
    except tomllib.TOMLDecodeError as error:  # its message ends with line and column
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def _layer(path: Path, table: Any, where: _Lines, index: tuple[int, ...]) -> Layer:
    line = where.find(index)
    if not isinstance(table, dict):
        raise UsageError(f"{path}, line {line}: a layer is a table, [[layer]]")
    kind = table.get("kind")
    if kind not in _KINDS:
        said = "no kind" if kind is None else f"kind {kind!r}"
        raise UsageError(f"{path}, line {where.find(index, 'kind')}: {said}; there are {', '.join(_KINDS)}")
    inner = table.get("layers")
    if kind == "residual" and isinstance(inner, list):
        for number, part in enumerate(inner):
            _layer(path, part, where, (*index, number))
    try:
        return msgspec.convert(table, type=_KINDS[kind])  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        key = at.partition("`")[0].partition("[")[0] or (re.findall(r"field `(\w+)`", message) or [None])[0]
        known = ", ".join(_KINDS[kind].__struct_fields__)
        hint = f"; a {kind} has {known}" if "unknown field" in message else ""
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


def _line_of_key(text: str, key: str, default: int) -> int:
    pattern = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), default)
