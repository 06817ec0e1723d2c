"""Pictures of a quantization as PNG bytes: its ladder, and the front of its placements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edgecnn.report.figures import drawable, figure_png
from edgecnn.report.quantization import named, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edgecnn.quantization.placement import Placement
    from edgecnn.quantization.run import Report

COLOURS = {"PASS": "tab:green", "INCONCLUSIVE": "tab:orange", "FAIL": "tab:red", "NOT MEASURED": "tab:grey"}
_SMALLEST, _LARGEST = 30.0, 260.0  # markers, in square points
_LABELLED = 8  # placements of the front


def plot_ladder(report: Report) -> bytes:
    """Plot, rung by rung from above, the accuracy with its 95 % interval and the time relative to float with its own.

    Colours are verdicts. Rungs that made no model keep their place, empty.
    """
    from matplotlib.figure import Figure

    rungs = report.rungs
    timed = any(rung.speed for rung in rungs)
    figure = Figure(figsize=(10.5, 1.7 + 0.38 * len(rungs)), layout="constrained")
    axes: Any = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    for place, rung in enumerate(rungs):
        if rung.decisions is None:
            axes[0].annotate("not made", (0.5, place), xycoords=("axes fraction", "data"), color="grey", ha="center", va="center", size=8)  # fmt: skip
            continue
        share, colour = rung.decisions.candidate_accuracy, COLOURS[rung.decisions.verdict.value]
        _interval(axes[0], place, 100 * share.value, 100 * share.low, 100 * share.high, colour)
        if timed and rung.speed is not None:
            _interval(axes[1], place, rung.speed.ratio, rung.speed.low, rung.speed.high, colour)
    reference = report.decisions.reference_accuracy
    axes[0].axvline(100 * reference.value, color="grey", linestyle="--", linewidth=1)
    axes[0].set_xlabel(f"{'right' if report.evaluated_on == 'labels' else 'as float answers'}, % of {report.decisions.n:,} images (dashed: float)")  # fmt: skip
    names = [f"{drawable(rung.name)}{' *' if index == report.best else ''}" for index, rung in enumerate(rungs)]
    axes[0].set_yticks(range(len(rungs)), names)
    axes[0].set_ylim(len(rungs) - 0.5, -0.5)
    if timed:
        axes[1].axvline(1, color="grey", linestyle="--", linewidth=1)
        axes[1].set_xlabel("time relative to the float model (dashed)")
        axes[1].set_xlim(0, 1.08 * max(1.0, *(rung.speed.high for rung in rungs if rung.speed)))
    for one in axes:
        one.grid(axis="x", alpha=0.3)
    _legend_of_verdicts(figure, [rung.decisions.verdict.value for rung in rungs if rung.decisions])
    return figure_png(figure)


def plot_placements(report: Report) -> bytes:
    """Plot the placements that were tried, time against SQNR, marker area by file size; the front is a line.

    Where nothing was timed, file size takes the place of time.
    """
    from matplotlib.figure import Figure

    if report.search is None:
        raise ValueError("no placement was searched")
    search = report.search
    shown = [one for one in search.tried if math.isfinite(one.sqnr_db)]
    timed = all(one.speed for one in shown)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes: Any = figure.subplots()

    def across(one: Placement) -> float:
        return one.speed.ratio if timed and one.speed else one.bytes / 1000

    sizes = [one.bytes for one in shown]
    least, reach = min(sizes, default=0), max(1, max(sizes, default=1) - min(sizes, default=0))
    areas = [_SMALLEST + (_LARGEST - _SMALLEST) * (count - least) / reach for count in sizes]
    colours = ["tab:blue" if one.front else "tab:grey" for one in shown]
    axes.scatter([across(one) for one in shown], [one.sqnr_db for one in shown], s=areas, c=colours, alpha=0.45)
    front = sorted((one for one in shown if one.front), key=across)
    edge = _upper_left(front, across)
    axes.step([across(one) for one in edge], [one.sqnr_db for one in edge], where="post", color="tab:blue", linewidth=1, label="no other is as fast and as exact")  # fmt: skip
    chosen = search.chosen
    if math.isfinite(chosen.sqnr_db):
        axes.plot(across(chosen), chosen.sqnr_db, "*", color="tab:red", markersize=15, label=f"chosen: in float {drawable(named(chosen.floats, names_of(report)))}")  # fmt: skip
    base = next((one for one in shown if not one.floats), None)
    if base is not None:
        axes.plot(
            across(base), base.sqnr_db, "D", color="black", markersize=6, fillstyle="none", label="nothing in float"
        )
    axes.set(xlabel="time relative to the float model" if timed else "file, kB (nothing was timed here)", ylabel="SQNR of the answers, dB")  # fmt: skip
    axes.set_title(
        f"{len(search.tried)} placements of layers in float; larger markers are larger files, blue ones are on the front",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.margins(0.08)
    axes.legend(loc="best", fontsize=8)
    return figure_png(figure)


def _interval(axes: Any, place: int, value: float, low: float, high: float, colour: str) -> None:
    reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar([value], [place], xerr=reach, fmt="o", color=colour, markersize=5, capsize=3, elinewidth=1)


def _legend_of_verdicts(figure: Figure, verdicts: list[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=verdict)
        for verdict, colour in COLOURS.items()
        if verdict in verdicts
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=len(COLOURS), fontsize=8, frameon=False)


def _upper_left(front: list[Placement], across: Any) -> list[Placement]:
    """Keep those that are more exact than every faster one: with size as third wish, others are on the front as well."""
    kept: list[Placement] = []
    for one in sorted(front, key=lambda one: (across(one), -one.sqnr_db)):
        if not kept or one.sqnr_db > kept[-1].sqnr_db:
            kept.append(one)
    return kept
