"""What int8 costs layer by layer: each one quantized alone, and each one alone left in float.

The two differ. Quantized alone a layer rounds its weights, what it reads and what it writes. Left in float among
quantized ones it saves only its weights from rounding: its neighbours go on rounding the tensors between them. So
the second says what leaving it in float would gain, and the first what hurts. Additions, concatenations and
poolings round too, and are left in float one by one as well.

A node is worth keeping in float if without it the error of the answers, as power, falls by a fifth (1 dB) and by twice an
even share among all nodes measured, or by three quarters where there are very few. Where one such node lies on the way
to another that takes nearly as much of the error with it, and both together would take more than all of it, it is one
error, and only the later node is named: ONNX Runtime's quantizer leaves some nodes unrounded that read an unrounded tensor.
A layer that makes that much error alone, but whose neighbours make it anyway, is not worth it: equalization, or a group of
layers in float, may help there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from edgecnn.quantization.cache import observe_cached
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.graph import layers_of, makers, weights_of
from edgecnn.quantization.observe import Observed
from edgecnn.quantization.qdq import activation_tensors, quantize, with_activations
from edgecnn.quantization.ranges import Method, Range, choose_range
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.saturation import saturation
from edgecnn.quantization.values import Channels, Values, input_channels_of, values_of_activation, values_of_weights
from edgecnn.quantization.yardstick import Yardstick
from edgecnn.spec import Frozen

LEAST_SHARE, MOST_SHARE = 0.2, 0.75
LOUD = 8.0  # times the other channels: three of their eight bits
_CLIPPED = 0.001
_CREST = 12.0
_USED = 0.5
_NEARLY = 0.8
_COMPUTING = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")


class NodeSensitivity(Frozen, frozen=True):
    """One node: the SQNR of the model's answers, in dB, with all but it in int8 (`left_out_db`).

    An SQNR is infinite where there is no error. `gain_db` is what leaving the node in float gains over all in int8.
    `input` is the first of several; `output` is behind the node's Relu or Clip.
    """

    name: str
    node: str
    op: str
    left_out_db: float
    gain_db: float
    input: Values
    output: Values


class LayerSensitivity(NodeSensitivity, frozen=True):
    """One layer with weights: also the SQNR with it `alone` in int8, poolings and additions in float too.

    The channels of `weights` are the output's; `input_channels` are those the weights multiply, relative to the largest
    weight of each output channel. `saturated` is the share of 16-bit sums that saturate on x86 without VNNI at full
    range, None for a layer that has none.
    """

    alone_db: float
    weights: Values
    input_channels: Channels | None = None
    saturated: float | None = None


class Advice(Frozen, frozen=True):
    """A node that makes a large `share` of the error's power, what leaving it in float gains, and why."""

    name: str
    node: str
    op: str
    share: float
    gain_db: float
    why: str


class Sensitivity(Frozen, frozen=True):
    """All layers and other nodes in graph order, which to `keep` in float, and which layers are `hurt` without that helping.

    `all_db` is the SQNR with everything in int8. `images` were calibrated on, `judged` of them gave the SQNRs.
    """

    method: Method
    recipe: Recipe
    images: int
    judged: int
    all_db: float
    layers: tuple[LayerSensitivity, ...]
    others: tuple[NodeSensitivity, ...]
    keep: tuple[Advice, ...]
    hurt: tuple[Advice, ...]


def sensitivity(
    model: onnx.ModelProto,
    calibration: FeedSet,
    recipe: Recipe,
    method: Method = "min-max",
    say: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Measure every weighted layer of a prepared float model; takes two quantized models a layer.

    Raises:
        QuantizationError: the model cannot be quantized.
        UsageError: the method is unknown.
    """
    subject = _Subject.of(model, calibration, recipe, method)
    saturated = subject.saturated(calibration)
    nodes = {node.name: node for node in model.graph.node}
    layers = layers_of(model)
    found = []
    for number, layer in enumerate(layers, 1):
        say(f"sensitivity: layer {number} of {len(layers)}, {layer.name}")
        node = nodes[layer.node]
        weights = numpy_helper.to_array(weights_of(model)[layer.weight])
        found.append(
            LayerSensitivity(
                **subject.left_out(node, layer.name),
                alone_db=subject.alone_db(node),
                weights=values_of_weights(layer.weight, weights, node),
                input_channels=input_channels_of(weights, node),
                saturated=saturated.get(layer.node),
            )
        )
    others = [NodeSensitivity(**subject.left_out(node, node.name)) for node in subject.others()]
    keep, hurt = advise(found, others, subject.all_db, model)
    return Sensitivity(
        method=method, recipe=recipe, images=calibration.count, judged=subject.yardstick.feeds.count,
        all_db=subject.all_db, layers=tuple(found), others=tuple(others), keep=keep, hurt=hurt,
    )  # fmt: skip


@dataclass(frozen=True)
class _Subject:
    """A float model with all that is needed to quantize parts of it; `whole` is all of it in int8."""

    model: onnx.ModelProto
    recipe: Recipe
    observed: Mapping[str, Observed]
    ranges: Mapping[str, Range]
    yardstick: Yardstick
    whole: onnx.ModelProto
    all_db: float

    @classmethod
    def of(cls, model: onnx.ModelProto, calibration: FeedSet, recipe: Recipe, method: Method) -> _Subject:
        observed = observe_cached(model, calibration, activation_tensors(model))
        ranges = {name: choose_range(one, method, recipe.activations == "int8") for name, one in observed.items()}
        whole, yardstick = quantize(model, ranges, recipe), Yardstick(model, calibration)
        return cls(model, recipe, observed, ranges, yardstick, whole, yardstick.sqnr_db(whole))

    def left_out(self, node: onnx.NodeProto, name: str) -> dict[str, Any]:
        """Measure all but one node, and give the fields of `NodeSensitivity`."""
        alone = [layer.node for layer in layers_of(self.model)] == [node.name]
        found = math.inf if alone else self._sqnr_db([node.name])  # nothing is rounded without the only layer
        clips = covered(self.whole, self.ranges)
        places = (node.input[0], self._fused(node)[-1].output[0])
        seen = [values_of_activation(one, self.observed[one], clips.get(one)) for one in places]
        gain = found - self.all_db if found != self.all_db else 0.0
        return {
            "name": name, "node": node.name, "op": node.op_type, "left_out_db": found, "gain_db": gain,
            "input": seen[0], "output": seen[1],
        }  # fmt: skip

    def alone_db(self, node: onnx.NodeProto) -> float:
        """Quantize one layer and what is fused to it; poolings and additions stay in float too."""
        own = {one.name for one in self._fused(node)}
        return self._sqnr_db([one.name for one in self.model.graph.node if one.name not in own])

    def others(self) -> list[onnx.NodeProto]:
        """List the nodes without weights that compute on rounded tensors."""
        made, layers = makers(self.whole), {layer.node for layer in layers_of(self.model)}
        rounded = {
            node.name
            for node in self.whole.graph.node
            if any(made[name].op_type == "DequantizeLinear" for name in node.input if name in made)
        }
        return [
            node
            for node in self.model.graph.node
            if node.op_type in _COMPUTING and node.name in rounded and node.name not in layers
        ]

    def saturated(self, calibration: FeedSet) -> dict[str, float]:
        """Give by node the share of 16-bit sums that saturate at full range; none where activations are not uint8."""
        if self.recipe.activations != "uint8":
            return {}
        recipe = msgspec.structs.replace(self.recipe, reduced_range=False)
        full = quantize(self.model, self.ranges, recipe)
        return {one.node: one.fraction for one in saturation(full, calibration) if one.pairs}

    def _sqnr_db(self, floats: Sequence[str]) -> float:
        return self.yardstick.sqnr_db(quantize(self.model, self.ranges, self.recipe, floats))

    def _fused(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Give a node and the Relu or Clip that its quantizer takes the place of."""
        names = with_activations(self.model, [node.name])
        return [next(one for one in self.model.graph.node if one.name == name) for name in names]


def covered(whole: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Give what the quantizers of a QDQ model cover, by the float model's tensors: mostly the ranges asked for.

    But what only moves values, and an AveragePool, has its input's range. A model's outputs have another name before
    their quantizer.
    """
    constants, found = weights_of(whole), {}
    for node in whole.graph.node:
        name = node.input[0].removesuffix("_QuantizeInput") if node.op_type == "QuantizeLinear" else ""
        if name not in ranges:
            continue
        scale, zero = (numpy_helper.to_array(constants[one]) for one in node.input[1:3])
        levels, step = np.iinfo(zero.dtype), float(scale.ravel()[0])
        low, high = (step * (level - int(zero.ravel()[0])) for level in (levels.min, levels.max))
        asked = ranges[name]
        # The zero point is a whole number, which moves both ends by up to half a step.
        same = max(abs(low - asked[0]), abs(high - asked[1])) <= 1.5 * step
        found[name] = asked if same else (low, high)
    return found


def advise(
    layers: Sequence[LayerSensitivity], others: Sequence[NodeSensitivity], all_db: float, model: onnx.ModelProto
) -> tuple[tuple[Advice, ...], tuple[Advice, ...]]:
    """Name the nodes worth keeping in float, and the layers that are hurt though that would not help, the worst first."""
    least = threshold(len(layers) + len(others))
    everybody = [*layers, *others] if len(layers) > 1 else []  # without its only layer there is no int8 model
    shares = {one.node: 1 - _noise(one.left_out_db, all_db) for one in everybody}
    found = [one for one in everybody if shares[one.node] >= least]
    keep = [one for one in found if not _explained(one, found, shares, model)]
    named = {one.node for one in found}
    hurt = [one for one in layers if one.node not in named and _noise(one.alone_db, all_db) >= least]
    kept = [_advice(one, shares[one.node], hurt=False) for one in keep]
    harmed = [_advice(one, min(1.0, _noise(one.alone_db, all_db)), hurt=True) for one in hurt]
    return tuple(sorted(kept, key=_by_share)), tuple(sorted(harmed, key=_by_share))


def _explained(
    one: NodeSensitivity, found: Sequence[NodeSensitivity], shares: Mapping[str, float], model: onnx.ModelProto
) -> bool:
    """Say whether a later node takes the same error with it."""
    after, own = _downstream(model, one.node), shares[one.node]
    same = [other for other in found if other.node in after and own + shares[other.node] > 1]
    return any(shares[other.node] >= _NEARLY * own for other in same)


def _downstream(model: onnx.ModelProto, name: str) -> set[str]:
    """Name the nodes that depend on one."""
    found, reached = set(), set[str]()
    for node in model.graph.node:
        if node.name == name or reached & set(node.input):
            reached |= set(node.output)
            found.add(node.name)
    return found - {name}


def threshold(nodes: int) -> float:
    """Give the share of the error's power from which one of so many nodes is worth naming."""
    return min(MOST_SHARE, max(LEAST_SHARE, 2 / nodes))


def _noise(sqnr_db: float, all_db: float) -> float:
    """Give the error's power relative to that with all in int8: 1 where the two are equal, infinite ones too."""
    return 1.0 if sqnr_db == all_db else 10 ** ((all_db - sqnr_db) / 10)


def _by_share(one: Advice) -> float:
    return -one.share


def _advice(one: NodeSensitivity, share: float, hurt: bool) -> Advice:
    causes = _causes(one, hurt)
    why = causes[0] if causes else "nothing in its ranges stands out"
    return Advice(name=one.name, node=one.node, op=one.op, share=share, gain_db=one.gain_db, why=why)


def _causes(one: NodeSensitivity, hurt: bool) -> list[str]:
    """List what in a node's values makes an 8-bit step too coarse: the loudest channel first, then what is less exact.

    A loud channel of the output is no cause of what leaving the node in float gains, for its readers round it anyway.
    """
    weights = one if isinstance(one, LayerSensitivity) else None
    places = [
        (
            weights.input_channels if weights is not None else None,
            "its weights for input channel {} are {:.0f} times those for the others",
        ),
        (one.input.channels, "channel {} of its input is {:.0f} times the others"),
        (one.output.channels if hurt else None, "channel {} of its output is {:.0f} times the others"),
    ]
    loud = [(channels, text) for channels, text in places if channels is not None and channels.loudness >= LOUD]
    loud.sort(key=lambda pair: -pair[0].loudness)
    causes = [text.format(channels.loudest, channels.loudness) for channels, text in loud]
    for values, name in ((one.input, "input"), (one.output, "output")):
        if values.used is not None and values.used <= _USED:
            causes.append(f"its {name} takes {values.used:.0%} of the range in which it is rounded")
        if values.clipped >= _CLIPPED:
            causes.append(f"{values.clipped:.1%} of its {name} is clipped")
    if weights is not None and weights.weights.crest >= _CREST:
        causes.append(f"its largest weight is {weights.weights.crest:.0f} times their root mean square")
    return causes
