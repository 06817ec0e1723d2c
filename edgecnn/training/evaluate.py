"""What a trained network is worth: the one place that looks at the test split, once, after all choices are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch import nn

from edgecnn.data import Dataset
from edgecnn.files import write_atomic
from edgecnn.metrics import accuracy, confusion
from edgecnn.nets import Cost, Deployed
from edgecnn.runs import METRICS, Metrics
from edgecnn.spec import to_json
from edgecnn.training.loop import Epoch, predict_logits


def evaluate_run(
    net: nn.Module, dataset: Dataset, history: Sequence[Epoch], seconds: float, cost: Cost, out: Path
) -> Metrics:
    """Measure the best weights on validation and test and write metrics and pictures into the run folder."""
    model = Deployed(net, dataset.preprocess)
    predicted = predict_logits(model, dataset.test).argmax(axis=1)
    table = confusion(predicted, dataset.test.labels, len(dataset.labels))
    metrics = Metrics(
        test_accuracy=accuracy(predicted, dataset.test.labels),
        val_accuracy=accuracy(predict_logits(model, dataset.val).argmax(axis=1), dataset.val.labels),
        best_epoch=max(epoch.number for epoch in history if epoch.best),
        parameters=cost.parameters,
        macs=cost.macs,
        seconds=seconds,
        images={name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        confusion=tuple(tuple(int(count) for count in row) for row in table),
        history=tuple(msgspec.to_builtins(epoch) for epoch in history),
    )
    write_atomic(out / METRICS, to_json(metrics))
    from edgecnn.report.plots import plot_confusion, plot_curves

    write_atomic(out / "curves.png", plot_curves(metrics))
    write_atomic(out / "confusion.png", plot_confusion(metrics, dataset.labels))
    return metrics
