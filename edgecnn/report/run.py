"""A training run as one HTML page, and its result as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgecnn.metrics import ClassScore, wilson
from edgecnn.report.html import Html, note, page, paragraph, picture, section, table, text
from edgecnn.report.plots import most_confused
from edgecnn.report.text import percent, thousands
from edgecnn.runs import Metrics, RunConfig

_WORST_FIRST = 20  # with more classes than this nobody looks a name up in their order
_PAIRS_SHOWN = 12


def run_page(config: RunConfig, metrics: Metrics, pictures: Mapping[str, bytes]) -> str:
    """Write the page: what was trained on what, what came of it in plain words, and the evidence.

    `pictures` are PNGs by the names that they have in the run folder; those that are not there are left out.
    """
    return page(
        f"Training on {config.data}",
        *(note(f"Warning: {warning}") for warning in metrics.warnings),
        section("What came of it", *(paragraph(line) for line in run_summary(metrics))),
        section("What was trained on what", table(_facts(config, metrics))),
        _by_class(metrics),
        _confusions(metrics, config.labels, pictures),
        _confidence(metrics, pictures),
        _mistakes(metrics, pictures),
        _pictured("Training", "curves.png", "Loss, validation accuracy and learning rate by epoch", pictures),
        section("Configuration", table(_settings(config), ["setting", "value"])),
    )


def run_text(metrics: Metrics) -> list[tuple[str, str]]:
    """List what the terminal shows of the test: names and values; what is not defined is left out."""
    lines = [("test accuracy", percent(metrics.test_accuracy))]
    if metrics.macro_f1 is not None:
        lines.append(("macro F1", f"{metrics.macro_f1:.4f}"))
    if metrics.auc is not None:
        kind = "" if len(metrics.per_class) == 2 else ", mean of one class against the rest"
        lines.append(("AUC", f"{metrics.auc:.4f}{kind}"))
    if metrics.ece is not None and metrics.ece_by_chance is not None:
        lines.append(("ECE", f"{metrics.ece:.2%} (chance alone makes about {metrics.ece_by_chance:.2%})"))
    if metrics.temperature != 1:
        lines.append(("temperature", f"{metrics.temperature:.3f}, fitted on the validation images"))
    worst = worst_class(metrics.per_class)
    if worst is not None and worst.recall is not None:
        lines.append(("worst class", f"{worst.label}: {worst.recall:.2%} of its {worst.support} images found"))
    return lines


def worst_class(scores: Sequence[ClassScore]) -> ClassScore | None:
    """Return the class of which the smallest share was found, of several that with the most images."""
    measured = [score for score in scores if score.recall is not None]
    return min(measured, key=lambda score: (score.recall, -score.support), default=None)


def run_summary(metrics: Metrics) -> list[str]:
    """Say in plain words what the test showed and what it cannot show."""
    test = metrics.test_accuracy
    lines = [
        f"Of {thousands(test.n)} test images, held out from training and from every choice, the network named "
        f"{thousands(test.correct)} rightly. That is {test.value:.2%}, with a 95 % interval from {test.low:.2%} to {test.high:.2%}.",
        f"{_odds(metrics)} This holds for images that come about as the test images did. With another camera, light or "
        "background it may be worse, and these images cannot tell.",
    ]
    largest = max(metrics.per_class, key=lambda score: score.support, default=None)
    if largest is not None:
        share = largest.support / test.n
        lines.append(
            f"Always answering {largest.label!r}, the class with the most images, would be right for {share:.2%} of them."
        )
    worst = worst_class(metrics.per_class)
    if worst is not None and worst.recall is not None and worst.recall < 1:
        missed = round(worst.support * (1 - worst.recall))
        lines.append(
            f"The class found least is {worst.label!r}: {missed} of its {worst.support} images got another name."
        )
    absent = [score.label for score in metrics.per_class if not score.support]
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        lines.append(f"There is no test image of {names}: nothing is known about {len(absent)} of the classes.")
    return lines + _confidence_in_words(metrics)


def _odds(metrics: Metrics) -> str:
    test = metrics.test_accuracy
    most = _one_in(1 - test.low)
    if test.correct == test.n:
        return f"None was wrong; but so few images leave room for {most} with a wrong name."
    return f"About {_one_in(1 - test.value)} gets a wrong name; by the interval it may be {most}."


def _one_in(share: float) -> str:
    return f"one in {1 / share:.0f}" if share < 0.4 else f"{100 * share:.0f} in 100"


def _confidence_in_words(metrics: Metrics) -> list[str]:
    if metrics.ece is None or metrics.ece_by_chance is None:
        return []
    test, said = metrics.test_accuracy, sum((one.confidence or 0) * one.count for one in metrics.reliability)
    mean = said / test.n
    start = (
        f"Its mean confidence is {mean:.2%} where {test.value:.2%} is right; the calibration error is {metrics.ece:.2%}"
    )
    if metrics.ece < 2 * metrics.ece_by_chance:
        return [f"{start}, about what chance alone makes of {thousands(test.n)} images: they show no fault in it."]
    tendency = "surer of itself than it should be" if mean > test.value else "less sure of itself than it could be"
    if abs(mean - test.value) < metrics.ece / 2:
        tendency = "too sure of some answers and not sure enough of others"
    hint = "" if metrics.temperature != 1 else "; `edgecnn train --calibrate` mends that"
    return [f"{start}, where chance alone makes about {metrics.ece_by_chance:.2%}. It is {tendency}{hint}."]


def _facts(config: RunConfig, metrics: Metrics) -> list[tuple[str, str]]:
    images = ", ".join(f"{thousands(count)} {name}" for name, count in metrics.images.items())
    kept = f"epoch {metrics.best_epoch} of {len(metrics.history)} kept, chosen on the validation images"
    return [
        ("data", config.data),
        ("split", config.split),
        ("images", images + (f"; {thousands(metrics.skipped)} could not be read" if metrics.skipped else "")),
        ("classes", thousands(len(config.labels))),
        ("network", f"{config.model.net}: {thousands(metrics.parameters)} parameters, {thousands(metrics.macs)} MACs an image"),
        ("training", f"{metrics.seconds:.1f} s on {config.device}; {kept}"),
        ("validation accuracy", percent(metrics.val_accuracy)),
        ("test accuracy", percent(metrics.test_accuracy)),
    ]  # fmt: skip


def _by_class(metrics: Metrics) -> Html:
    scores = list(metrics.per_class)
    if not scores:
        return Html()
    said = ""
    if len(scores) > _WORST_FIRST:
        scores.sort(key=lambda score: (score.f1 is None, score.f1))
        said = " The worst come first."
    lead = (
        "Recall is the share of a class's images that were found, with its 95 % interval; its mean is the balanced "
        f"accuracy. Precision is the share of right ones among the answers. A dash is a share of nothing.{said}"
    )
    rows = [_class_row(score) for score in scores]
    rows.append(["mean of the classes", "–", "–", _share(metrics.balanced_accuracy), "–", _share(metrics.macro_f1)])
    header = ["class", "images", "precision", "recall", "interval", "F1"]
    area = "" if metrics.auc is None else f"Area under the ROC curve: {metrics.auc:.4f}" + (
        "." if len(scores) == 2 else ", the mean of one class against the rest."
    )  # fmt: skip
    return section("By class", paragraph(lead), table(rows, header), *([paragraph(area)] if area else []))


def _class_row(score: ClassScore) -> list[str]:
    low, high = wilson(round((score.recall or 0) * score.support), score.support) if score.support else (0.0, 0.0)
    interval = f"{low:.1%} to {high:.1%}" if score.support else "–"
    return [score.label, str(score.support), _share(score.precision), _share(score.recall), interval, _share(score.f1)]


def _confusions(metrics: Metrics, labels: Sequence[str], pictures: Mapping[str, bytes]) -> Html:
    pairs = most_confused(metrics, labels)
    rows = [
        [text(truth), text(answer), str(count), f"{count / support:.1%}"]
        for truth, answer, count, support in pairs[:_PAIRS_SHOWN]
    ]
    listed = [table(rows, ["is", "was called", "images", "of the class"])] if rows else [paragraph("There are none.")]
    more = [paragraph(f"And {len(pairs) - len(rows)} rarer pairs.")] if len(pairs) > len(rows) else []
    return _pictured("Confusions", "confusion.png", "Confusion matrix of the test images", pictures, *listed, *more)


def _confidence(metrics: Metrics, pictures: Mapping[str, bytes]) -> Html:
    if metrics.ece is None or metrics.nll is None or metrics.brier is None:
        return Html()
    scores = [["test", f"{metrics.ece:.2%}", f"{metrics.nll:.4f}", f"{metrics.brier:.4f}"]]
    if metrics.val_ece is not None and metrics.val_nll is not None:
        scores.append(["validation", f"{metrics.val_ece:.2%}", f"{metrics.val_nll:.4f}", "–"])
    if metrics.val_ece_before is not None and metrics.val_nll_before is not None:
        before = f"validation, before the temperature of {metrics.temperature:.3f}"
        scores.append([before, f"{metrics.val_ece_before:.2%}", f"{metrics.val_nll_before:.4f}", "–"])
    lead = (
        "Confidence is the probability of the answer given. Where dots lie on the dashed line, answers are right as often "
        "as they are sure. The calibration error (ECE) is the mean distance from it over bins of equal width."
    )
    if metrics.temperature != 1:
        lead += " The temperature was fitted on the validation images, which therefore flatter it; the test does not."
    bins = [
        [f"{one.low:.1%} to {one.high:.1%}", str(one.count), _share(one.confidence), _share(one.accuracy)]
        for one in metrics.reliability
        if one.count
    ]
    return _pictured(
        "Confidence", "reliability.png", "Share of right answers by confidence", pictures,
        paragraph(lead),
        table(scores, ["images", "ECE", "negative log-likelihood", "Brier score"]),
        table(bins, ["confidence", "images", "mean confidence", "right"]),
    )  # fmt: skip


def _mistakes(metrics: Metrics, pictures: Mapping[str, bytes]) -> Html:
    wrong = metrics.test_accuracy.n - metrics.test_accuracy.correct
    if not metrics.mistakes:
        return Html() if wrong else section("Worst mistakes", paragraph("No test image got a wrong name."))
    shown = len(metrics.mistakes)
    count = "All wrong answers" if shown == wrong else f"The {shown} worst of {thousands(wrong)} wrong answers"
    lead = f"{count}, the most confident first. Look for wrong labels among the images before blaming the network."
    rows = [[text(one.image), text(one.truth), text(one.answer), f"{one.confidence:.1%}"] for one in metrics.mistakes]
    listed = table(rows, ["image", "is", "was called", "confidence"])
    return _pictured(
        "Worst mistakes", "mistakes.png", "The most confident wrong answers", pictures, paragraph(lead), listed
    )


def _pictured(title: str, name: str, description: str, pictures: Mapping[str, bytes], *parts: Html) -> Html:
    shown = [picture(pictures[name], description)] if name in pictures else []
    return section(title, *shown, *parts) if shown or parts else Html()


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    """List the configuration in dotted names; the labels are in the table by class already."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    return [row for name, value in values.items() if name != "labels" for row in _flat(name, value)]


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in _flat(f"{name}.{key}", inner)]
    if isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        return [row for number, inner in enumerate(value, 1) for row in _flat(f"{name}.{number}", inner)]
    written = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return [(name, "–" if value is None or written == "" else written)]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
