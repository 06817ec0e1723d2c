"""Sensitivity held to fake quantization by hand in numpy, and planted faults that it has to name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from quantization.graphs import graph, node, run
from quantization.hard import easy_net, hard_net, images

from edgecnn.cli import cli
from edgecnn.errors import QuantizationError, UsageError
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.observe import observe
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.ranges import choose_range
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.saturation import saturation
from edgecnn.quantization.sensitivity import Sensitivity, sensitivity, threshold
from edgecnn.quantization.source import read_source
from edgecnn.quantization.values import channels_of, input_channels_of, share_outside, values_of_weights
from edgecnn.spec import to_json

Array = npt.NDArray[Any]
IMAGES = 40


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECNN_CACHE", "/dev/null")


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Note the shapes of what lies between, as preparation does."""
    return onnx.shape_inference.infer_shapes(model)


# Two layers, a convolution and a Gemm, in numpy float64.

WEIGHTS = {
    "conv.weight": np.random.default_rng(0).normal(0, 0.3, (6, 3, 3, 3)),
    "conv.bias": np.random.default_rng(1).normal(0, 0.1, 6),
    "head.weight": np.random.default_rng(2).normal(0, 0.5, (5, 6)),
    "head.bias": np.random.default_rng(3).normal(0, 0.1, 5),
}
PIXELS = np.random.default_rng(4).normal(0, 1, (IMAGES, 3, 8, 8)).astype(np.float32)


def two_layers() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x conv.weight conv.bias", "conv"),
        node("Relu", "conv", "relu"),
        node("GlobalAveragePool", "relu", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head.weight head.bias", "y", transB=1),
    ]
    return prepared(graph(nodes, (3, 8, 8), **WEIGHTS))


def rounded(values: Array, seen: Array) -> Array:
    """Round to 256 levels that cover what was seen, and 0."""
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def rounded_weights(weights: Array) -> Array:
    """Round each output channel to levels from -127 to 127."""
    step = np.abs(weights).reshape(len(weights), -1).max(axis=1).reshape(-1, *[1] * (weights.ndim - 1)) / 127
    return np.rint(weights / step) * step


def by_hand(conv: bool, head: bool, between: tuple[str, ...]) -> Array:
    """Answer with either layer's weights rounded, and those of the tensors x, relu, mean that `between` names."""
    weights = {name: array.astype(np.float32).astype(np.float64) for name, array in WEIGHTS.items()}
    truth = forward(PIXELS.astype(np.float64), weights, lambda name, values: values)
    if conv:
        weights["conv.weight"] = rounded_weights(weights["conv.weight"])
    if head:
        weights["head.weight"] = rounded_weights(weights["head.weight"])

    def between_layers(name: str, values: Array) -> Array:
        return rounded(values, truth[name]) if name in between else values

    return forward(PIXELS.astype(np.float64), weights, between_layers)["y"]


def forward(x: Array, weights: dict[str, Array], seen: Callable[[str, Array], Array]) -> dict[str, Array]:
    found = {"x": seen("x", x)}
    patches = np.lib.stride_tricks.sliding_window_view(found["x"], (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", patches, weights["conv.weight"]) + weights["conv.bias"][:, None, None]
    found["relu"] = seen("relu", np.maximum(conv, 0))
    found["mean"] = seen("mean", found["relu"].mean(axis=(2, 3)))
    found["y"] = found["mean"] @ weights["head.weight"].T + weights["head.bias"]
    return found


def sqnr_db(found: Array) -> float:
    truth = by_hand(False, False, ())
    return float(10 * np.log10(np.square(truth).sum() / np.square(found - truth).sum()))


@pytest.fixture(scope="module")
def measured() -> Sensitivity:
    """Return the sensitivity of the two layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECNN_CACHE", "/dev/null")
        return sensitivity(two_layers(), from_arrays({"x": PIXELS}), Recipe())


def test_errors_are_those_of_fake_quantization_by_hand(measured: Sensitivity) -> None:
    """Each layer alone, each left out, and all together make the error that numpy makes in float64."""
    conv, head = measured.layers
    expected = {
        "all": by_hand(True, True, ("x", "relu", "mean")),
        "conv alone": by_hand(True, False, ("x", "relu")),
        "head alone": by_hand(False, True, ("mean",)),
        "conv left out": by_hand(False, True, ("mean",)),  # the quantizer leaves a mean of floats in float
        "head left out": by_hand(True, False, ("x", "relu", "mean")),
    }
    found = (measured.all_db, conv.alone_db, head.alone_db, conv.left_out_db, head.left_out_db)
    # Biases are rounded too, but to steps far finer, and the kernels compute in float32.
    assert found == pytest.approx([sqnr_db(one) for one in expected.values()], abs=0.1)
    assert min(np.diff(sorted(found[:3]))) > 1  # so none can stand for another
    assert [one.gain_db for one in measured.layers] == pytest.approx(np.array(found[3:]) - found[0])


def test_what_is_said_of_the_values_is_what_numpy_counts(measured: Sensitivity) -> None:
    """Extremes, root mean squares, channels and histograms of inputs, outputs and weights are numpy's."""
    truth = run(two_layers(), {"x": PIXELS}, ["relu"])
    layer = measured.layers[0]
    for values, array in ((layer.input, PIXELS), (layer.output, truth["relu"])):
        assert (values.low, values.high) == (array.min(), array.max())
        assert values.rms == pytest.approx(np.sqrt(np.mean(np.square(array.astype(np.float64)))))
        assert values.counts == tuple(np.histogram(array, 64, (values.low, values.high))[0].tolist())
        peaks = np.abs(array).max(axis=(0, 2, 3))
        assert values.channels is not None
        assert values.channels.spread == pytest.approx(peaks.max() / peaks.min())
        assert values.clip == (min(0, values.low), values.high)
        assert values.clipped == 0
    assert layer.output.tensor == "relu"
    weights = WEIGHTS["conv.weight"].astype(np.float32)
    assert (layer.weights.low, layer.weights.high) == (weights.min(), weights.max())
    assert sum(layer.weights.counts) == weights.size
    assert measured.layers[1].output.clip is None  # a Gemm's output is not rounded


def test_it_becomes_json_and_back(measured: Sensitivity) -> None:
    """What was measured survives JSON."""
    assert msgspec.json.decode(to_json(measured), type=Sensitivity) == measured


def test_saturation_is_counted_at_full_range_whatever_the_recipe() -> None:
    """With weights of seven bits the share that saturates is still that of eight, by the prediction's own function."""
    model, feeds = prepared(hard_net(0)), from_arrays({"image": images(IMAGES, 1)})
    found = sensitivity(model, feeds, Recipe(reduced_range=True))
    seen = observe(model, feeds, [name for layer in found.layers for name in (layer.input.tensor, layer.output.tensor)] + ["mean", *_sums(model)])  # fmt: skip
    full = quantize(model, {name: choose_range(one, "min-max") for name, one in seen.items()}, Recipe())
    expected = {one.node: one.fraction for one in saturation(full, feeds)}
    assert {layer.node: layer.saturated for layer in found.layers} == expected
    assert max(expected.values()) > 0
    symmetric = sensitivity(model, feeds, Recipe(activations="int8", integer_bias=False))
    assert {layer.saturated for layer in symmetric.layers} == {None}


def _sums(model: onnx.ModelProto) -> list[str]:
    return [one.output[0] for one in model.graph.node if one.op_type == "Conv"]


# Planted faults.


def scaled(model: onnx.ModelProto, factors: dict[str, tuple[Any, float]]) -> onnx.ModelProto:
    """Multiply parts of weights."""
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            place, factor = factors[tensor.name]
            array = numpy_helper.to_array(tensor).copy()
            array[place] *= factor
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return prepared(model)


def bad_layer(channel: int) -> onnx.ModelProto:
    """Make the same function as an easy net, with conv3's weights for one input channel 100 times the others."""
    whole = slice(None)
    return scaled(
        easy_net(0),
        {"conv2.weight": (channel, 0.01), "conv2.bias": (channel, 0.01), "conv3.weight": ((whole, channel), 100.0)},
    )


@pytest.mark.parametrize("channel", [3, 11])
def test_a_planted_bad_layer_is_named_with_its_channel(channel: int) -> None:
    """A layer whose weights for one input channel are 100 times the others is the one to keep in float, and why is said."""
    found = sensitivity(bad_layer(channel), from_arrays({"image": images(IMAGES, 1)}), Recipe())
    assert [one.name for one in found.keep] == ["conv3"]
    (advice,) = found.keep
    assert f"its weights for input channel {channel} are" in advice.why
    assert found.layers[2].input_channels is not None
    assert 50 < found.layers[2].input_channels.loudness < 200
    assert advice.gain_db > 7
    assert advice.share == pytest.approx(1 - 10 ** (-advice.gain_db / 10))


def test_two_bad_layers_are_both_named() -> None:
    """Of two layers with a planted channel each neither hides the other, though one lies behind the other."""
    whole = slice(None)
    factors: dict[str, tuple[Any, float]] = {
        "conv1.weight": (2, 0.01), "conv1.bias": (2, 0.01), "conv2.weight": ((whole, 2), 100.0),
        "conv3.weight": (7, 0.01), "conv3.bias": (7, 0.01), "conv4.weight": ((whole, 7), 100.0),
    }  # fmt: skip
    found = sensitivity(scaled(easy_net(0), factors), from_arrays({"image": images(IMAGES, 1)}), Recipe())
    assert {one.name for one in found.keep} == {"conv2", "conv4"}


def test_nothing_is_named_where_nothing_is_wrong() -> None:
    """The same net without the planted channel has no layer worth keeping in float."""
    found = sensitivity(prepared(easy_net(0)), from_arrays({"image": images(IMAGES, 1)}), Recipe())
    assert not found.keep
    assert max(one.gain_db for one in found.layers) < 3


def test_a_loud_output_is_hurt_though_float_does_not_help() -> None:
    """Where only a tensor between two layers is at fault neither is worth keeping in float, and the loud channel is named."""
    channel, whole = 5, slice(None)
    # The last convolution's loud channel goes through the mean, which has it too, and ends in the Gemm.
    factors = {
        "conv1.weight": (channel, 100.0),
        "conv1.bias": (channel, 100.0),
        "conv2.weight": ((whole, channel), 0.0),
    }
    found = sensitivity(scaled(easy_net(0), factors), from_arrays({"image": images(IMAGES, 1)}), Recipe())
    assert not found.keep
    assert "conv1" in [one.name for one in found.hurt]
    assert all(f"channel {channel} of its" in one.why for one in found.hurt if one.name in ("conv1", "conv2"))


def test_a_mean_in_its_inputs_range_is_named() -> None:
    """An AveragePool, which is rounded in its input's range, is named where it fills little of it; the Add before is not."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", "x a.weight", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b c.weight", "c", pads=[1, 1, 1, 1]),
        node("Add", "b c", "d"),
        node("Relu", "d", "e"),
        node("AveragePool", "e", "f", kernel_shape=[8, 8]),
        node("Flatten", "f", "g"),
        node("Gemm", "g h.weight", "y"),
    ]
    weights = {"a.weight": (6, 3, 3, 3), "c.weight": (6, 6, 3, 3), "h.weight": (6, 4)}
    model = prepared(graph(nodes, (3, 8, 8), **{name: rng.normal(0, 0.3, shape) for name, shape in weights.items()}))
    sparse = PIXELS * (np.random.default_rng(1).random(PIXELS.shape) < 0.05)  # few pixels: loud here, faint on the mean
    found = sensitivity(model, from_arrays({"x": sparse}), Recipe())
    assert [(one.name, one.op) for one in found.keep] == [("f", "AveragePool")]
    seen = run(model, {"x": sparse}, ["e", "f"])
    used = found.others[-1].output.used
    assert used == pytest.approx(seen["f"].max() / seen["e"].max(), rel=0.01)
    assert f"takes {used:.0%} of the range" in found.keep[0].why


def test_a_method_that_clips_says_how_much() -> None:
    """The share clipped by a percentile's range is what numpy counts beyond it."""
    model = two_layers()
    pixels = np.random.default_rng(5).normal(0, 1, (600, 3, 8, 8)).astype(np.float32)
    found = sensitivity(model, from_arrays({"x": pixels}), Recipe(), "percentile")
    relu = run(model, {"x": pixels}, ["relu"])["relu"]
    output = found.layers[0].output
    assert output.clip is not None
    assert output.clip[1] < relu.max()
    beyond = np.mean((output.clip[0] > relu) | (relu > output.clip[1]))
    assert 0 < beyond < 1e-3
    assert output.clipped == pytest.approx(beyond, abs=1.5 / relu.size)


def test_a_single_layer_is_never_to_be_kept() -> None:
    """A net of one layer has no int8 model without it, so leaving it out is not advised, whatever it would gain."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "m"),
        node("Flatten", "m", "y"),
    ]
    model = prepared(graph(nodes, (3, 8, 8), w=np.random.default_rng(0).normal(size=(5, 3, 3, 3))))
    found = sensitivity(model, from_arrays({"x": PIXELS}), Recipe())
    assert found.layers[0].left_out_db == math.inf
    assert not found.keep


def test_what_cannot_be_measured_is_refused() -> None:
    """A net without weights, and a method nobody knows, are errors of one line."""
    feeds = from_arrays({"x": PIXELS})
    with pytest.raises(QuantizationError, match="no layer is left"):
        sensitivity(prepared(graph([node("Relu", "x", "y")], (3, 8, 8))), feeds, Recipe())
    with pytest.raises(UsageError, match="guess"):
        sensitivity(two_layers(), feeds, Recipe(), "guess")  # type: ignore[arg-type]  # that is the point


def test_the_command_tells_writes_and_prints_json(tmp_path: Path) -> None:
    """`edgecnn sensitivity` names the planted layer, writes the page, and with --json prints what the library gives."""
    onnx.save(bad_layer(3), tmp_path / "net.onnx")
    (tmp_path / "feeds").mkdir()
    np.savez(tmp_path / "feeds" / "a.npz", image=images(IMAGES, 1))
    words = [
        "sensitivity",
        str(tmp_path / "net.onnx"),
        "--calibrate",
        str(tmp_path / "feeds"),
        "--target",
        "x86-64-vnni",
    ]
    told = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "page.html")])
    assert told.exit_code == 0, told.output
    assert "conv3 (Conv): leaving it in float gains" in told.stdout
    assert "What int8 costs in net.onnx" in (tmp_path / "page.html").read_text()
    printed = CliRunner().invoke(cli, [*words, "--json"])
    found = msgspec.json.decode(printed.stdout, type=Sensitivity)
    assert [one.name for one in found.keep] == ["conv3"]
    assert found.all_db == sensitivity(read_source(tmp_path / "net.onnx").model, from_arrays({"image": images(IMAGES, 1)}), Recipe()).all_db  # fmt: skip


# The parts.


@pytest.mark.parametrize("seed", range(6))
def test_the_share_outside_is_what_is_counted(seed: int) -> None:
    """For values behind a clip at 0 and 6, with spikes there, the share outside of any range is right to half a bin."""
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(2, 3, (500, 1, 8, 8)), -1 if seed % 2 else 0, 6).astype(np.float32)
    model = prepared(graph([node("Identity", "x", "y")], (1, 8, 8)))
    seen = observe(model, from_arrays({"x": values}), ["x"])["x"]
    for low, high in ((0.0, 6.0), (-1.0, 6.0), (0.0, 5.99), (0.0, 2.0), (-0.5, 3.3), (0.0, 0.001)):
        counted = np.mean((values < low) | (values > high))
        in_a_bin = seen.histogram[1:-1].max() / values.size
        assert share_outside(seen, (low, high)) == pytest.approx(counted, abs=in_a_bin)
    assert share_outside(seen, (float(values.min()), 6.0)) == 0


def test_the_share_outside_of_one_value() -> None:
    """A tensor that holds one value alone is all inside or all outside."""
    model = prepared(graph([node("Identity", "x", "y")], (1, 8, 8)))
    seen = observe(model, from_arrays({"x": np.full((4, 1, 8, 8), 2, np.float32)}), ["x"])["x"]
    assert share_outside(seen, (0.0, 2.0)) == 0
    assert share_outside(seen, (0.0, 1.0)) == 1


def test_channels_are_compared_and_silent_ones_counted_apart() -> None:
    """Spread is largest over smallest, loudness largest over the median of the others, and zeros are neither."""
    found = channels_of(np.array([2.0, 0.0, 80.0, 1.0, 4.0]))
    assert found is not None
    assert (found.count, found.silent, found.loudest) == (5, 1, 2)
    assert (found.spread, found.loudness) == (80, 40)
    assert channels_of(np.array([0.0, 3.0])) is None


# Operator, shape of its weights, attributes, and the axes of its outputs and inputs.
LAYOUTS: dict[str, tuple[str, tuple[int, ...], dict[str, int], int, int]] = {
    "Conv": ("Conv", (4, 3, 2, 2), {}, 0, 1),
    "ConvTranspose": ("ConvTranspose", (4, 3, 2, 2), {}, 1, 0),
    "Gemm": ("Gemm", (4, 3), {}, 1, 0),
    "Gemm transposed": ("Gemm", (4, 3), {"transB": 1}, 0, 1),
    "MatMul": ("MatMul", (4, 3), {}, 1, 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_channels_lie_where_the_operator_has_them(name: str) -> None:
    """One output's weights 50 times the others, and one input's, are each found along the axis where the operator has it."""
    op, shape, attributes, outputs, inputs = LAYOUTS[name]
    made = node(op, "x w", "y", **attributes)
    by_output, by_input = np.ones(shape), np.ones(shape)
    by_output.swapaxes(0, outputs)[1] = 50
    by_input.swapaxes(0, inputs)[2] = 50
    out, into = values_of_weights("w", by_output, made).channels, input_channels_of(by_input, made)
    assert out is not None
    assert into is not None
    assert (out.count, out.loudest, out.loudness) == (shape[outputs], 1, 50)
    assert (into.count, into.loudest, into.loudness) == (shape[inputs], 2, pytest.approx(50))
    even = values_of_weights("w", by_input, made).channels
    assert even is not None
    assert even.spread == 1
    assert input_channels_of(by_output, made) == channels_of(
        np.ones(shape[inputs])
    )  # each output has a step of its own


def test_a_depthwise_layer_has_no_input_channels_to_compare() -> None:
    """Where each output has one input channel there is nothing to compare."""
    assert input_channels_of(np.ones((6, 1, 3, 3)), node("Conv", "x w", "y", group=6)) is None


def test_the_rule_asks_for_more_where_there_are_few_layers() -> None:
    """The share asked for is a fifth with many nodes, twice an even share with few, and never above three quarters."""
    assert [threshold(count) for count in (2, 4, 8, 10, 100)] == [0.75, 0.5, 0.25, 0.2, 0.2]
