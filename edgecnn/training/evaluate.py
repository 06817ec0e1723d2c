"""What a trained network is worth: the one place that looks at the test split, once, after all choices are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from torch import nn

from edgecnn.data import Dataset, LabelledImages
from edgecnn.errors import TrainingError
from edgecnn.files import write_atomic
from edgecnn.metrics import (
    Array,
    Mistake,
    accuracy,
    auc,
    balanced_accuracy,
    calibration,
    class_scores,
    confusion,
    macro_f1,
    softmax,
)
from edgecnn.nets import Cost, Deployed
from edgecnn.runs import METRICS, Metrics, RunConfig
from edgecnn.spec import to_json
from edgecnn.training.loop import Epoch, predict_logits

REPORT = "report.html"
_MISTAKES_SHOWN = 24


def evaluate_run(
    net: nn.Module,
    dataset: Dataset,
    history: Sequence[Epoch],
    seconds: float,
    cost: Cost,
    out: Path,
    *,
    config: RunConfig | None = None,
    temperature: float = 1.0,
) -> Metrics:
    """Measure the best weights on validation and test and write metrics, pictures and report into the run folder.

    `net` is the network as it will be deployed. `temperature` says what its logits have been divided by already,
    so that validation can be shown before and after. The report is written where there is a `config`.

    Raises:
        TrainingError: a logit is not finite.
    """
    model = Deployed(net, dataset.preprocess)
    val, test = _logits(model, dataset.val, "validation"), _logits(model, dataset.test, "test")
    wrong = worst_mistakes(test, dataset.test.labels)
    metrics = _measure(val, test, wrong, dataset, history, seconds, cost, temperature)
    # Before the metrics, whose presence says that the run is finished.
    _write_pictures(metrics, dataset, wrong, out, config)
    write_atomic(out / METRICS, to_json(metrics))
    return metrics


def worst_mistakes(logits: Array, labels: npt.NDArray[np.int64], most: int = _MISTAKES_SHOWN) -> npt.NDArray[np.int64]:
    """Return the indices of the wrong answers given with the most confidence, the worst first, at most `most`."""
    confidence, answers = softmax(logits).max(axis=1), logits.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:most]


def _logits(model: Deployed, images: LabelledImages, split: str) -> Array:
    logits = predict_logits(model, images)
    if not np.isfinite(logits).all():
        raise TrainingError(f"a logit of the {split} images is not a finite number: use a smaller --lr")
    return logits


def _measure(
    val: Array,
    test: Array,
    wrong: npt.NDArray[np.int64],
    dataset: Dataset,
    history: Sequence[Epoch],
    seconds: float,
    cost: Cost,
    temperature: float,
) -> Metrics:
    labels, truth, answers = dataset.labels, dataset.test.labels, test.argmax(axis=1)
    table = confusion(answers, truth, len(labels))
    scores, sure = class_scores(table, labels), calibration(test, truth)
    val_sure = calibration(val, dataset.val.labels)
    # The validation logits are what they were, times the temperature that has been folded in.
    before = calibration(val.astype(np.float64) * temperature, dataset.val.labels) if temperature != 1 else None
    epochs = tuple(msgspec.to_builtins(epoch) for epoch in history)
    probabilities = softmax(test[wrong]) if len(wrong) else np.zeros((0, len(labels)))
    return Metrics(
        test_accuracy=accuracy(answers, truth),
        val_accuracy=accuracy(val.argmax(axis=1), dataset.val.labels),
        best_epoch=max(epoch["number"] for epoch in epochs if epoch.get("best")),
        parameters=cost.parameters,
        macs=cost.macs,
        seconds=seconds,
        images={name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        confusion=tuple(tuple(row) for row in table.tolist()),
        history=epochs,
        per_class=scores,
        macro_f1=macro_f1(scores),
        balanced_accuracy=balanced_accuracy(scores),
        auc=auc(test, truth),
        ece=sure.ece,
        ece_by_chance=sure.ece_by_chance,
        nll=sure.nll,
        brier=sure.brier,
        reliability=sure.bins,
        temperature=temperature,
        val_ece=val_sure.ece,
        val_nll=val_sure.nll,
        val_ece_before=before.ece if before else None,
        val_nll_before=before.nll if before else None,
        mistakes=tuple(
            Mistake(
                image=_encodable(dataset.test.name(int(index))),
                truth=labels[truth[index]],
                answer=labels[answers[index]],
                confidence=float(row.max()),
            )
            for index, row in zip(wrong, probabilities, strict=True)
        ),
        warnings=tuple(map(_encodable, dataset.warnings)),
        skipped=len(dataset.skipped),
    )


def _encodable(name: str) -> str:
    """Write what a file name holds beyond Unicode as escapes: JSON has no place for it."""
    return name.encode("utf-8", "backslashreplace").decode()


def _write_pictures(
    metrics: Metrics, dataset: Dataset, wrong: npt.NDArray[np.int64], out: Path, config: RunConfig | None
) -> None:
    from edgecnn.report.plots import plot_confusion, plot_curves, plot_mistakes, plot_reliability
    from edgecnn.report.run import run_page

    pictures = {
        "curves.png": plot_curves(metrics),
        "confusion.png": plot_confusion(metrics, dataset.labels),
        "reliability.png": plot_reliability(metrics),
    }
    if len(wrong):
        pictures["mistakes.png"] = plot_mistakes(metrics.mistakes, dataset.test.take(wrong))
    for name, content in pictures.items():
        write_atomic(out / name, content)
    if config is not None:
        write_atomic(out / REPORT, run_page(config, metrics, pictures).encode())
    # What an earlier run left in the folder would be taken for this one's.
    for name in {"mistakes.png", REPORT} - set(pictures) - ({REPORT} if config else set()):
        (out / name).unlink(missing_ok=True)
