"""Judging decisions: the float model's answers by onnx's evaluator, accuracies by counting, bounds by scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from quantization import graphs, small
from scipy import stats

from edgecnn.errors import QuantizationError
from edgecnn.parity import Verdict
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.feeds import FeedSet, from_arrays
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.yardstick import MOST_DB, Yardstick, answer_tensor
from edgecnn.spec import Tolerance

Ints = npt.NDArray[np.int64]


def copier(classes: int, values: int | None = None, softmax: bool = False) -> onnx.ModelProto:
    """Make a net of `values` scores that are the input itself, so that its answers are known."""
    width = values or classes
    nodes = [graphs.node("Conv", "x one", "kept"), graphs.node("Flatten", "kept", "s" if softmax else "y")]
    if softmax:
        nodes.append(graphs.node("Softmax", "s", "y", axis=1))
    return small.inferred(graphs.graph(nodes, (width, 1, 1), one=np.eye(width)[:, :, None, None]))


def scored(answers: Ints, classes: int) -> dict[str, npt.NDArray[np.float32]]:
    """Make inputs for which `copier` answers as given."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 0.5, (len(answers), classes))
    scores[np.arange(len(answers)), answers] += 1
    return {"x": scores.astype(np.float32)[:, :, None, None]}


def labelled(classes: int, right: int, wrong: int) -> FeedSet:
    """Make images of which `copier` answers so many rightly and so many wrongly, in all classes alike."""
    labels = np.arange(right + wrong) % classes
    answers = np.where(np.arange(right + wrong) < right, labels, (labels + 1) % classes)
    return from_arrays(scored(answers, classes), labels)


def evaluated(classes: int, feeds: FeedSet, **notes: str) -> Evaluation:
    model = copier(classes)
    helper.set_model_props(model, {key.replace("_", "."): value for key, value in notes.items()})
    return Evaluation.of(model, feeds, Tolerance())


def test_labels_are_the_truth_and_accuracy_is_counted() -> None:
    """The reference is the float model's answers, the truth the labels, and a model like the float one changes nothing."""
    found = evaluated(10, labelled(10, 180, 20))
    assert found.labelled
    assert (found.reference == found.truth).sum() == 180
    decisions = found.judge(copier(10))
    assert (decisions.n, decisions.lost, decisions.gained, decisions.changed) == (200, 0, 0, 0)
    assert decisions.reference_accuracy.value == 0.9
    assert decisions.reference_accuracy.correct == 180


def test_flips_are_paired_and_named() -> None:
    """Against a model that answers one class higher every right answer is lost and the wrong ones may be gained."""
    feeds = labelled(10, 190, 10)
    found = evaluated(10, feeds)
    turned = copier(10)
    weight = np.roll(np.eye(10), 1, axis=0)[:, :, None, None].astype(np.float32)
    turned.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "one"))
    decisions = found.judge(turned)
    answers = (found.reference + 1) % 10
    assert (decisions.lost, decisions.changed) == (190, 200)
    assert decisions.gained == int(((answers == found.truth) & (found.reference != found.truth)).sum())
    assert decisions.verdict is Verdict.FAIL
    first = decisions.flips[0]
    assert (first.image, first.truth, first.reference, first.candidate) == ("0", "0", "0", "1")


def test_without_labels_the_float_models_answers_are_right() -> None:
    """Accuracy is then agreement: the float model has all of it, and each change counts as lost."""
    model, x = copier(4), np.random.default_rng(0).uniform(-1, 1, (40, 4, 1, 1)).astype(np.float32)
    found = Evaluation.of(model, from_arrays({"x": x}), Tolerance())
    assert not found.labelled
    np.testing.assert_array_equal(found.truth, x.reshape(40, 4).argmax(axis=1))
    coarse = dict.fromkeys(("x", "kept", "y"), (-10.0, 10.0))
    decisions = found.judge(quantize(model, coarse, Recipe()))
    levels = np.rint(x.reshape(40, 4) / (20 / 255))
    changed = int((levels.argmax(axis=1) != found.truth).sum())
    assert 0 < changed == decisions.changed == decisions.lost
    assert decisions.gained == 0
    assert decisions.candidate_accuracy.value == pytest.approx(1 - changed / 40)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 100])
def test_classes_in_another_order_are_noticed(classes: int) -> None:
    """A model that is good by its own order of classes is refused where labels count in another, on one line."""
    labels = np.arange(20 * classes) % classes
    with pytest.raises(QuantizationError) as caught:
        evaluated(classes, from_arrays(scored(labels, classes), np.roll(np.arange(classes), 1)[labels]))
    message = str(caught.value)
    assert "the float model answers 0.0% of the images as labelled" in message
    assert "another order" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("classes", "percent", "refused"),
    [(2, 53, True), (2, 57, False), (2, 95, False), (3, 38, True), (3, 45, False), (10, 18, True), (10, 25, False), (100, 1, True), (100, 3, False)],
)  # fmt: skip
def test_a_poor_model_is_told_from_a_guessing_one(classes: int, percent: int, refused: bool) -> None:
    """Hardly better than chance is refused, for few classes as for many; a weak model, or a good one of two classes, is not."""
    feeds = labelled(classes, 10 * percent, 1000 - 10 * percent)
    if refused:
        with pytest.raises(QuantizationError, match="hardly better than chance"):
            evaluated(classes, feeds)
    else:
        assert evaluated(classes, feeds).labelled


def test_few_images_prove_no_wrong_order() -> None:
    """With fewer than ten images a class nothing is concluded from their labels."""
    assert evaluated(10, labelled(10, 0, 99)).labelled
    with pytest.raises(QuantizationError, match="hardly better than chance"):
        evaluated(10, labelled(10, 0, 100))


def test_a_label_beyond_the_models_classes_is_refused() -> None:
    """More classes than the model has cannot be what it was trained on."""
    feeds = from_arrays(scored(np.zeros(30, np.int64), 4), np.full(30, 4))
    with pytest.raises(QuantizationError, match="a label is class 4, and the model has 4, counted from 0"):
        evaluated(4, feeds)


def test_a_model_of_one_value_names_no_class() -> None:
    """A single score has no largest among several."""
    with pytest.raises(QuantizationError, match="names no class"):
        Evaluation.of(copier(1), from_arrays({"x": np.ones((30, 1, 1, 1), np.float32)}), Tolerance())


@pytest.mark.parametrize(
    ("notes", "names"),
    [({}, ("0", "1", "2")), ({"edgecnn_labels": '["ant", "bee", "cat"]'}, ("ant", "bee", "cat")), ({"edgecnn_labels": '["ant"]'}, ("0", "1", "2"))],
)  # fmt: skip
def test_classes_are_called_as_the_model_notes_them(notes: dict[str, str], names: tuple[str, ...]) -> None:
    """Names come from the notes where there are as many as classes, else they are numbers."""
    assert evaluated(3, labelled(3, 30, 0), **notes).classes == names


@pytest.mark.parametrize("look", [1, 2, 7])
def test_every_further_look_asks_for_more_confidence(look: int) -> None:
    """Without a flip the bound is Tango's at one minus the chance of error over the look's square, in closed form."""
    found = evaluated(10, labelled(10, 500, 0))
    decisions = found.judge(copier(10), look)
    chance = 0.05 / look**2
    z = stats.norm.ppf(1 - chance)
    tango, exact = z * z / (500 + z * z), 1 - chance ** (1 / 500)
    assert decisions.drop_high == pytest.approx(max(tango, exact), rel=1e-6)
    assert found.judge(copier(10)).drop_high <= decisions.drop_high


def test_looks_together_stay_within_what_is_said() -> None:
    """However many looks there are, their chances of error sum up to no more than 1.65 times that of one."""
    assert sum(1 / look**2 for look in range(1, 100_000)) < 1.65


def test_answers_that_are_not_finite_are_an_error_and_the_worst_of_errors() -> None:
    """A quantized model that gives NaN cannot be judged, and its error is as bad as can be written down."""
    model, feeds = copier(3), labelled(3, 30, 0)
    broken = copier(3)
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((3, 3, 1, 1), np.nan, np.float32), "one"))
    with pytest.raises(QuantizationError, match="not finite"):
        Evaluation.of(model, feeds, Tolerance()).judge(broken)
    assert Yardstick(model, feeds).sqnr_db(broken) == -MOST_DB
    assert Yardstick(model, feeds).sqnr_db(model) == MOST_DB


def test_the_yardstick_measures_what_numpy_does() -> None:
    """The error in dB is ten times the logarithm of signal over noise, over all answers to at most 128 images."""
    model, x = small.chain(), small.images(200)
    yardstick = Yardstick(model, from_arrays({"x": x}))
    assert yardstick.feeds.count == 128
    used = np.concatenate([batch["x"] for batch in yardstick.feeds.batches()])
    built = quantize(model, small.ranges_of(model, {"x": x}), Recipe())
    truth, found = (small.reference(one, {"x": used})[0].astype(np.float64) for one in (model, built))
    wanted = 10 * np.log10((truth**2).sum() / ((truth - found) ** 2).sum())
    assert yardstick.sqnr_db(built) == pytest.approx(wanted, abs=0.01)
    assert yardstick.bytes == len(model.SerializeToString())
    assert {name: array.shape for name, array in yardstick.one().items()} == {"x": (1, 3, 8, 8)}


def test_probabilities_are_judged_by_what_goes_into_the_softmax(tmp_path: Any) -> None:
    """Float, int8 and float16 models are compared before their softmax, behind which errors are out of sight."""
    from edgecnn.quantization.half import to_half

    model, feeds = copier(3, softmax=True), labelled(3, 30, 0)
    assert answer_tensor(model) == "s"
    assert answer_tensor(copier(3)) == "y"
    half = to_half(model)
    yardstick = Yardstick(model, feeds)
    np.testing.assert_array_equal(yardstick.truth, next(feeds.batches(32))["x"].reshape(30, 3))
    assert 60 < yardstick.sqnr_db(half) < 90  # float16 has 11 bits: 66 dB and more
    built = quantize(model, small.ranges_of(model, next(feeds.batches(32))), Recipe())
    assert 30 < yardstick.sqnr_db(built) < 60  # 8 bits


def test_a_model_without_a_float_output_cannot_be_judged() -> None:
    """Class numbers alone leave nothing to compare."""
    model = copier(3)
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["class"], name="class"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("class", onnx.TensorProto.INT64, None))
    with pytest.raises(QuantizationError, match="no output of the model is float"):
        answer_tensor(model)
