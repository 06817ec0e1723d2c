"""A search as a table and as a picture of its front: accuracy against latency."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.metrics import wilson
from edgecnn.report.text import table, thousands

if TYPE_CHECKING:
    from edgecnn.search.result import Measured, Row, SearchReport

_HEADER = ("trial", "", "int8 val", "val", "int8 us", "together", "parameters", "MACs", "lr", "width", "depth", "pixels", "augment", "outcome")  # fmt: skip
_LOG_FROM = 10  # the slowest over the fastest, from where the axis is logarithmic


def search_text(report: SearchReport) -> str:
    """Write all trials but the refused ones as a table, then the front's command lines and what to think of it."""
    shown = [row for row in report.rows if row.state != "refused"]
    refused = len(report.rows) - len(shown)
    front = sorted(
        (row for row in shown if row.front and row.int8), key=lambda row: row.int8.latency_us if row.int8 else 0
    )
    lines = [table([_cells(row) for row in shown], _HEADER), ""]
    lines += [f"trial {row.number}: {row.command}" for row in front]
    if not front:
        lines.append("no trial is within the limits")
    lines += ["", f"* the front: no other trial is both as accurate and as fast. {report.epochs} epochs a trial (usual: {report.usual_epochs}).", "int8 here is every layer in int8; export leaves layers in float where that is faster or closer."]  # fmt: skip
    lines += _together(report, front)
    if refused:
        lines.append(f"{refused} trials were over --max-macs or --max-params and were not trained.")
    lines.append(_chance(report, front))
    lines += [f"WARNING: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def _together(report: SearchReport, front: list[Row]) -> list[str]:
    """Say what the times that compare make of a front that was chosen by those of the trials."""
    measured = [(row, row.int8.accuracy, row.together.latency_us) for row in front if row.int8 and row.together]
    if not measured:
        return []
    lines = ["together: the front's files timed again at the end, in turns, so that they compare; the front was chosen by the trials' own times, in int8 us."]  # fmt: skip
    limit = report.limits.max_latency_us
    for row, accuracy, latency in measured:
        better = [other.number for other, share, time in measured if share >= accuracy and time < latency and other is not row]  # fmt: skip
        if better:
            lines.append(f"Timed together, trial {row.number} is beaten by {', '.join(map(str, better))}.")
        if limit is not None and latency > limit:
            lines.append(f"Timed together, trial {row.number} is over the limit of latency.")
    return lines


def _cells(row: Row) -> list[str]:
    settings, cost, int8 = row.settings, row.cost, row.int8
    latency = f"{int8.latency_us:.1f}{'~' if int8.doubts else ''}" if int8 else ""
    outcome = f"over {' and '.join(row.passed)}" if row.passed else {"complete": ""}.get(row.state, f"{row.state}: {row.reason}")  # fmt: skip
    return [
        str(row.number),
        "*" if row.front else "",
        f"{int8.accuracy:.2%}" if int8 else "",
        f"{row.val_accuracy:.2%}" if row.val_accuracy is not None else "",
        latency,
        f"{row.together.latency_us:.1f}" if row.together else "",
        thousands(cost.parameters) if cost else "",
        thousands(cost.macs) if cost else "",
        *(
            (f"{settings.lr:g}", f"{settings.width:g}", str(settings.depth), str(settings.image_size), settings.augment)
            if settings
            else ("",) * 5
        ),
        outcome,
    ]


def _chance(report: SearchReport, front: list[Row]) -> str:
    best = max((row.int8.accuracy for row in front if row.int8), default=None)
    if best is None:
        return f"{report.val_images} validation images."
    low, high = wilson(round(best * report.val_images), report.val_images)
    return (
        f"The best, {best:.2%} of {report.val_images} validation images, has a 95 % interval of {low:.2%} to {high:.2%}; "
        "being chosen by it, it is flattered: train it and look at the test images once."
    )


def plot_front(report: SearchReport) -> bytes:
    """Plot accuracy on the validation images against latency, as PNG bytes; the front is a line, labelled by trial.

    The front is drawn at the times measured together, where there are some, and those of the trials are dotted to them.
    Bars are 95 % intervals. What is over a limit is a cross, what was given up or failed has no latency and is not shown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    done = [(row, row.int8) for row in report.rows if row.state == "complete" and row.int8]
    groups = (
        ([pair for pair in done if not pair[0].front and not pair[0].passed], "other trials", "tab:grey", "o"),
        ([pair for pair in done if pair[0].passed], "over a limit", "tab:red", "x"),
    )
    for pairs, label, colour, mark in groups:
        if pairs:
            points = [(int8.latency_us, int8.accuracy * 100) for _, int8 in pairs]
            axes.scatter(*zip(*points, strict=True), color=colour, marker=mark, alpha=0.7, label=label)
            for (row, _), point in zip(pairs, points, strict=True):
                axes.annotate(str(row.number), point, textcoords="offset points", xytext=(4, 4), color=colour, size=7)
    _draw_front(axes, report, sorted((pair for pair in done if pair[0].front), key=lambda pair: pair[1].latency_us))
    limit = report.limits.max_latency_us
    if limit is not None:
        axes.axvline(limit, color="tab:red", linestyle="--", linewidth=1, label="--max-latency-ms")
    times = [int8.latency_us for _, int8 in done]
    if times and max(times) > _LOG_FROM * min(times):
        axes.set_xscale("log")
    axes.set(xlabel="int8 latency, us (p50, batch 1, one thread)", ylabel="int8 validation accuracy, %")
    axes.set_title(f"{len(done)} trials measured, {len(report.rows) - len(done)} given up, refused or failed")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _time(row: Row, int8: Measured) -> float:
    return row.together.latency_us if row.together else int8.latency_us


def _draw_front(axes: Any, report: SearchReport, front: list[tuple[Row, Any]]) -> None:
    from edgecnn.search.result import pareto_front

    if not front:
        return
    for row, int8 in front:
        if row.together:
            axes.plot([row.together.latency_us, int8.latency_us], [int8.accuracy * 100] * 2, color="tab:blue", linewidth=0.7, linestyle=":", marker="o", markersize=4, markerfacecolor="none")  # fmt: skip
    front = sorted(front, key=lambda pair: _time(*pair))
    times = [_time(row, int8) for row, int8 in front]
    shares = [int8.accuracy * 100 for _, int8 in front]
    ends = [wilson(round(int8.accuracy * report.val_images), report.val_images) for _, int8 in front]
    reach = [
        [max(0.0, share - low * 100) for share, (low, _) in zip(shares, ends, strict=True)],
        [max(0.0, high * 100 - share) for share, (_, high) in zip(shares, ends, strict=True)],
    ]
    kept = pareto_front(shares, times)
    axes.step(
        np.array(times)[kept], np.array(shares)[kept], where="post", color="tab:blue"
    )  # between two of them the slower one is not yet to be had
    axes.errorbar(times, shares, yerr=reach, fmt="o", color="tab:blue", elinewidth=0.7, capsize=2, label="the front")
    for (row, _), time, share in zip(front, times, shares, strict=True):
        axes.annotate(str(row.number), (time, share), textcoords="offset points", xytext=(5, 5))
