"""A chain of three convolutions and a Gemm, ranges for it, and onnx's own evaluator for what is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from quantization import graphs

from edgecnn.parity.decisions import Decisions, judge_decisions
from edgecnn.quantization.qdq import activation_tensors
from edgecnn.quantization.race import Speed
from edgecnn.spec import Tolerance

Array = npt.NDArray[Any]
SIDE, CLASSES = 8, 4


def chain(seed: int = 0) -> onnx.ModelProto:
    """Make `x` (batch, 3, 8, 8) float32 to `y` (batch, 4): layers a, b, c, each with a Relu, and g.

    What goes from a to b and on to c is louder in some channels than in others, by up to 100 times: one scale for all
    weights of a layer would show.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> Array:
        return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)

    loud = np.geomspace(0.1, 10, 6)
    model = inferred(
        graphs.graph(
            [
                graphs.node("Conv", "x a.weight a.bias", "a", pads=[1] * 4),
                graphs.node("Relu", "a", "ar"),
                graphs.node("Conv", "ar b.weight b.bias", "b", pads=[1] * 4),
                graphs.node("Relu", "b", "br"),
                graphs.node("Conv", "br c.weight c.bias", "c", pads=[1] * 4),
                graphs.node("Relu", "c", "cr"),
                graphs.node("GlobalAveragePool", "cr", "mean"),
                graphs.node("Flatten", "mean", "flat"),
                graphs.node("Gemm", "flat g.weight g.bias", "y", transB=1),
            ],
            (3, SIDE, SIDE),
            **{
                "a.weight": weight(6, 3, 3, 3),
                "a.bias": rng.normal(0, 0.1, 6),
                "b.weight": weight(6, 6, 3, 3) * loud.reshape(6, 1, 1, 1),
                "b.bias": rng.normal(0, 0.1, 6),
                "c.weight": weight(6, 6, 3, 3) / loud.reshape(1, 6, 1, 1),
                "c.bias": rng.normal(0, 0.1, 6),
                "g.weight": weight(CLASSES, 6),
                "g.bias": rng.normal(0, 0.1, CLASSES),
            },
        )
    )
    model.graph.node[-1].name = "g"
    return model


def images(count: int = 16, seed: int = 1) -> Array:
    """Draw inputs of `chain`."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Note the shape of every tensor, which is how `read_source` leaves a model."""
    return onnx.shape_inference.infer_shapes(model)


def ranges_of(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, tuple[float, float]]:
    """Take the extremes of every tensor that a quantizer may cover, 0 among them, by running the model."""
    wanted = activation_tensors(model)
    there = {value.name for value in (*model.graph.input, *model.graph.output)}
    seen = {**graphs.run(model, feeds, [name for name in wanted if name not in there]), **feeds}
    return {name: (min(0.0, float(seen[name].min())), max(0.0, float(seen[name].max()))) for name in wanted}


def reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """Evaluate by onnx's own evaluator, which knows QuantizeLinear since opset 19 only; its meaning is the same in 17."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for entry in copy.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, 21)
    copy.ir_version = max(copy.ir_version, 10)
    found: list[Array] = ReferenceEvaluator(copy).run(None, feeds)
    return found


def error(found: Array, truth: Array) -> float:
    """Give the largest difference as a share of the largest magnitude."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def speed(ratio: float, spread: float = 0.01) -> Speed:
    """Make a latency of `ratio` times the reference's."""
    return Speed(
        ratio=ratio, low=ratio - spread, high=ratio + spread, rounds=12, p50_us=100 * ratio, reference_us=100.0
    )


def decided(lost: int, n: int = 2000, look: int = 1) -> Decisions:
    """Judge a candidate that loses so many of `n` answers, of which 1 % may be lost, at this number of looks."""
    truth = np.zeros(n, np.int64)
    candidate = (np.arange(n) < lost).astype(np.int64)
    tolerance = Tolerance(confidence=1 - 0.05 / look**2)
    return judge_decisions(truth, candidate, truth, [str(number) for number in range(n)], ("0", "1"), tolerance)
