"""Saturation in 16 bits, predicted and counted by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn.errors import DataError, QuantizationError
from edgecnn.quantization.feeds import FeedSet, from_arrays
from edgecnn.quantization.products import products
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.saturation import LayerSaturation, pair_sums, saturation

Array = npt.NDArray[Any]

PLANTED = "net.planted"
IMAGES = 5


def alternating(rng: np.random.Generator, outputs: int, channels: int, kernel: int) -> Array:
    """Draw levels of up to 127 whose neighbours, channels innermost, differ in sign: no pair of them can saturate.

    With the kernel's positions innermost neighbours have the same sign.
    """
    levels = rng.integers(100, 128, (outputs, kernel, kernel, channels))
    levels[..., 1::2] *= -1
    levels[:, 0, 0, 0] = 127  # so that quantization finds the scale that was meant
    return levels.transpose(0, 3, 1, 2)


def float_net(rng: np.random.Generator) -> onnx.ModelProto:
    """Make a net in which one layer of four saturates.

    All weights are 127ths of a power of two and all ranges, in RANGES, give scales that are powers of two, so that
    every value of the quantized net is exact in float32, and whoever evaluates it gets the same integers.
    """
    planted = rng.integers(60, 128, (16, 4, 3, 3)) * rng.choice([-1, 1], (16, 1, 1, 1))
    planted[:, 0, 0, 0] = 127
    layers = {
        "planted": (planted / 2**10, rng.integers(0, 60, 16) / 2**6),
        "depthwise": (np.full((16, 1, 3, 3), 127) / 2**10, np.zeros(16)),
        "even": (alternating(rng, 8, 16, 3) / 2**14, rng.integers(60, 120, 8) / 2**6),
        "head": (alternating(rng, 4, 8, 1)[:, :, 0, 0] / 2**8, rng.integers(0, 60, 4) / 2**6),
    }
    constants, nodes, current = [], [], "x"
    for name, (weight, bias) in layers.items():
        for kind, array in (("weight", weight), ("bias", bias)):
            constants.append(numpy_helper.from_array(array.astype(np.float32), f"net.{name}.{kind}"))
        inputs = [current, f"net.{name}.weight", f"net.{name}.bias"]
        if name == "head":
            nodes.append(helper.make_node("GlobalAveragePool", [current], ["pooled"], name="pool"))
            nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
            nodes.append(helper.make_node("Gemm", ["flat", *inputs[1:]], ["y"], name="node_head", transB=1))
        else:
            group = 16 if name == "depthwise" else 1
            attributes = {"pads": [1, 1, 1, 1], "group": group}
            nodes.append(helper.make_node("Conv", inputs, [f"{name}_sum"], name=f"node_{name}", **attributes))
            nodes.append(helper.make_node("Relu", [f"{name}_sum"], [f"{name}_out"], name=f"relu_{name}"))
        current = f"{name}_out"
    x, y = (helper.make_tensor_value_info(*what) for what in (("x", 1, ["n", 4, 8, 8]), ("y", 1, ["n", 4])))
    return onnx.shape_inference.infer_shapes(made(nodes, [x], [y], constants))


def made(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


RANGES = {
    "x": (-64 / 2**6, 191 / 2**6), "planted_sum": (0, 255 / 2**5), "planted_out": (0, 255 / 2**5),
    "depthwise_sum": (0, 255 / 2**5), "depthwise_out": (0, 255 / 2**5), "even_sum": (0, 255 / 2**6),
    "even_out": (0, 255 / 2**6), "pooled": (0, 255 / 2**6), "flat": (0, 255 / 2**6), "y": (-1, 1),
}  # fmt: skip
ZERO = 64  # of x


def net_and_feeds(recipe: Recipe) -> tuple[onnx.ModelProto, FeedSet, Array]:
    """Quantize the net, and draw bright images for it."""
    rng = np.random.default_rng(7)
    net = quantize(float_net(rng), RANGES, recipe)
    images = (rng.integers(40, 191, (IMAGES, 4, 8, 8)) / 2**6).astype(np.float32)
    return net, from_arrays({"x": images}), images


def by_hand(model: onnx.ModelProto, images: Array) -> tuple[int, int, int, float]:
    """Count the planted layer's pairs in a loop over outputs, its input evaluated by the onnx package's reference.

    Returns pairs, saturated ones, the largest magnitude, and the SQNR in dB.
    """
    node = next(node for node in model.graph.node if node.name == "node_planted")
    made_by = {name: one for one in model.graph.node for name in one.output}
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = constants[made_by[node.input[1]].input[0]].astype(int)
    scales = constants[made_by[node.input[1]].input[1]].astype(float)
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    source = made_by[node.input[0]].input[0]
    exposed.graph.output.append(helper.make_tensor_value_info(source, TensorProto.UINT8, None))
    (levels,) = ReferenceEvaluator(exposed).run([source], {"x": images})
    assert levels.dtype == np.uint8
    padded = np.pad(levels, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=ZERO).astype(int)
    pairs = saturated = worst = 0
    signal = noise = 0.0
    for image, row, column in itertools.product(range(len(images)), range(8), range(8)):
        patch = padded[image, :, row : row + 3, column : column + 3]
        places = [(channel, down, right) for down in range(3) for right in range(3) for channel in range(4)]
        for output in range(16):
            terms = [int(patch[place]) * int(weights[output][place]) for place in places]
            sums = [terms[index] + terms[index + 1] for index in range(0, len(terms), 2)]
            clipped = [min(max(one, -32768), 32767) for one in sums]
            pairs, worst = pairs + len(sums), max(worst, *(abs(one) for one in sums))
            saturated += sum(a != b for a, b in zip(sums, clipped, strict=True))
            exact = sum((int(patch[place]) - ZERO) * int(weights[output][place]) for place in places)
            signal += (exact * scales[output]) ** 2
            noise += ((sum(sums) - sum(clipped)) * scales[output]) ** 2
    return pairs, saturated, worst, 10 * np.log10(signal / noise)


def named(found: list[LayerSaturation]) -> dict[str, LayerSaturation]:
    return {layer.name: layer for layer in found}


def test_the_planted_layer_alone_is_named_and_counted_as_by_hand() -> None:
    """Of four layers only the planted one saturates; counts, worst sum and SQNR are those of a loop over outputs."""
    model, feeds, images = net_and_feeds(Recipe())
    found = named(saturation(model, feeds))
    assert list(found) == [PLANTED, "net.depthwise", "net.even", "net.head"]
    assert [name for name, layer in found.items() if layer.saturated] == [PLANTED]
    pairs, saturated, worst, sqnr = by_hand(model, images)
    layer = found[PLANTED]
    assert (layer.node, layer.op) == ("node_planted", "Conv")
    assert (layer.pairs, layer.saturated, layer.worst) == (pairs, saturated, worst)
    assert layer.fraction == saturated / pairs
    assert 0.05 < layer.fraction < 0.95
    assert layer.sqnr_db == pytest.approx(sqnr, abs=1e-9)
    assert found["net.depthwise"].pairs == 0
    for name, layer in found.items():
        if name != PLANTED:
            assert (layer.saturated, layer.fraction, layer.sqnr_db) == (0, 0.0, None)
            assert layer.worst <= 255 * 127
            assert layer.worst > 1000 or not layer.pairs
    assert found["net.even"].pairs == IMAGES * 64 * 8 * 72
    assert found["net.head"].pairs == IMAGES * 4 * 4


def test_seven_bits_of_weight_never_saturate() -> None:
    """The same net with weights of reduced range has no sum beyond 16 bits, though the planted layer's come close."""
    found = named(saturation(*net_and_feeds(Recipe(reduced_range=True))[:2]))
    assert len(found) == 4
    assert not any(layer.saturated for layer in found.values())
    assert all(layer.sqnr_db is None for layer in found.values())
    assert 16384 < found[PLANTED].worst <= 2 * 255 * 64


def test_no_more_images_than_asked_for_are_counted() -> None:
    """Pairs grow with the images, up to `images`, whatever the batches."""
    model, _, images = net_and_feeds(Recipe())
    many = from_arrays({"x": np.concatenate([images] * 4)})
    one, eleven, all_of_them = (named(saturation(model, many, count))[PLANTED].pairs for count in (1, 11, 1000))
    assert (eleven, all_of_them) == (11 * one, 20 * one)


def test_nothing_to_count_is_an_error() -> None:
    """A float model, and a quantized one without an image, raise instead of finding nothing."""
    model, feeds, _ = net_and_feeds(Recipe())
    with pytest.raises(QuantizationError, match="give the quantized model"):
        saturation(float_net(np.random.default_rng(0)), feeds)
    with pytest.raises(DataError, match="0 samples are too few"):
        saturation(model, feeds, 0)


def test_a_convolution_whose_output_stays_in_float_is_not_listed() -> None:
    """Where nothing quantizes a convolution's output again it is computed in float, where nothing saturates."""
    model, feeds, _ = net_and_feeds(Recipe())
    whole = len(saturation(model, feeds))
    node = next(node for node in model.graph.node if node.name == "node_planted")
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    found = named(saturation(model, feeds))
    assert PLANTED not in found
    assert len(found) == whole - 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (7, 9, 4), (20, 64, 33)])
def test_sums_of_pairs_are_those_of_a_loop(shape: tuple[int, int, int]) -> None:
    """Counts, worst and loss equal a loop's over rows, columns and pairs, for odd and even inner dimensions."""
    rows, inner, columns = shape
    rng = np.random.default_rng(rows)
    left = rng.choice([0, 1, 127, 128, 129, 254, 255], (rows, inner)).astype(np.uint8)
    right = rng.choice([-128, -127, -64, 0, 1, 126, 127], (inner, columns)).astype(np.int8)
    lost, worst, saturated = np.zeros((rows, columns)), 0, 0
    for row, column in itertools.product(range(rows), range(columns)):
        terms = [int(a) * int(b) for a, b in zip(left[row], right[:, column], strict=True)] + [0] * (inner % 2)
        for index in range(0, len(terms), 2):
            value = terms[index] + terms[index + 1]
            worst = max(worst, abs(value))
            over = value - min(max(value, -32768), 32767)
            lost[row, column] += over
            saturated += over != 0
    found = pair_sums(left, right)
    assert (found.pairs, found.saturated, found.worst) == (rows * columns * ((inner + 1) // 2), saturated, worst)
    np.testing.assert_array_equal(found.lost, lost)
    assert saturated or inner < 3


def test_the_last_sums_that_fit_do_not_count() -> None:
    """-32768 and 32767 fit; one beyond either does not."""
    left = np.array([[128, 128, 1, 0], [129, 128, 0, 0]], dtype=np.uint8)
    found = pair_sums(left, np.array([[-128], [-128], [0], [0]], dtype=np.int8))
    assert (found.saturated, found.worst) == (1, 128 * 257)
    assert found.lost.tolist() == [[0], [-128]]
    found = pair_sums(np.array([[255, 191], [255, 192]], dtype=np.uint8), np.array([[127], [2]], dtype=np.int8))
    assert (found.saturated, found.worst) == (1, 32769)
    assert found.lost.tolist() == [[0], [2]]


ATTRIBUTES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 2, 0, 1], "strides": [2, 1]},
    {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    {"auto_pad": "VALID", "strides": [2, 2]},
    {"group": 2},
]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
def test_products_make_up_the_convolution(attributes: dict[str, Any]) -> None:
    """The products of a layer, put together, are the convolution that the onnx package's reference computes."""
    rng = np.random.default_rng(3)
    levels, zero = rng.integers(0, 256, (2, 6, 7, 8)).astype(np.uint8), 31
    weights = rng.integers(-128, 128, (4, 6 // attributes.get("group", 1), 3, 2)).astype(np.int8)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    x, w = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xw")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", [x, w], [y]), opset_imports=[helper.make_opsetid("", 21)])
    feeds = {"x": levels.astype(np.float32) - zero, "w": weights.astype(np.float32)}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    columns = [(rows.astype(int) - zero) @ part.astype(int) for rows, part, _ in products(node, weights, levels, zero)]
    got = np.concatenate(columns, axis=1).reshape(2, *expected.shape[2:], 4).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(got, expected)
