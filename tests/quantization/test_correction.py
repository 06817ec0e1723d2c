"""Bias correction: planted shifts are found and removed, layer after layer, and nothing is kept that does not help."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from quantization.graphs import Feeds, arrays, graph, node, quantized, run
from quantization.hard import CONVOLUTIONS, easy_net, images

from edgecnn.errors import QuantizationError
from edgecnn.metrics import distance
from edgecnn.quantization.correction import correct_bias

Array = npt.NDArray[Any]
STEP = 0.25


def with_weights(model: onnx.ModelProto, changed: dict[str, Array]) -> onnx.ModelProto:
    """Copy a model with other values for some initializers."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return copy


def floored(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize with a planted fault: every weight is rounded down to a multiple of STEP."""
    weights = {name: array for name, array in arrays(model).items() if name.startswith("w") and "bias" not in name}
    return with_weights(model, {name: np.floor(array / STEP) * STEP for name, array in weights.items()})


def coarse(model: onnx.ModelProto, levels: int) -> onnx.ModelProto:
    """Round each output channel's weights to `levels` steps either side of zero."""
    changed = {}
    for name, array in arrays(model).items():
        if name.endswith("weight"):
            step = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True) / levels
            changed[name] = np.rint(array / step) * step
    return with_weights(model, changed)


RNG = np.random.default_rng(0)
LAYERS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...], str]] = {
    "Conv": ([node("Conv", "x w b", "y")], {"w": RNG.normal(size=(5, 3, 1, 1)), "b": np.ones(5)}, (3, 4, 4), "nchw,oc->o"),
    "Conv without bias": ([node("Conv", "x w", "y")], {"w": RNG.normal(size=(5, 3, 1, 1))}, (3, 4, 4), "nchw,oc->o"),
    "Conv in one dimension": ([node("Conv", "x w", "y")], {"w": RNG.normal(size=(5, 3, 1))}, (3, 4), "nch,oc->o"),
    "ConvTranspose": ([node("ConvTranspose", "x w", "y")], {"w": RNG.normal(size=(3, 5, 1, 1))}, (3, 4, 4), "nchw,co->o"),
    "Gemm": ([node("Gemm", "x w b", "y", beta=0.5)], {"w": RNG.normal(size=(3, 5)), "b": np.ones((1, 5))}, (3,), "nc,co->o"),
    "Gemm, one number as bias": ([node("Gemm", "x w b", "y")], {"w": RNG.normal(size=(3, 5)), "b": np.ones(())}, (3,), "nc,co->o"),
    "Gemm without bias": ([node("Gemm", "x w", "y", transB=1)], {"w": RNG.normal(size=(5, 3))}, (3,), "nc,oc->o"),
    "Gemm without bias, by columns": ([node("Gemm", "x w", "y")], {"w": RNG.normal(size=(3, 5))}, (3,), "nc,co->o"),
    "MatMul and Add": ([node("MatMul", "x w", "m"), node("Add", "b m", "y")], {"w": RNG.normal(size=(3, 5)), "b": np.ones(5)}, (3,), "nc,co->o"),
}  # fmt: skip


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("name", LAYERS)
def test_a_planted_shift_of_one_layer_is_removed(name: str, opset: int) -> None:
    """Weights rounded down shift the mean by what numpy says, the bias takes it up, and the model given stays."""
    nodes, weights, shape, sums = LAYERS[name]
    model = graph(nodes, shape, **weights)
    model.opset_import[0].version = opset
    before = model.SerializeToString()
    x = np.random.default_rng(1).uniform(0, 2, (50, *shape)).astype(np.float32)
    corrected = correct_bias(model, floored, Feeds("x", x))
    assert model.SerializeToString() == before
    onnx.checker.check_model(corrected, full_check=True)

    squeezed = weights["w"].reshape(weights["w"].shape[:2]).astype(np.float32).astype(np.float64)
    lost = squeezed - np.floor(squeezed / STEP) * STEP
    places = x[0, 0].size
    expected = np.einsum(sums, x.astype(np.float64), lost) / (50 * places)
    zeros = {"x": np.zeros((1, *shape), np.float32)}
    axes = (0, *range(2, 1 + len(shape)))
    moved = run(corrected, zeros)["y"].mean(axes) - run(model, zeros)["y"].mean(axes)
    assert np.abs(expected).min() > 0.1
    assert moved == pytest.approx(expected, abs=1e-5)
    shift = run(floored(corrected), {"x": x})["y"].mean(axes) - run(model, {"x": x})["y"].mean(axes)
    assert np.abs(shift).max() < 1e-5


def test_padding_and_groups_count() -> None:
    """A padded, strided convolution in groups ends with the float model's means, which its inputs' means alone do not tell."""
    rng = np.random.default_rng(2)
    nodes = [node("Conv", "x w", "y", group=2, pads=[2, 2, 2, 2], strides=[2, 2])]
    model = graph(nodes, (4, 6, 6), w=rng.normal(size=(6, 2, 3, 3)))
    x = rng.uniform(0, 2, (40, 4, 6, 6)).astype(np.float32)
    truth, axes = run(model, {"x": x})["y"].mean((0, 2, 3)), (0, 2, 3)
    assert np.abs(run(floored(model), {"x": x})["y"].mean(axes) - truth).max() > 0.5
    done = floored(correct_bias(model, floored, Feeds("x", x)))
    assert np.abs(run(done, {"x": x})["y"].mean(axes) - truth).max() < 1e-5


def layer_by_layer(model: onnx.ModelProto, levels: int, x: Array) -> onnx.ModelProto:
    """Correct as the paper does: quantize, measure one layer over all images, correct it, and go on to the next."""
    names = [*(name for name, *_ in CONVOLUTIONS), "logits"]
    truth = run(model, {"image": x}, names[:-1])
    for name in names:
        also = [] if name == "logits" else [name]
        off = truth[name] - run(coarse(model, levels), {"image": x}, also)[name]
        bias = "gemm.bias" if name == "logits" else f"{name}.bias"
        model = with_weights(model, {bias: arrays(model)[bias] + off.mean((0, *range(2, off.ndim)))})
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_pass_finds_what_layer_by_layer_finds(seed: int) -> None:
    """At about four bits the biases are those of the paper's procedure, and every layer's mean shift is gone."""
    model, x = easy_net(seed), images(96, 1)
    corrected, oracle = correct_bias(model, lambda one: coarse(one, 7), Feeds("image", x)), layer_by_layer(model, 7, x)
    before, found, expected = arrays(model), arrays(corrected), arrays(oracle)
    for name, bias in expected.items():
        size = np.abs(bias - before[name]).max()
        assert np.abs(found[name] - bias).max() <= 0.05 * size
    names = [name for name, *_ in CONVOLUTIONS]
    truth, plain, done = (run(one, {"image": x}, names) for one in (model, coarse(model, 7), coarse(corrected, 7)))
    for name in names:
        old, new = (np.abs((other[name] - truth[name]).mean((0, 2, 3))).max() for other in (plain, done))
        assert new < 0.05 * old


@pytest.mark.parametrize("seed", [0, 1])
def test_int8_on_images_not_seen_gets_better(seed: int) -> None:
    """Through ONNX Runtime's quantizer with coarse weights, correction gains decibels on other images than it saw."""
    model, feeds, x = easy_net(seed), Feeds("image", images(96, 1)), images(96, 2)
    truth = run(model, {"image": x})["logits"]

    def build(one: onnx.ModelProto) -> onnx.ModelProto:
        return quantized(coarse(one, 12), feeds)

    plain, done = (
        distance(truth, run(build(one), {"image": x})["logits"]).sqnr_db
        for one in (model, correct_bias(model, build, feeds))
    )
    assert plain is not None
    assert done is not None
    assert done > plain + 3


def test_what_does_not_help_is_not_kept() -> None:
    """Where the quantized model is exact, or gets worse by the correction, the model given comes back."""
    nodes, weights, shape, _ = LAYERS["Conv"]
    model, x = graph(nodes, shape, **weights), RNG.uniform(0, 2, (20, *shape)).astype(np.float32)
    assert correct_bias(model, lambda one: one, Feeds("x", x)) is model
    built: list[onnx.ModelProto] = []

    def worse(one: onnx.ModelProto) -> onnx.ModelProto:
        built.append(one)
        return floored(one) if len(built) == 1 else with_weights(one, {"w": np.full((5, 3, 1, 1), 99)})

    assert correct_bias(model, worse, Feeds("x", x)) is model
    assert len(built) == 2


def test_shared_biases_and_missing_names_are_told_apart() -> None:
    """Two layers of one bias, and without node names, get a bias each, and both shifts are removed."""
    rng = np.random.default_rng(3)
    nodes = [node("Conv", "x w b", "a"), node("Conv", "a w2 b", "y")]
    for one in nodes:
        one.name = ""
    model = graph(nodes, (3, 4, 4), w=rng.normal(size=(3, 3, 1, 1)), w2=rng.normal(size=(3, 3, 1, 1)), b=np.ones(3))
    x = rng.uniform(0, 2, (30, 3, 4, 4)).astype(np.float32)
    corrected = correct_bias(model, floored, Feeds("x", x))
    truth, done = run(model, {"x": x}, ["a"]), run(floored(corrected), {"x": x}, ["a"])
    for name in ("a", "y"):
        assert np.abs(done[name].mean((0, 2, 3)) - truth[name].mean((0, 2, 3))).max() < 1e-4
    biases = [arrays(corrected)[one.input[2]] for one in corrected.graph.node]
    assert not np.allclose(*biases)


def test_a_bias_that_is_no_constant_and_a_bare_product_stay() -> None:
    """A Gemm whose third input is an activation and a MatMul without an addition are left; the layer between is corrected."""
    rng = np.random.default_rng(4)
    nodes = [node("MatMul", "x w1", "m"), node("Gemm", "m w2 b", "g"), node("Gemm", "g w3 x", "y")]
    weights = {f"w{index}": rng.normal(size=(3, 3)) for index in (1, 2, 3)}
    model = graph(nodes, (3,), **weights, b=np.zeros(3))
    corrected = correct_bias(model, floored, Feeds("x", rng.uniform(0, 2, (30, 3)).astype(np.float32)))
    before, after = arrays(model), arrays(corrected)
    assert {name for name in after if not np.array_equal(before[name], after[name])} == {"b"}
    assert [list(one.input) for one in corrected.graph.node] == [list(one.input) for one in model.graph.node]


def test_a_product_over_the_last_of_three_axes_stays() -> None:
    """A MatMul whose output has rows of its own in each image is left, and the layer after it is corrected."""
    rng = np.random.default_rng(5)
    nodes = [
        node("MatMul", "x w1", "m"),
        node("Add", "m b", "a"),
        node("Flatten", "a", "f"),
        node("Gemm", "f w2 c", "y"),
    ]
    model = graph(nodes, (4, 3), w1=rng.normal(size=(3, 5)), b=np.ones(5), w2=rng.normal(size=(20, 2)), c=np.ones(2))
    corrected = correct_bias(model, floored, Feeds("x", rng.uniform(0, 2, (30, 4, 3)).astype(np.float32)))
    before, after = arrays(model), arrays(corrected)
    assert {name for name in after if not np.array_equal(before[name], after[name])} == {"c"}


def test_no_images_and_foreign_nodes_are_errors() -> None:
    """Without images there is no mean, and layers that the quantized model calls otherwise are not guessed."""
    nodes, weights, shape, _ = LAYERS["Conv"]
    model, x = graph(nodes, shape, **weights), np.ones((2, *shape), np.float32)
    with pytest.raises(QuantizationError, match="needs images"):
        correct_bias(model, floored, Feeds("x", x[:0]))

    def renamed(one: onnx.ModelProto) -> onnx.ModelProto:
        copy = floored(one)
        copy.graph.node[0].name = "other"
        return copy

    with pytest.raises(QuantizationError, match="no layer"):
        correct_bias(model, renamed, Feeds("x", x))
