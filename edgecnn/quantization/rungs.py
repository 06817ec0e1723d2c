"""The remedies of the ladder, each from the best attempt so far to a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import onnx

from edgecnn.quantization.cache import observe_cached
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.observe import Observed
from edgecnn.quantization.qdq import activation_tensors, quantize
from edgecnn.quantization.ranges import METHODS, Method, choose_range
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.slim import file_size
from edgecnn.quantization.weight_only import shipped_size, stored_small, weight_only
from edgecnn.quantization.yardstick import Yardstick, answer_tensor

Ranges = Mapping[str, tuple[float, float]]
IN_FLOAT = " in float"  # ends the names of the rungs of `float_layers`


@dataclass(frozen=True)
class Attempt:
    """A float model, perhaps changed by a remedy, with the ranges and the placement to quantize it with.

    `stored` are the layers in float whose weights are int8 on disk.
    """

    model: onnx.ModelProto
    ranges: Ranges
    floats: tuple[str, ...] = ()
    method: Method = "min-max"
    stored: tuple[str, ...] = ()

    def build(self, recipe: Recipe) -> onnx.ModelProto:
        """Quantize."""
        return weight_only(quantize(self.model, self.ranges, recipe, self.floats), self.stored)


@dataclass(frozen=True)
class Workshop:
    """What the remedies work with: the calibration images, the number types, and the measure of error."""

    calibration: FeedSet
    recipe: Recipe
    yardstick: Yardstick
    train: FeedSet | None = None
    qat_epochs: int = 2

    def ranges(self, model: onnx.ModelProto, method: Method) -> dict[str, tuple[float, float]]:
        """Observe a model, or remember it, and choose its ranges."""
        symmetric = self.recipe.activations == "int8"
        return {name: choose_range(one, method, symmetric) for name, one in self.observed(model).items()}

    def observed(self, model: onnx.ModelProto) -> dict[str, Observed]:
        """Observe every tensor that a quantizer may cover."""
        return observe_cached(model, self.calibration, activation_tensors(model))


class Remedy(NamedTuple):
    """A rung's name and how to make its attempts; None where the remedy does not apply, with the reason."""

    name: str
    make: Callable[[Workshop, Attempt], Attempt | str]


def remedies() -> list[Remedy]:
    """List the rungs above min-max, in the order in which they are tried.

    Biases come after equalization, as in Nagel et al. 2019: what makes up for clipped channels would be wrong once they
    are clipped no more.
    """
    ranges = [Remedy(method, _by_method(method)) for method in METHODS if method != "min-max"]
    return [*ranges, Remedy("equalization", _equalization), Remedy("bias correction", _bias_correction)]


def _by_method(method: Method) -> Callable[[Workshop, Attempt], Attempt | str]:
    def make(workshop: Workshop, best: Attempt) -> Attempt:
        return replace(best, ranges=workshop.ranges(best.model, method), method=method)

    return make


def _bias_correction(workshop: Workshop, best: Attempt) -> Attempt | str:
    from edgecnn.quantization.correction import correct_bias

    def build(model: onnx.ModelProto) -> onnx.ModelProto:
        return replace(best, model=model).build(workshop.recipe)

    corrected = correct_bias(best.model, build, workshop.calibration)
    return "no answer is the better for it" if corrected is best.model else replace(best, model=corrected)


def _equalization(workshop: Workshop, best: Attempt) -> Attempt | str:
    """Equalize, and choose the ranges anew: those that clipped the loudest channels best may clip all of them now."""
    from edgecnn.quantization.equalization import equalize, tensors_between

    wanted = dict.fromkeys([*activation_tensors(best.model), *tensors_between(best.model)])
    seen = observe_cached(best.model, workshop.calibration, [*wanted])
    between = {
        name: (seen[name].channel_low, seen[name].channel_high)
        for name in tensors_between(best.model)
        if name in seen and seen[name].channel_low is not None
    }
    done = equalize(best.model, activations=between)  # type: ignore[arg-type]  # those that are None were left out
    if not done.pairs:
        return "no two layers can be equalized: none follows another through ReLU or pooling alone"
    tried = [
        replace(best, model=done.model, ranges=workshop.ranges(done.model, method), method=method) for method in METHODS
    ]
    errors = [workshop.yardstick.sqnr_db(one.build(workshop.recipe)) for one in tried]
    return tried[max(range(len(errors)), key=errors.__getitem__)]


def float_layers(workshop: Workshop, best: Attempt) -> Iterator[tuple[str, Attempt]]:
    """Leave one more layer in float at a time, the one whose rounding costs most, measured anew with those before it.

    Ends with half of the layers in float, rounded down: what is left then is hardly an int8 model.
    """
    layers = [layer.node for layer in layers_of(best.model)]
    names = {layer.node: layer.name for layer in layers_of(best.model)}
    floats = best.floats
    while len(floats) < len(layers) // 2:
        candidates = [replace(best, floats=tuple(sorted({*floats, node}))) for node in layers if node not in floats]
        errors = [workshop.yardstick.sqnr_db(one.build(workshop.recipe)) for one in candidates]
        chosen = candidates[max(range(len(errors)), key=errors.__getitem__)]
        added = (set(chosen.floats) - set(floats)).pop()
        floats = chosen.floats
        yield f"{names[added]}{IN_FLOAT}", chosen


def small_weights(workshop: Workshop, best: Attempt) -> Attempt | None:
    """Store the weights of layers in float as int8; None where that saves too little to look at the images again."""
    built = best.build(workshop.recipe)
    nodes = stored_small(built, workshop.yardstick)
    if shipped_size(built, nodes) == file_size(built):
        return None
    return replace(best, stored=nodes)


def quantization_aware(workshop: Workshop, best: Attempt, say: Callable[[str], None]) -> Attempt | str:
    """Train the float weights under rounding, from the attempt's own graph, ranges and placement."""
    if workshop.train is None:
        return "no training images were given"
    try:
        from edgecnn.quantization.finetune import finetune
    except ModuleNotFoundError as error:
        return f"it needs {error.name}, which is not installed: pip install 'edgecnn[train]'"
    from edgecnn.errors import QuantizationError

    try:
        model, ranges = finetune(
            best.model,
            best.ranges,
            workshop.recipe,
            best.floats,
            workshop.train,
            output=answer_tensor(best.model),
            epochs=workshop.qat_epochs,
            on_epoch=lambda epoch: say(f"QAT: epoch {epoch.number} of {epoch.epochs}, loss {epoch.loss:.4f}"),
        )
    except QuantizationError as error:
        return str(error)
    return replace(best, model=model, ranges=ranges)
