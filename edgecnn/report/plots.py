"""Plots of a training run as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecnn.images import Pixels
from edgecnn.metrics import Mistake, wilson
from edgecnn.report.figures import drawable, figure_png
from edgecnn.runs import Metrics

_NAMES_FIT = 60  # more classes than this and their names would overlap
_PAIRS_SHOWN = 30
_COLUMNS = 6  # of the mistakes
_LONGEST = 22  # letters of a name


def plot_curves(metrics: Metrics) -> bytes:
    """Plot losses, validation accuracy and, where it was kept, the learning rate by epoch; the best one is marked."""
    from matplotlib.figure import Figure

    epochs, rates = _column(metrics, "number"), _column(metrics, "lr")
    with_rate = any(math.isfinite(rate) for rate in rates)
    figure = Figure(figsize=(12 if with_rate else 9, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 3 if with_rate else 2)
    loss, right = axes[:2]
    mark = "." if len(epochs) < 20 else ""
    loss.plot(epochs, _column(metrics, "loss"), marker=mark, label="training (the recipe's loss)")
    loss.plot(epochs, _column(metrics, "val_loss"), marker=mark, label="validation (cross-entropy)")
    loss.set(xlabel="epoch", ylabel="loss", yscale="log", title="Loss")
    loss.legend()
    shares = [share * 100 for share in _column(metrics, "val_accuracy")]
    right.plot(epochs, shares, marker=mark, color="tab:green")
    right.axvline(metrics.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {metrics.best_epoch}")
    right.set(xlabel="epoch", ylabel="validation accuracy, %", title="Accuracy")
    right.legend(loc="lower right")
    if with_rate:
        axes[2].plot(epochs, rates, marker=mark, color="tab:red")
        axes[2].set(xlabel="epoch", ylabel="learning rate", title="Learning rate")
    for one in axes:
        one.grid(alpha=0.3)
        one.xaxis.get_major_locator().set_params(integer=True)
    return figure_png(figure)


def plot_confusion(metrics: Metrics, labels: tuple[str, ...]) -> bytes:
    """Plot the test split's confusion matrix: rows are the truth; colours are shares of a row, numbers are counts.

    Where there are too many classes for their names the most frequent confusions are listed beside the matrix.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(labels) <= _NAMES_FIT
    side = min(16.0, 3.0 + 0.42 * len(labels)) if named else 10.0
    figure = Figure(figsize=(side + (0.8 if named else 6.0), side), layout="constrained")
    axes: Any = figure.subplots(1, 1 if named else 2, squeeze=False, width_ratios=None if named else (5, 2))[0]
    # The root shows one mistake among a hundred, which a linear scale hides.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes[0].imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(picture, ax=axes[0], label="share of the true class", shrink=0.8, location="right")
    test = metrics.test_accuracy
    axes[0].set(xlabel="predicted", ylabel="true", title=f"Test: {test.value:.2%} of {test.n}")
    if named:
        _write_cells(axes[0], counts, norm(shares), labels, side)
    else:
        _list_confusions(axes[1], metrics, labels)
    return figure_png(figure)


def most_confused(metrics: Metrics, labels: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """List the confusions, the most frequent first: truth, answer, how often, and how many images of the truth."""
    counts = np.array(metrics.confusion)
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    pairs = sorted(np.argwhere(counts > 0).tolist(), key=lambda pair: -int(counts[pair[0], pair[1]]))
    return [(labels[row], labels[column], int(counts[row, column]), int(support[row])) for row, column in pairs]


def plot_reliability(metrics: Metrics) -> bytes:
    """Plot how often answers are right against how sure they were, with 95 % intervals, and how many there were."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [one for one in metrics.reliability if one.count]
    middles = [(one.low + one.high) / 2 for one in filled]
    sure, right = ([float(value or 0.0) for value in column] for column in (
        [one.confidence for one in filled], [one.accuracy for one in filled]
    ))  # fmt: skip
    width = 1 / max(len(metrics.reliability), 1)
    ends = [wilson(round(share * one.count), one.count) for share, one in zip(right, filled, strict=True)]
    reach = [
        [max(0.0, share - low) for share, (low, _) in zip(right, ends, strict=True)],
        [max(0.0, high - share) for share, (_, high) in zip(right, ends, strict=True)],
    ]
    axes[0].plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    axes[0].bar(middles, right, width=width, alpha=0.35, edgecolor="tab:blue", label="right")
    axes[0].errorbar(sure, right, yerr=reach, fmt="o", color="tab:blue", markersize=4, capsize=2, label="95 % interval")
    axes[0].set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of right answers", title=_reliability_title(metrics))
    axes[0].legend(loc="best")
    bars = axes[1].bar(middles, [one.count for one in filled], width=width, color="tab:grey", edgecolor="white")
    axes[1].bar_label(bars, fontsize=7)
    axes[1].margins(y=0.25)
    axes[1].set(xlabel="confidence of the answer", ylabel="images")
    for one in axes:
        one.grid(alpha=0.3)
    return figure_png(figure)


def plot_mistakes(mistakes: Sequence[Mistake], images: Pixels) -> bytes:
    """Show wrong answers as the network saw them, uint8 (n, H, W, 1 or 3): truth, answer, confidence and name."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    figure = Figure(figsize=(2.1 * max(columns, 2), 2.75 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    for one in axes:
        one.axis("off")
    for one, mistake, image in zip(axes, mistakes, images, strict=False):
        one.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        one.set_title(
            f"is {_short(mistake.truth)}\nsays {_short(mistake.answer)}, {mistake.confidence:.1%}\n{_short(mistake.image)}",
            fontsize=8,
        )
    return figure_png(figure)


def _column(metrics: Metrics, name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in metrics.history]


def _write_cells(axes: Any, counts: Any, shades: Any, labels: Sequence[str], side: float) -> None:
    """Write the classes' names along the matrix and the counts into its cells."""
    cell = 72 * (side - 2.5) / len(labels)  # points
    names = [_short(label) for label in labels]
    long = max(map(len, names)) > 2
    size = min(10.0, 0.7 * cell)
    axes.set_xticks(range(len(names)), names, rotation=90 if long else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    for row, column in np.argwhere(counts > 0):
        size = min(8.0, 1.25 * cell / len(str(counts[row, column])))
        colour = "white" if shades[row, column] > 0.6 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=size)


def _list_confusions(axes: Any, metrics: Metrics, labels: Sequence[str]) -> None:
    pairs = most_confused(metrics, labels)[:_PAIRS_SHOWN]
    names = [f"{_short(truth)} as {_short(answer)}" for truth, answer, _, _ in pairs]
    bars = axes.barh(range(len(pairs)), [count for _, _, count, _ in pairs], color="tab:blue")
    axes.bar_label(bars, [f"{count} of {support}" for _, _, count, support in pairs], fontsize=7, padding=2)
    axes.set_yticks(range(len(pairs)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set(xlabel="images", title="Most frequent confusions" if pairs else "No confusions")


def _reliability_title(metrics: Metrics) -> str:
    if metrics.ece is None or metrics.ece_by_chance is None:
        return "Confidence"
    return f"Test: calibration error {metrics.ece:.2%}\n(chance alone makes about {metrics.ece_by_chance:.2%})"


def _short(name: str) -> str:
    return drawable(name, _LONGEST)
