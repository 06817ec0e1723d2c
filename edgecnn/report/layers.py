"""A network's layers as a text table."""

from __future__ import annotations

from collections.abc import Sequence

from edgecnn.layers import Row
from edgecnn.report.text import table, thousands

_HEADER = ("layer", "output", "parameters", "MACs", "sees")


def layers_text(rows: Sequence[Row]) -> str:
    """Write a row for each layer, sizes as WIDTHxHEIGHTxCHANNELS, and their sums.

    What a layer sees is the part of the image, in pixels, that one of its values depends on.
    """
    lines = [
        [row.name, _size(row.shape), thousands(row.parameters), thousands(row.macs), _side(row.field)] for row in rows
    ]
    totals = (thousands(sum(row.parameters for row in rows)), thousands(sum(row.macs for row in rows)))
    return table([*lines, ["total", "", *totals, ""]], _HEADER)


def _size(shape: tuple[int, ...]) -> str:
    """Write (channels, height, width) as people write images, and anything else as it is."""
    return "x".join(map(str, (shape[2], shape[1], shape[0]) if len(shape) == 3 else shape))


def _side(field: int | None) -> str:
    return "all" if field is None else f"{field}x{field}"
