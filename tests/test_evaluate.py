"""evaluate_run on a network whose logits are the pixels: every number is known, and the test is looked at once."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score
from torch import nn

from edgecnn.data import Dataset, LabelledImages
from edgecnn.data.dataset import Item
from edgecnn.errors import TrainingError
from edgecnn.metrics import calibration, softmax
from edgecnn.nets import Cost, Deployed
from edgecnn.runs import Metrics, RunConfig, read_run
from edgecnn.spec import Preprocess
from edgecnn.training import evaluate
from edgecnn.training.calibration import fit_temperature, fold_temperature
from edgecnn.training.evaluate import evaluate_run, worst_mistakes
from edgecnn.training.loop import Epoch

SCALE = 1 / 16
COST = Cost(parameters=12, macs=34)
HISTORY = tuple(
    Epoch(number=n, loss=2 / n, lr=0.1 / n, val_loss=1 / n, val_accuracy=n / 4, seconds=1.0, best=n < 3)
    for n in (1, 2, 3)
)


class Pixels(nn.Module):
    """A network whose logits are its normalised pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(classes, classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(classes))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def images(n: int, classes: int, seed: int, names: Sequence[str] = ()) -> LabelledImages:
    """Make images of one row, a pixel a class, the brightest often that of the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    pixels = rng.integers(0, 90, (n, 1, classes, 1))
    pixels[np.arange(n), 0, labels, 0] += 60
    items = tuple(Item(names[i] if names else f"image-{i}", int(labels[i]), Path(f"{i}.png")) for i in range(n))
    return LabelledImages(pixels.astype(np.uint8), labels, items)


def dataset(classes: int = 3, labels: Sequence[str] = (), names: Sequence[str] = (), n: int = 200) -> Dataset:
    """Make three splits of such images."""
    return Dataset(
        source="rows",
        labels=tuple(labels) or tuple(f"class {index}" for index in range(classes)),
        preprocess=Preprocess(height=1, width=classes, channels=1, scale=SCALE),
        train=images(10, classes, 0),
        val=images(n, classes, 1),
        test=images(n, classes, 2, names),
        split="made up",
        skipped=("broken.png: truncated",),
        warnings=("3 images are twins",),
    )


def logits_of(split: LabelledImages) -> npt.NDArray[np.float64]:
    return split.take(np.arange(len(split)))[:, 0, :, 0].astype(np.float64) * SCALE


def config_of(data: Dataset) -> RunConfig:
    """Make a configuration as training would, of whatever a network's configuration looks like."""
    network = get_type_hints(RunConfig)["model"]
    fields = {field.name for field in msgspec.structs.fields(network)}
    made = {
        "edgecnn": "0", "data": data.source, "data_options": {}, "split": data.split, "test_sha256": "0" * 64,
        "labels": data.labels, "preprocess": msgspec.to_builtins(data.preprocess), "recipe": {"epochs": 3, "seed": 0},
        "device": "cpu", "host": {"cpu": "x <y>"},
        "model": {"net": "mine", "function": "package:net"} if "function" in fields else {},
    }  # fmt: skip
    return msgspec.convert(made, RunConfig)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Metrics, Path]:
    """Evaluate three classes once: the data, what was found, and the folder it was written into. Read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = dataset(names=[f"photos/{index}.jpg" for index in range(200)])
    return data, evaluate_run(Pixels(3), data, HISTORY, 1.5, COST, folder, config=config_of(data)), folder


def test_every_score_is_that_of_the_pixels(evaluated: tuple[Dataset, Metrics, Path]) -> None:
    """Scores of test and validation are scikit-learn's and the module's own on the logits that the pixels are."""
    data, found, _ = evaluated
    truth, logits = data.test.labels, logits_of(data.test)
    answers, probabilities = logits.argmax(1), softmax(logits)
    assert 0.6 < found.test_accuracy.value < 1
    assert found.test_accuracy.correct == (answers == truth).sum()
    assert found.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro"))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, answers))
    assert found.auc == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    assert found.nll == pytest.approx(log_loss(truth, probabilities), rel=1e-6)
    expected = calibration(logits, truth)
    assert (found.ece, found.brier) == pytest.approx((expected.ece, expected.brier), rel=1e-5)
    assert found.ece_by_chance == pytest.approx(expected.ece_by_chance, rel=1e-5)
    assert [one.count for one in found.reliability] == [one.count for one in expected.bins]
    assert [score.support for score in found.per_class] == np.bincount(truth).tolist()
    assert np.diag(found.confusion).sum() == found.test_accuracy.correct
    assert found.val_nll == pytest.approx(log_loss(data.val.labels, softmax(logits_of(data.val))), rel=1e-6)
    assert found.val_accuracy.correct == (logits_of(data.val).argmax(1) == data.val.labels).sum()
    assert (found.temperature, found.val_ece_before, found.val_nll_before) == (1.0, None, None)
    assert (found.best_epoch, found.parameters, found.macs, found.seconds) == (2, 12, 34, 1.5)
    assert (found.warnings, found.skipped) == (data.warnings, 1)


@pytest.mark.usefixtures("no_pictures")
def test_two_classes_have_the_plain_auc(tmp_path: Path) -> None:
    """Of two classes the area is that of the second class's probability."""
    data = dataset(2)
    found = evaluate_run(Pixels(2), data, HISTORY, 1.0, COST, tmp_path)
    expected = roc_auc_score(data.test.labels, softmax(logits_of(data.test))[:, 1])
    assert found.auc == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("no_pictures")
def test_a_folded_temperature_shows_validation_before_and_after(
    evaluated: tuple[Dataset, Metrics, Path], tmp_path: Path
) -> None:
    """After folding the scores are of the scaled logits, and the validation's without it are kept beside them."""
    (data, plain, _), net = evaluated, Pixels(3)
    temperature = fit_temperature(logits_of(data.val), data.val.labels)
    fold_temperature(net, temperature, data.preprocess)
    found = evaluate_run(net, data, HISTORY, 1.0, COST, tmp_path, temperature=temperature)
    assert found.temperature == temperature
    assert found.val_nll_before == pytest.approx(plain.val_nll, rel=1e-5)
    assert found.val_ece_before == pytest.approx(plain.val_ece, rel=1e-4)
    assert found.val_nll is not None
    assert plain.val_nll is not None
    assert found.val_nll < plain.val_nll
    assert found.nll == pytest.approx(log_loss(data.test.labels, softmax(logits_of(data.test) / temperature)), rel=1e-5)
    assert found.confusion == plain.confusion


def test_the_worst_mistakes_come_first() -> None:
    """The wrong answers come in the order of their confidence, at most as many as asked for, and right ones never."""
    logits = np.array([[5.0, 0], [0, 1.0], [0, 9.0], [3.0, 0], [9.0, 0], [0, 9.0]])
    labels = np.array([1, 0, 0, 1, 0, 1])
    assert worst_mistakes(logits, labels).tolist() == [2, 0, 3, 1]
    assert worst_mistakes(logits, labels, 2).tolist() == [2, 0]
    assert worst_mistakes(logits[4:], labels[4:]).tolist() == []


def test_mistakes_are_named(evaluated: tuple[Dataset, Metrics, Path]) -> None:
    """Of every mistake kept the file, the truth, the answer and the confidence are those of its image."""
    data, found, _ = evaluated
    wrong = found.test_accuracy.n - found.test_accuracy.correct
    assert len(found.mistakes) == min(24, wrong) > 3
    probabilities = softmax(logits_of(data.test))
    for mistake in found.mistakes:
        index = int(mistake.image.removeprefix("photos/").removesuffix(".jpg"))
        assert mistake.truth == data.labels[data.test.labels[index]]
        assert mistake.answer == data.labels[probabilities[index].argmax()] != mistake.truth
        assert mistake.confidence == pytest.approx(probabilities[index].max(), rel=1e-5)
    order = [mistake.confidence for mistake in found.mistakes]
    assert order == sorted(order, reverse=True)


def test_each_split_is_passed_through_the_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images are asked for their logits once, and the pixels of the mistakes alone are taken again."""
    data, seen, taken = dataset(), [], []
    predict, take = evaluate.predict_logits, LabelledImages.take

    def counted(model: Deployed, split: LabelledImages) -> npt.NDArray[np.float32]:
        seen.append(split)
        logits = predict(model, split)
        taken.clear()
        return logits

    def noted(self: LabelledImages, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        taken.append((self, len(indices)))
        return take(self, indices)

    monkeypatch.setattr(evaluate, "predict_logits", counted)
    monkeypatch.setattr(LabelledImages, "take", noted)
    found = evaluate_run(Pixels(3), data, HISTORY, 1.0, COST, tmp_path)
    assert len(seen) == 2
    assert seen[0] is data.val
    assert seen[1] is data.test
    assert taken == [(data.test, len(found.mistakes))]


def test_what_is_written_can_be_read_and_seen(evaluated: tuple[Dataset, Metrics, Path]) -> None:
    """The metrics read back as they were returned, the pictures are PNGs, and the report comes with a configuration."""
    _, found, folder = evaluated
    assert msgspec.json.decode((folder / "metrics.json").read_bytes(), type=Metrics) == found
    for name in ("curves", "confusion", "reliability", "mistakes"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 150
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert f"{found.test_accuracy.value:.2%}" in page


def test_pictures_of_an_earlier_run_do_not_stay(evaluated: tuple[Dataset, Metrics, Path], tmp_path: Path) -> None:
    """A run without mistakes and without a configuration leaves no mistakes and no report of an earlier one behind."""
    data, _, folder = evaluated
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    bright = np.zeros((3, 1, 3, 1), dtype=np.uint8)
    bright[np.arange(3), 0, np.arange(3), 0] = 255
    right = LabelledImages(bright, np.arange(3), data.test.items[:3])
    perfect = Dataset(
        source="rows", labels=data.labels, preprocess=data.preprocess, train=right, val=right, test=right, split="made up"
    )  # fmt: skip
    found = evaluate_run(Pixels(3), perfect, HISTORY, 1.0, COST, tmp_path)
    assert found.test_accuracy.correct == 3
    assert not found.mistakes
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion.png", "curves.png", "metrics.json", "reliability.png"
    ]  # fmt: skip


def test_names_that_no_encoding_knows_are_escaped(tmp_path: Path) -> None:
    """A file name of broken bytes, with markup, a formula or a line break does not stop metrics, pictures or report."""
    names = [f"{index}\udcff$x_{{$<img src=x>\n&.png" for index in range(200)]
    data = dataset(labels=("<b>", "a$b$c", "x&\"y'"), names=names)
    found = evaluate_run(Pixels(3), data, HISTORY, 1.0, COST, tmp_path, config=config_of(data))
    assert "\\udcff$x_{$<img" in found.mistakes[0].image
    page = (tmp_path / "report.html").read_bytes().decode()
    assert "<img src=x>" not in page
    assert "<b>" not in page
    assert "&lt;img src=x&gt;" in page


@pytest.mark.parametrize("classes", [2, 43, 200])
def test_any_number_of_classes_is_drawn(classes: int, tmp_path: Path) -> None:
    """With two classes, dozens or hundreds of them the confusion matrix is drawn, and not as large as a wall."""
    data = dataset(classes, n=600)
    evaluate_run(Pixels(classes), data, HISTORY, 1.0, COST, tmp_path, config=config_of(data))
    with Image.open(io.BytesIO((tmp_path / "confusion.png").read_bytes())) as picture:
        assert 300 < min(picture.size) <= max(picture.size) <= 2100


def test_a_history_with_other_fields_is_drawn(tmp_path: Path) -> None:
    """An epoch that lacks a learning rate or has fields unknown here is kept and drawn all the same."""

    class Other(msgspec.Struct):
        number: int
        loss: float
        val_loss: float
        val_accuracy: float
        best: bool
        images_per_second: float = 5.0

    history = [Other(1, 2.0, 2.0, 0.5, True), Other(2, 1.0, 1.0, 0.6, False)]
    found = evaluate_run(Pixels(3), dataset(), history, 1.0, COST, tmp_path)  # type: ignore[arg-type]  # on purpose
    assert found.best_epoch == 1
    assert found.history[1]["images_per_second"] == 5.0


def test_a_logit_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    """A network that gives NaN on the test images ends in one line, and the folder does not look finished."""
    net = Pixels(3)
    with torch.no_grad():
        net.head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="not a finite number"):
        evaluate_run(net, dataset(), HISTORY, 1.0, COST, tmp_path)
    assert not list(tmp_path.iterdir())


def test_metrics_of_before_these_scores_still_read(run_folder: Path, tmp_path: Path) -> None:
    """A metrics file with the first version's fields alone reads, and what it lacks is None, empty or 1."""
    stored = json.loads((run_folder / "metrics.json").read_bytes())
    first = ("test_accuracy", "val_accuracy", "best_epoch", "parameters", "macs", "seconds", "images", "confusion", "history")  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({name: stored[name] for name in first}))
    (tmp_path / "config.json").write_bytes((run_folder / "config.json").read_bytes())
    _, found = read_run(tmp_path)
    assert (found.per_class, found.reliability, found.mistakes, found.warnings) == ((), (), (), ())
    assert (found.ece, found.auc, found.macro_f1, found.temperature, found.skipped) == (None, None, None, 1.0, 0)


def test_training_writes_the_report(run_folder: Path) -> None:
    """A run of `train` leaves the report and the pictures in its folder."""
    names = {path.name for path in run_folder.iterdir()}
    assert {"report.html", "curves.png", "confusion.png", "reliability.png"} <= names
