"""Whether a quantized model decides as the float one: by labels where there are any, else by the float's own answers."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from edgecnn.errors import QuantizationError
from edgecnn.parity.decisions import Decisions, judge_decisions
from edgecnn.quantization.conversion import labels_of
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.yardstick import answer_tensor, answers
from edgecnn.spec import Tolerance

# A float model below twice chance, or with few classes a tenth of the way from chance to all, does not know these
# classes, or not in this order.
_TIMES_CHANCE, _ABOVE_CHANCE = 2.0, 0.1


@dataclass(frozen=True)
class Evaluation:
    """The images decisions are judged on, the float model's answers, and what is held to be right.

    Without labels the float model's answers are: then every changed answer counts as lost, and accuracy as agreement.
    """

    feeds: FeedSet
    reference: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    labelled: bool
    tolerance: Tolerance

    @classmethod
    def of(cls, model: onnx.ModelProto, feeds: FeedSet, tolerance: Tolerance) -> Evaluation:
        """Let the float model answer.

        Raises:
            QuantizationError: it gives no classes, fewer than the labels, or answers so badly that the labels must mean
                something else.
        """
        scores = answers(model, feeds, answer_tensor(model))
        if scores.shape[1] < 2:
            raise QuantizationError(
                "the model's first output has a single value, so it names no class; give one that does"
            )
        count = scores.shape[1]
        reference = scores.argmax(axis=1)
        truth, labelled = (feeds.labels, True) if feeds.labels is not None else (reference, False)
        if truth.max() >= count:
            raise QuantizationError(
                f"a label is class {truth.max()}, and the model has {count}, counted from 0; give the classes it was trained on"
            )
        right = float((reference == truth).mean())
        if labelled and right < _hardly_better(count) and len(truth) >= 10 * count:
            raise QuantizationError(
                f"the float model answers {right:.1%} of the images as labelled, hardly better than chance: the classes are in "
                "another order, the images are not prepared as it wants (see --mean, --std, --layout, --order), or it has learned nothing"
            )
        classes = labels_of(model) or ()
        if len(classes) != count:
            classes = tuple(str(index) for index in range(count))
        return cls(feeds, reference, truth, classes, labelled, tolerance)

    def judge(self, quantized: onnx.ModelProto, look: int = 1) -> Decisions:
        """Judge a quantized model's answers, paired with the float model's.

        `look` counts how often these images have been looked at to choose: of many looks one passes by luck. So the
        chance of error is divided by the look's square, which keeps that of all looks together below 1.65 times the
        chance of one (Basel's sum; Bonferroni over an open number of looks).

        Raises:
            QuantizationError: an answer is not finite.
        """
        tolerance = self.tolerance
        if look > 1:
            confidence = 1 - (1 - tolerance.confidence) / look**2
            tolerance = msgspec.structs.replace(tolerance, confidence=confidence)
        found = answers(quantized, self.feeds, answer_tensor(quantized)).argmax(axis=1)
        return judge_decisions(self.reference, found, self.truth, self.feeds.names, self.classes, tolerance)


def _hardly_better(count: int) -> float:
    """Give the accuracy up to which a model of `count` classes might as well guess."""
    return min(_TIMES_CHANCE / count, 1 / count + _ABOVE_CHANCE * (1 - 1 / count))
