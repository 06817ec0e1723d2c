"""Pictures of what int8 costs layer by layer, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.report.figures import drawable, figure_png

if TYPE_CHECKING:
    from edgecnn.quantization.sensitivity import LayerSensitivity, NodeSensitivity, Sensitivity
    from edgecnn.quantization.values import Values

_KEPT, _HURT, _OTHER = "tab:red", "tab:orange", "tab:blue"
_NAME = 26  # letters of a name
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_BASE = -0.3  # the logarithm of a half, from where histograms rise


def plot_errors(found: Sensitivity) -> bytes:
    """Plot both SQNRs as bars, node by node from above, from the SQNR of the whole; the advice gives the colours."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    nodes: list[LayerSensitivity | NodeSensitivity] = [*found.layers, *found.others]
    figure = Figure(figsize=(10.5, 1.5 + 0.27 * len(nodes)), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    kept, hurt = ({one.node for one in advice} for advice in (found.keep, found.hurt))
    colours = [_KEPT if one.node in kept else _HURT if one.node in hurt else _OTHER for one in nodes]
    base = found.all_db if math.isfinite(found.all_db) else 0.0
    _bars(axes[0], [getattr(one, "alone_db", None) for one in nodes], base, colours)
    _bars(axes[1], [one.left_out_db for one in nodes], base, colours)
    axes[0].set_yticks(range(len(nodes)), [drawable(one.name, _NAME) for one in nodes], fontsize=8)
    axes[0].set_ylim(len(nodes) - 0.4, -0.6)
    axes[0].set(xlabel="SQNR with only it in int8, dB", title="Quantized alone")
    axes[1].set(xlabel="SQNR with all but it in int8, dB", title="Left in float")
    for one in axes:
        one.axvline(base, color="black", linewidth=1)
        one.margins(x=0.12)
        one.grid(axis="x", alpha=0.3)
    names = {_KEPT: "worth keeping in float", _HURT: "hurt, and float does not help"}
    marks = [Patch(color=colour, label=name) for colour, name in names.items() if colour in colours]
    lines = [*marks, *axes[1].plot([], [], color="black", linewidth=1, label=f"all in int8: {base:.1f} dB")]
    figure.legend(handles=lines, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure_png(figure)


def plot_values(nodes: Sequence[LayerSensitivity | NodeSensitivity]) -> bytes:
    """Plot histograms of each node's output, with what its quantizer covers, and of its weights; two nodes a row."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(nodes) / 2)
    height = 0.3 + 1.45 * rows
    figure = Figure(figsize=(10.5, height))
    # By hand: to lay out a hundred axes takes matplotlib many seconds.
    figure.subplots_adjust(
        left=0.03, right=0.985, top=1 - 0.35 / height, bottom=0.25 / height, hspace=0.65, wspace=0.12
    )
    axes: Any = figure.subplots(rows, 4, squeeze=False).ravel()
    for one in axes:
        one.axis("off")
    for place, node in enumerate(nodes):
        name = drawable(node.name, _NAME)
        _histogram(axes[2 * place], node.output, f"{name}\noutput", _OTHER)
        weights = getattr(node, "weights", None)
        if weights is not None:
            _histogram(axes[2 * place + 1], weights, "weights", "tab:grey")
    return figure_png(figure)


def _bars(axes: Any, values: Sequence[float | None], base: float, colours: Sequence[str]) -> None:
    """Draw bars from `base`; what has no error reaches as far as the longest, and says so."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    longest = max([*finite, base + 1])
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        if value is None:
            continue
        end = value if math.isfinite(value) else longest if value > 0 else min([*finite, base])
        axes.barh(place, end - base, left=base, height=0.7, color=colour, alpha=0.8)
        text = f"{value:.1f}" if math.isfinite(value) else "no error" if value > 0 else "not finite"
        side = {"xytext": (3 if end >= base else -3, 0), "ha": "left" if end >= base else "right"}
        axes.annotate(text, (end, place), textcoords="offset points", va="center", size=7, **side)


def _histogram(axes: Any, values: Values, title: str, colour: str) -> None:
    """Draw one, its heights the logarithms of counts, with the powers of ten as ticks."""
    axes.axis("on")
    counts = np.array(values.counts)
    edges = np.linspace(values.low, values.low + ((values.high - values.low) or 1.0), counts.size + 1)
    heights = np.log10(np.maximum(counts, 0.5))  # one value still has a height
    axes.stairs(heights, edges, baseline=_BASE, fill=True, color=colour, alpha=0.7)
    top = max(1, math.ceil(heights.max()))
    powers = range(0, top + 1, max(1, top // 3))
    axes.set_ylim(_BASE, top + 0.2)
    axes.set_yticks(powers, ["10" + str(power).translate(_RAISED) for power in powers])
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=6, pad=1)
    axes.set_title(title, fontsize=7, pad=2)
    for end in values.clip or ():
        axes.axvline(end, color="tab:red", linewidth=1)
