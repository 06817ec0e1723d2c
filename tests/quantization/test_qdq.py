"""Quantizing with chosen ranges and placement: held to integers computed by hand and to torch in float64."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from quantization import graphs, small, zoo
from torch.nn import functional

from edgecnn.errors import QuantizationError
from edgecnn.metrics import distance
from edgecnn.quantization.graph import makers, readers
from edgecnn.quantization.qdq import activation_tensors, quantize, quantized_layers
from edgecnn.quantization.recipe import Recipe, recipe_for
from edgecnn.quantization.source import read_source

RECIPES = {name: recipe_for(name) for name in ("x86-64-vnni", "x86-64", "tensorrt")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ranges() -> dict[str, tuple[float, float]]:
    return small.ranges_of(small.chain(), {"x": small.images()})


def weight_steps(weight: npt.NDArray[np.float32], recipe: Recipe) -> npt.NDArray[np.float64]:
    """Compute the step of each output channel: the largest magnitude is the last level, 127, or 64 of seven bits."""
    largest = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
    return largest / (64 if recipe.reduced_range else 127)


def activation_grid(low: float, high: float, recipe: Recipe) -> tuple[float, int, int, int]:
    """Compute step, zero point and the ends of the levels."""
    if recipe.activations == "int8":
        return 2 * max(-low, high) / 254, 0, -128, 127
    step = (high - low) / 255
    return step, round(-low / step), 0, 255


@pytest.mark.parametrize("target", RECIPES)
def test_weights_and_biases_are_the_integers_of_arithmetic_by_hand(
    target: str, ranges: dict[str, tuple[float, float]]
) -> None:
    """Weights are rounded with a step a channel, biases with that of the products or not at all, and nothing else is."""
    recipe = RECIPES[target]
    floats, found = graphs.arrays(small.chain()), graphs.arrays(quantize(small.chain(), ranges, recipe))
    for layer, given in (("a", "x"), ("b", "ar"), ("c", "br"), ("g", "mean")):
        weight = floats[f"{layer}.weight"]
        steps = weight_steps(weight, recipe)
        np.testing.assert_allclose(found[f"{layer}.weight_scale"], steps, rtol=1e-6)
        levels = np.rint(weight / steps.reshape(-1, *[1] * (weight.ndim - 1)))
        assert found[f"{layer}.weight_quantized"].dtype == np.int8
        np.testing.assert_array_equal(found[f"{layer}.weight_quantized"], levels)
        assert np.abs(levels).max() == (64 if recipe.reduced_range else 127)
        if not recipe.integer_bias:
            np.testing.assert_array_equal(found[f"{layer}.bias"], floats[f"{layer}.bias"])
            continue
        products = activation_grid(*ranges[given], recipe)[0] * steps
        assert found[f"{layer}.bias_quantized"].dtype == np.int32
        assert np.abs(found[f"{layer}.bias_quantized"] - floats[f"{layer}.bias"] / products).max() <= 0.501


@pytest.mark.parametrize("target", RECIPES)
def test_activations_get_the_ranges_that_were_given(target: str, ranges: dict[str, tuple[float, float]]) -> None:
    """Steps and zero points follow from the ranges: one without a zero point is as wide on both sides."""
    recipe = RECIPES[target]
    strange = {**ranges, "x": (-0.5, 2.0), "ar": (0.0, 3.0)}
    found = graphs.arrays(quantize(small.chain(), strange, recipe))
    for name in ("x", "ar", "br", "cr"):
        step, zero, *_ = activation_grid(*strange[name], recipe)
        np.testing.assert_allclose(found[f"{name}_scale"], step, rtol=1e-6)
        assert found[f"{name}_zero_point"].dtype == np.dtype(recipe.activations)
        assert found[f"{name}_zero_point"] == zero
    assert not any(np.any(array) for name, array in found.items() if name.endswith("weight_zero_point"))


def rounded_chain(
    x: npt.NDArray[np.float32], ranges: dict[str, tuple[float, float]], recipe: Recipe, floats: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """Compute the chain in float64, rounding what a quantized model rounds."""
    weights = {name: torch.from_numpy(array.astype(np.float64)) for name, array in graphs.arrays(small.chain()).items()}

    def rounded(name: str, value: torch.Tensor, readers_in_float: bool = False) -> torch.Tensor:
        if readers_in_float:
            return value
        step, zero, least, most = activation_grid(*ranges[name], recipe)
        return ((value / step).round() + zero).clamp(least, most).sub(zero) * step

    def constants(layer: str, given: str) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        if layer in floats:
            return weight, bias
        steps = torch.from_numpy(weight_steps(weight.numpy(), recipe))
        products = steps * activation_grid(*ranges[given], recipe)[0]
        a_channel = steps.reshape(-1, *[1] * (weight.ndim - 1))
        return (weight / a_channel).round() * a_channel, (
            (bias / products).round() * products if recipe.integer_bias else bias
        )

    # A tensor is rounded where a quantized layer reads or makes it.
    value = rounded("x", torch.from_numpy(x.astype(np.float64)), "a" in floats)
    for layer, given, following in (("a", "x", "b"), ("b", "ar", "c"), ("c", "br", "mean")):
        value = functional.conv2d(value, *constants(layer, given), padding=1).relu()
        value = rounded(f"{layer}r", value, layer in floats and (following in floats or following == "mean"))
    # A pool among floats is in float itself.
    value = rounded("mean", value.mean(dim=(2, 3)), "c" in floats and "g" in floats)
    return functional.linear(value, *constants("g", "mean")).numpy()


PLACEMENTS = [floats for size in range(4) for floats in itertools.combinations(("a", "b", "c", "g"), size)]


@pytest.mark.parametrize("target", ["x86-64-vnni", "tensorrt"])
@pytest.mark.parametrize("floats", PLACEMENTS, ids=lambda floats: "+".join(floats) or "none")
def test_answers_are_those_of_rounding_by_hand_for_every_placement(
    floats: tuple[str, ...], target: str, ranges: dict[str, tuple[float, float]]
) -> None:
    """Layers in float keep their weights and, with their activation, round nothing but what a quantized layer reads."""
    x, recipe = small.images(4, seed=3), RECIPES[target]
    truth = rounded_chain(x, ranges, recipe, floats)
    found = small.reference(quantize(small.chain(), ranges, recipe, floats), {"x": x})[0]
    exact = rounded_chain(x, ranges, Recipe(integer_bias=False), ("a", "b", "c", "g"))
    by_rounding = distance(exact, truth).sqnr_db
    assert by_rounding is not None
    same = distance(truth, found).sqnr_db
    # A value in the middle between two levels may be rounded either way; else only float32 differs.
    assert same is not None
    assert same > by_rounding + 20


def test_logits_are_not_clipped_to_what_calibration_saw(ranges: dict[str, tuple[float, float]]) -> None:
    """A range for the Gemm's output, however narrow, changes nothing: it has no quantizer."""
    x = small.images()
    wide, narrow = (
        quantize(small.chain(), {**ranges, "y": given}, Recipe()) for given in ((-100.0, 100.0), (0.0, 1e-6))
    )
    assert np.abs(graphs.run(narrow, {"x": x})["y"]).max() > 0.1
    np.testing.assert_array_equal(graphs.run(narrow, {"x": x})["y"], graphs.run(wide, {"x": x})["y"])
    assert not readers(narrow).get("y")


def test_the_model_given_stays_and_its_notes_go_along(ranges: dict[str, tuple[float, float]]) -> None:
    """Quantizing copies, keeps the metadata and does not add the quantizer's own, and leaves the logger's level alone."""
    model = small.chain()
    helper.set_model_props(model, {"edgecnn.labels": '["a", "b"]'})
    before, level = model.SerializeToString(), logging.getLogger().level
    found = quantize(model, ranges, Recipe())
    assert model.SerializeToString() == before
    assert {entry.key: entry.value for entry in found.metadata_props} == {"edgecnn.labels": '["a", "b"]'}
    assert logging.getLogger().level == level
    onnx.checker.check_model(found, full_check=True)


def test_what_a_quantized_layer_multiplies_by_is_listed(ranges: dict[str, tuple[float, float]]) -> None:
    """The layers left in float are missing from the list, and so is one whose input alone is quantized."""
    found = quantized_layers(quantize(small.chain(), ranges, Recipe(), ["b"]))
    assert found == {"a": "a.weight_quantized", "c": "c.weight_quantized", "g": "g.weight_quantized"}


def test_leaving_every_layer_in_float_is_refused(ranges: dict[str, tuple[float, float]]) -> None:
    """Nothing would be left to quantize, and that is said."""
    with pytest.raises(QuantizationError, match="no layer is left to quantize"):
        quantize(small.chain(), ranges, Recipe(), ["a", "b", "c", "g"])


@pytest.mark.parametrize("missing", ["x", "ar", "mean"])
def test_a_range_that_is_missing_is_one_clear_line(missing: str, ranges: dict[str, tuple[float, float]]) -> None:
    """The quantizer's own exception becomes one of ours, on one line, with the tensor's name."""
    less = {name: given for name, given in ranges.items() if name != missing}
    with pytest.raises(QuantizationError) as caught:
        quantize(small.chain(), less, Recipe())
    assert missing in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["matmul_head", "nhwc_uint8", "squeeze_excite", "two_outputs", "groups", "depthwise"])
def test_what_is_no_product_stays_in_float(name: str, tmp_path: Path) -> None:
    """The ranges listed suffice, every layer is quantized, softmax, its like and normalisation are not."""
    model = read_source(zoo.save(zoo.ZOO[name](), tmp_path / "model.onnx")).model
    feeds = zoo.feeds(model, 8)
    found = quantize(model, small.ranges_of(model, feeds), recipe_for("tensorrt"))
    onnx.checker.check_model(found, full_check=True)
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert list(quantized_layers(found)) == layers
    read, made = readers(found), makers(found)
    for node in found.graph.node:
        if node.op_type in ("Softmax", "Sub", "Cast"):
            assert all(made[name].op_type != "DequantizeLinear" for name in node.input if name in made)
            assert all(reader.op_type != "QuantizeLinear" for reader in read.get(node.output[0], []))
    assert all(made[value.name].op_type != "DequantizeLinear" for value in found.graph.output)
    answers = graphs.run(found, feeds)
    for output, exact in graphs.run(model, feeds).items():
        sqnr = distance(exact.reshape(len(exact), -1), answers[output].reshape(len(exact), -1)).sqnr_db
        assert sqnr is not None
        assert sqnr > 20


def test_what_no_quantized_node_feeds_stays_in_float() -> None:
    """The gate of a squeeze-and-excitation block is float, so its multiplication is; a pool among quantized layers is not."""
    model = small.inferred(zoo.squeeze_excite())
    for node in model.graph.node:
        node.name = node.output[0]
    found = quantize(model, small.ranges_of(model, zoo.feeds(model, 8)), Recipe())
    made, read = makers(found), readers(found)
    assert [made[name].op_type for name in made["c"].input] == ["DequantizeLinear", "HardSigmoid"]
    assert [node.op_type for node in read["c"]] == ["GlobalAveragePool"]
    assert [made[name].op_type for name in made["p"].input] == ["DequantizeLinear"]
    assert [node.op_type for node in read["p"]] == ["QuantizeLinear"]


def test_only_float_tensors_that_can_be_quantized_are_watched() -> None:
    """Neither uint8 pixels nor weights nor what a Softmax gives; in graph order, each once."""
    assert activation_tensors(small.inferred(zoo.nhwc_uint8())) == [
        "s",
        "m",
        "planes",
        "a",
        "b",
        "pooled",
        "flat",
        "scores",
    ]
    listed = activation_tensors(small.inferred(zoo.matmul_head()))
    assert listed == ["image", "a", "b", "pooled", "flat", "g", "h", "m", "n"]
