"""Where a candidate first differs, as text and as a picture."""

from __future__ import annotations

import math
from typing import Any

from edgecnn.parity.localize.result import MOST_DB, BlockDifference, Figures, Localization
from edgecnn.report.text import table

_HEADER = ["", "block", "kernel", "alone", "accumulated", "times expected", "error along the depth"]
_BAR = 24  # letters of the longest bar
_FAR_DB = 160.0  # an error of which a bar is empty: float32's own is about 140 dB down
_NAME = 44


def localization_text(found: Localization) -> str:
    """Write the blocks in their order, the error alone and accumulated in dB of SQNR, then the verdict and what to do.

    A bar is the accumulated error: empty from 160 dB on, full at 0 dB and where there is no number.
    """
    lines = [
        f"{found.candidate} against {found.reference}; {found.images} images; {len(found.blocks)} blocks"
        + (f" ({found.joined} neighbours joined)" if found.joined > 1 else ""),
        table([_row(one) for one in found.blocks], _HEADER),
        f"whole model: {_db(found.whole)}; the blocks together {'answer' if found.whole_reproduced else 'do NOT answer'} as it does",
        f"first difference: {found.first.name if found.first is not None else 'none'}{'' if found.failed else ' (no verdict failed)'}",
        found.reason,
    ]
    return "\n".join([*lines, *(f"- {advice}" for advice in found.advice)])


def localization_png(found: Localization) -> bytes:
    """Draw the error along the depth, relative to each tensor's own size: alone, accumulated, and what rounding explains."""
    from matplotlib.figure import Figure

    from edgecnn.report.figures import drawable, figure_png

    figure = Figure(figsize=(9.5, max(3.0, 1.6 + 0.3 * len(found.blocks))), layout="constrained")
    axes: Any = figure.subplots()
    places = list(range(len(found.blocks)))
    for one, style, label in (
        ([_share(block.accumulated) for block in found.blocks], "o-", "accumulated"),
        ([_share(block.alone) for block in found.blocks], "s--", "alone, fed the reference's values"),
        ([_explained(block) for block in found.blocks], "|:", "what rounding explains"),
    ):
        axes.plot(one, places, style, label=label, markersize=5, linewidth=1.2)
    for place, block in enumerate(found.blocks):
        if block.culprit:
            strong = found.first is not None and block.output == found.first.output
            axes.axhspan(place - 0.45, place + 0.45, color="tab:red", alpha=0.25 if strong else 0.1)
            if block.alone.rms is None:
                axes.annotate(
                    "cannot be compared", (0.5, place), xycoords=("axes fraction", "data"), va="center", size=8
                )
    axes.set_yticks(places, [drawable(block.name, _NAME) for block in found.blocks], fontsize=8)
    axes.set_ylim(len(places) - 0.4, -0.6)
    if any(line > 0 for shown in axes.get_lines() for line in shown.get_xdata() if math.isfinite(line)):
        axes.set_xscale("log")
    said = "at fault" if found.failed else "that differs"
    title = f"first {said}: {found.first.name}" if found.first is not None else f"no block {said}"
    axes.set(xlabel="error over the tensor's root mean square", title=drawable(title, 80))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure_png(figure)


def _row(one: BlockDifference) -> list[str]:
    return [
        ">" if one.culprit else "",
        _short(one.name),
        one.kernel,
        _db(one.alone),
        _db(one.accumulated),
        f"{one.multiple:.3g}" if one.multiple is not None else "",
        _bar(one.accumulated),
    ]


def _bar(error: Figures) -> str:
    if error.sqnr_db is None:
        return "!" * _BAR
    share = min(1.0, max(0.0, 1 - error.sqnr_db / _FAR_DB))
    return "#" * round(share * _BAR)


def _db(error: Figures) -> str:
    if error.sqnr_db is None:
        return "none"
    return "no error" if error.sqnr_db >= MOST_DB else f"{error.sqnr_db:.1f} dB"


def _share(error: Figures) -> float:
    """Give the relative error; NaN, which leaves a gap, where there is none to draw on a logarithmic axis."""
    return error.relative if error.relative else math.nan


def _explained(one: BlockDifference) -> float:
    size = one.alone.rms / one.alone.relative if one.alone.rms and one.alone.relative else None
    return one.expected / size if size and one.expected else math.nan


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 2]}...{name[-_NAME // 2 + 1 :]}"
