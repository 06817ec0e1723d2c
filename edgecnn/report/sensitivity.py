"""What int8 costs layer by layer, as text and as one HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgecnn.report.html import Html, note, page, paragraph, picture, section
from edgecnn.report.html import table as html_table
from edgecnn.report.quantization import decibels, filled
from edgecnn.report.quantization_page import WHOLE_WORDS, drawing, named_rows
from edgecnn.report.text import table

if TYPE_CHECKING:
    from edgecnn.quantization.sensitivity import Advice, LayerSensitivity, NodeSensitivity, Sensitivity
    from edgecnn.quantization.values import Channels, Values

ERROR_HEADER = ("node", "operator", "only it dB", "all but it dB", "gain dB", "saturates")
VALUE_HEADER = ("node", "weights", "spread", "input", "rounded in", "clipped", "spread", "output", "rounded in", "clipped", "spread")  # fmt: skip
_SHORT = (0, 1, 2, 3, 5, 6, 7, 9, 10)  # of these columns, what a terminal has room for
_PICTURED = 20  # nodes in one picture of histograms


def sensitivity_text(found: Sensitivity) -> str:
    """Write the errors and the values of every node as tables, and which are worth keeping in float."""
    header, rows = filled(ERROR_HEADER, error_rows(found))
    value_header, value_rows = filled([VALUE_HEADER[place] for place in _SHORT], [[row[place] for place in _SHORT] for row in values(found)])  # fmt: skip
    return "\n\n".join([summary(found), table(rows, header), table(value_rows, value_header), "\n".join(advice(found))])


def summary(found: Sensitivity) -> str:
    """Say what everything in int8 gives, and how it was measured."""
    weights = "seven bits of int8" if found.recipe.reduced_range else "int8"
    return (
        f"all in int8: SQNR {_sqnr(found.all_db)} dB, of the answers to {found.judged} images; ranges by {found.method} over "
        f"{found.images}; {found.recipe.activations} activations, weights in {weights}"
    )


def advice(found: Sensitivity) -> list[str]:
    """Name the nodes worth keeping in float and why, or say that none is, and the layers that are only hurt."""
    lines = [keep_line(one, found) for one in found.keep] or [
        "Nothing is worth keeping in float: no node takes enough of the error with it."
    ]
    lines += [hurt_line(one) for one in found.hurt]
    if found.hurt:
        lines.append("What neighbours share is for equalization, or for a group of layers in float: edgecnn quantize tries both.")  # fmt: skip
    return lines


def keep_line(one: Advice, found: Sensitivity) -> str:
    """Say what leaving a node in float gains."""
    gain = f"gains {one.gain_db:.1f} dB on {_sqnr(found.all_db)}" if math.isfinite(one.gain_db) else "leaves no error"
    return f"{one.name} ({one.op}): leaving it in float {gain}, {one.share:.0%} of the error; {one.why}"


def hurt_line(one: Advice) -> str:
    """Say that a layer is hurt although leaving it in float does not help."""
    gain = f"{one.gain_db:+.1f} dB" if math.isfinite(one.gain_db) else "little"
    return f"{one.name} ({one.op}): alone it makes {one.share:.0%} of the error, but leaving it in float gives {gain}; {one.why}"


def error_rows(found: Sensitivity) -> list[list[str]]:
    """Give a row of errors for each node, those with weights first."""
    layers = [
        [one.name, one.op, _sqnr(one.alone_db), _sqnr(one.left_out_db), _gain(one), _share(one.saturated)]
        for one in found.layers
    ]
    return layers + [[one.name, one.op, "", _sqnr(one.left_out_db), _gain(one), ""] for one in found.others]


def values(found: Sensitivity) -> list[list[str]]:
    """Give a row of ranges for each node; spread is the largest channel over the smallest."""
    layers = [
        [one.name, _range(one.weights), _spread(one.weights.channels), *_activations(one)] for one in found.layers
    ]
    return layers + [[one.name, "", "", *_activations(one)] for one in found.others]


def sensitivity_page(found: Sensitivity, name: str) -> str:
    """Write the page about the model called `name`; without matplotlib it has the tables alone."""
    lines = advice(found)
    said = [note(line) for line in lines] if found.keep else [paragraph(line) for line in lines]
    return page(
        f"What int8 costs in {name}",
        WHOLE_WORDS,
        *(
            []
            if drawing()
            else [note("Pictures need matplotlib, which is not installed: pip install 'edgecnn[train]'")]
        ),
        section("What is worth keeping in float", paragraph(f"With {summary(found)}."), *said, paragraph(_RULE)),
        _errors(found),
        _values(found),
    )


def _errors(found: Sensitivity) -> Html:
    shown = []
    if drawing():
        from edgecnn.report.sensitivity_plots import plot_errors

        shown.append(picture(plot_errors(found), "SQNR with each node alone in int8, and with all but it"))
    header, rows = filled(ERROR_HEADER, error_rows(found))
    return section("Error by node", paragraph(_ERRORS), *shown, html_table(named_rows(rows), header))


def _values(found: Sensitivity) -> Html:
    shown: list[Html] = []
    nodes: list[LayerSensitivity | NodeSensitivity] = [*found.layers, *found.others]
    if drawing():
        from edgecnn.report.sensitivity_plots import plot_values

        for first in range(0, len(nodes), _PICTURED):
            some = nodes[first : first + _PICTURED]
            shown.append(picture(plot_values(some), f"Histograms of outputs and weights, nodes {first + 1} to {first + len(some)}"))  # fmt: skip
    header, rows = filled(VALUE_HEADER, values(found))
    return section("Values by node", paragraph(_VALUES), *shown, html_table(named_rows(rows), header))


def _activations(one: NodeSensitivity) -> list[str]:
    cells = []
    for seen in (one.input, one.output):
        clip = "" if seen.clip is None else _ends(*seen.clip)
        cells += [_range(seen), clip, _share(seen.clipped or None), _spread(seen.channels)]
    return cells


def _range(seen: Values) -> str:
    return _ends(seen.low, seen.high)


def _ends(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _spread(channels: Channels | None) -> str:
    return "" if channels is None else f"{channels.spread:.3g}"


def _share(share: float | None) -> str:
    if share is None:
        return ""
    return "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}"


def _sqnr(value: float) -> str:
    return decibels(value) or ("no error" if value > 0 else "not finite")


def _gain(one: NodeSensitivity) -> str:
    return f"{one.gain_db:+.1f}" if math.isfinite(one.gain_db) else ""


_RULE = (
    "The rule: a node is worth keeping in float if without it the error's power falls by a fifth, about 1 dB, and by twice an "
    "even share among all nodes, or by three quarters where there are very few. It says nothing of time; edgecnn quantize "
    "measures that."
)
_ERRORS = (
    "SQNR is the power of the answers over the power of their error; 10 dB more is a tenth of the error. Only it: everything else in "
    "float; the node's input, weights and output are rounded. All but it: what the model would be with this node in float. "
    "Saturates: the share of 16-bit sums that do not fit on x86 without VNNI, weights at full range."
)
_VALUES = (
    "What the calibration images gave. Counts are on a logarithmic scale; red lines mark the range that the quantizer covers, and what "
    "lies beyond is clipped. Spread is the largest channel's largest magnitude over the smallest channel's: weights have a step for "
    "each channel, inputs and outputs one for all."
)
