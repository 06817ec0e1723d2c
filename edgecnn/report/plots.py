"""Plots of a training run as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.runs import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES_FIT = 30  # more classes than this and their names would overlap


def plot_curves(metrics: Metrics) -> bytes:
    """Plot training and validation loss, and validation accuracy, by epoch; the best epoch is marked."""
    from matplotlib.figure import Figure

    epochs = [row["number"] for row in metrics.history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, right = figure.subplots(1, 2)
    loss.plot(epochs, [row["loss"] for row in metrics.history], label="training (augmented, smoothed labels)")
    loss.plot(epochs, [row["val_loss"] for row in metrics.history], label="validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="Loss")
    loss.legend()
    right.plot(epochs, [row["val_accuracy"] * 100 for row in metrics.history], color="tab:green")
    right.axvline(metrics.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {metrics.best_epoch}")
    right.set(xlabel="epoch", ylabel="validation accuracy, %", title="Accuracy")
    right.legend(loc="lower right")
    for axes in (loss, right):
        axes.grid(alpha=0.3)
    return _png(figure)


def plot_confusion(metrics: Metrics, labels: tuple[str, ...]) -> bytes:
    """Plot the test split's confusion matrix: rows are the truth; colours are shares of a row, numbers are counts."""
    from matplotlib.figure import Figure

    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 3.0 + 0.42 * len(labels))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes: Any = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(
        xlabel="predicted", ylabel="true", title=f"Test: {metrics.test_accuracy.value:.2%} of {metrics.test_accuracy.n}"
    )
    if len(labels) <= _NAMES_FIT:
        longest = max(map(len, labels))
        axes.set_xticks(
            range(len(labels)), labels, rotation=0 if longest <= 2 else 60, ha="center" if longest <= 2 else "right"
        )
        axes.set_yticks(range(len(labels)), labels)
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
