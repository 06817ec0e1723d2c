"""Equalization: the float function stays, only pairs that allow it are touched, and a hard net becomes an easy one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from quantization.graphs import Feeds, arrays, graph, node, quantized, run
from quantization.hard import easy_net, hard_net, images

from edgecnn.errors import QuantizationError
from edgecnn.metrics import distance
from edgecnn.quantization.equalization import Equalized, equalize, tensors_between

Array = npt.NDArray[Any]
SHAPE = (3, 8, 8)


def spread(rng: np.random.Generator, *shape: int) -> Array:
    """Draw weights whose first two axes differ in size from place to place by a factor of up to 400."""
    sizes = np.exp(rng.uniform(-3, 3, shape[:2]))
    return rng.normal(size=shape) * sizes.reshape(*sizes.shape, *([1] * (len(shape) - 2)))


def seen(model: onnx.ModelProto, x: Array, name: str = "x") -> dict[str, tuple[Array, Array]]:
    """Observe the lowest and highest value of each channel."""
    between = tensors_between(model)
    values = run(model, {name: x}, between)
    axes = {tensor: (0, *range(2, values[tensor].ndim)) for tensor in between}
    return {tensor: (values[tensor].min(axes[tensor]), values[tensor].max(axes[tensor])) for tensor in between}


def check_same_function(model: onnx.ModelProto, shape: tuple[int, ...] = SHAPE) -> Equalized:
    """Equalize in both ways; outputs agree, the model given stays, and only weights of the pairs change."""
    x = np.random.default_rng(9).normal(size=(4, *shape)).astype(np.float32)
    before, truth = model.SerializeToString(), run(model, {"x": x})
    for activations in (None, seen(model, x)):
        equalized = equalize(model, activations=activations)
        assert model.SerializeToString() == before
        onnx.checker.check_model(equalized.model, full_check=True)
        for name, expected in truth.items():
            error = np.abs(run(equalized.model, {"x": x})[name] - expected).max()
            assert error <= 2e-5 * np.abs(expected).max()
        if not equalized.pairs:
            assert equalized.model.SerializeToString() == before
    return equalized


MIDDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("Relu", {}),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.3}),
    "Identity": ("Identity", {}),
    "Dropout": ("Dropout", {}),
    "MaxPool": ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "GlobalAveragePool": ("GlobalAveragePool", {}),
    "ReduceMean": ("ReduceMean", {"axes": [-1, 2]}),
}
STOPS = {
    "Clip": ("Clip", {}), "HardSwish": ("HardSwish", {}), "Sigmoid": ("Sigmoid", {}), "Tanh": ("Tanh", {}),
    "LpNormalization": ("LpNormalization", {"axis": 1}), "Softmax": ("Softmax", {"axis": 1}),
    "Transpose": ("Transpose", {"perm": [0, 1, 3, 2]}), "ReduceMean over channels": ("ReduceMean", {"axes": [1]}),
}  # fmt: skip


def pair_of_convolutions(op: str, attributes: dict[str, Any], extra: str = "") -> onnx.ModelProto:
    """Put one node between two convolutions with spread channels."""
    rng = np.random.default_rng(1)
    nodes = [
        node("Conv", "x a.weight a.bias", "a", pads=[1, 1, 1, 1]),
        node(op, f"a{extra}", "b", **attributes),
        node("Conv", "b c.weight", "y"),
    ]
    weights = {"a.weight": spread(rng, 6, 3, 3, 3), "a.bias": rng.normal(size=6)}
    inputs = 1 if attributes.get("axes") == [1] else 6
    weights["c.weight"] = spread(rng, 5, inputs, 1, 1)
    return graph(nodes, SHAPE, **weights, **{"six": np.array(6.0), "slope": rng.normal(size=(6, 1, 1))})


@pytest.mark.parametrize("name", MIDDLES)
def test_what_is_positively_homogeneous_is_passed(name: str) -> None:
    """Two convolutions with a node in between that takes out a positive factor are a pair, and the function stays."""
    op, attributes = MIDDLES[name]
    (pair,) = check_same_function(pair_of_convolutions(op, attributes)).pairs
    assert (pair.first, pair.second, pair.tensor) == ("a", "c", "b")
    assert max(pair.scales) > 2 * min(pair.scales)


def test_a_slope_for_each_channel_is_passed() -> None:
    """PRelu is passed; its slopes belong to what comes in, so they stay."""
    equalized = check_same_function(pair_of_convolutions("PRelu", {}, " slope"))
    assert len(equalized.pairs) == 1


@pytest.mark.parametrize("name", STOPS)
def test_what_would_notice_a_scale_is_not_crossed(name: str) -> None:
    """A clip at six, a saturating function or one that mixes channels parts the layers, and the model stays as it is."""
    op, attributes = STOPS[name]
    extra = "  six" if op == "Clip" else ""
    assert not check_same_function(pair_of_convolutions(op, attributes, extra)).pairs


def residual() -> onnx.ModelProto:
    """Make a net with a residual addition: a, then b and c in the branch, added to a, then d."""
    rng = np.random.default_rng(2)
    nodes = [
        node("Conv", "x a.weight", "a"), node("Relu", "a", "ar"),
        node("Conv", "ar b.weight", "b", pads=[1, 1, 1, 1]), node("Relu", "b", "br"),
        node("Conv", "br c.weight", "c"), node("Add", "c ar", "sum"), node("Relu", "sum", "sr"),
        node("Conv", "sr d.weight", "y"),
    ]  # fmt: skip
    shapes = {"a": (6, 3, 1, 1), "b": (7, 6, 3, 3), "c": (6, 7, 1, 1), "d": (4, 6, 1, 1)}
    return graph(nodes, SHAPE, **{f"{name}.weight": spread(rng, *shape) for name, shape in shapes.items()})


def test_a_residual_addition_is_not_crossed() -> None:
    """Within the branch there is a pair; the layers before and after the addition keep their weights to the bit."""
    model = residual()
    equalized = check_same_function(model)
    assert [(pair.first, pair.second) for pair in equalized.pairs] == [("b", "c")]
    before, after = arrays(model), arrays(equalized.model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"b.weight", "c.weight"}


def test_a_tensor_that_is_an_output_is_not_rescaled() -> None:
    """Where the graph gives away the tensor between, before or after the Relu, there is no pair."""
    for given in ("a", "b"):
        model = pair_of_convolutions("Relu", {})
        model.graph.output.add(name=given)
        assert not equalize(model).pairs
    assert equalize(pair_of_convolutions("Relu", {})).pairs


def test_a_weight_of_two_layers_is_left_alone() -> None:
    """One weight read by both layers has no scale of its own."""
    rng = np.random.default_rng(3)
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w", "y")]
    assert not check_same_function(graph(nodes, SHAPE, w=spread(rng, 3, 3, 1, 1))).pairs


def test_a_bias_of_two_layers_is_copied() -> None:
    """The bias that the first layer shares with another is rescaled in a copy; the other layer keeps its own."""
    rng = np.random.default_rng(3)
    nodes = [node("Conv", "x v b", "a"), node("Relu", "a", "r"), node("Conv", "r w b", "y")]
    model = graph(nodes, SHAPE, v=spread(rng, 5, 3, 1, 1), w=spread(rng, 5, 5, 1, 1), b=rng.normal(size=5))
    equalized = check_same_function(model)
    assert len(equalized.pairs) == 1
    assert np.array_equal(arrays(equalized.model)["b"], arrays(model)["b"])
    assert len(equalized.model.graph.initializer) == 4


def test_a_graph_with_control_flow_is_left_alone() -> None:
    """A branch reads the tensor between by name, which no node's inputs show; so there is no pair."""
    model = pair_of_convolutions("Relu", {})
    branch = helper.make_graph([node("Identity", "b", "z")], "branch", [], [helper.make_empty_tensor_value_info("z")])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", onnx.TensorProto.BOOL, [], [True]))
    model.graph.node.extend([yes, node("If", "yes", "leak", then_branch=branch, else_branch=branch)])
    model.graph.output.add(name="leak")
    assert not equalize(model).pairs


TAILS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], bool]] = {
    "flatten, Gemm transB": ([node("Flatten", "r", "f"), node("Gemm", "f g bias", "y", transB=1)], {"g": np.ones((7, 54))}, True),
    "flatten, Gemm": ([node("Flatten", "r", "f"), node("Gemm", "f g bias", "y", alpha=0.5)], {"g": np.ones((54, 7))}, True),
    "flatten, Relu, MatMul": ([node("Flatten", "r", "f"), node("Relu", "f", "h"), node("MatMul", "h g", "y")], {"g": np.ones((54, 7))}, True),
    "reshape 0 -1": ([node("Reshape", "r to", "f"), node("Gemm", "f g bias", "y")], {"to": np.array([0, -1]), "g": np.ones((54, 7))}, True),
    "reshape -1 54": ([node("Reshape", "r to", "f"), node("Gemm", "f g bias", "y")], {"to": np.array([-1, 54]), "g": np.ones((54, 7))}, True),
    "pool, flatten": ([node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"), node("Gemm", "f g bias", "y")], {"g": np.ones((6, 7))}, True),
    "mean without its axes": ([node("ReduceMean", "r", "f", axes=[2, 3], keepdims=0), node("Gemm", "f g bias", "y")], {"g": np.ones((6, 7))}, True),
    "squeeze": ([node("GlobalMaxPool", "r", "p"), node("Squeeze", "p to", "f"), node("Gemm", "f g bias", "y")], {"to": np.array([2, 3]), "g": np.ones((6, 7))}, True),
    "ConvTranspose in groups": ([node("ConvTranspose", "r g", "y", group=3)], {"g": np.ones((6, 4, 2, 2))}, True),
    "depthwise": ([node("Conv", "r g", "y", group=6)], {"g": np.ones((12, 1, 3, 3))}, True),
    "a constant added": ([node("Add", "r plane", "q"), node("Conv", "q g", "y")], {"plane": np.ones((6, 3, 3)), "g": np.ones((2, 6, 1, 1))}, True),
    "places mixed into rows": ([node("Reshape", "r to", "f"), node("Gemm", "f g bias", "y")], {"to": np.array([-1, 6]), "g": np.ones((6, 7))}, False),
    "channels last": ([node("Transpose", "r", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f"), node("Gemm", "f g bias", "y")], {"g": np.ones((54, 7))}, False),
    "a product over columns": ([node("MatMul", "r g", "y")], {"g": np.ones((3, 7))}, False),
    "mean over the images": ([node("ReduceMean", "r", "f", axes=[0, 2, 3], keepdims=0), node("MatMul", "f g", "y")], {"g": np.ones((6, 7))}, False),
    "two readers": ([node("Conv", "r g", "c"), node("ReduceSum", "r", "s"), node("Add", "c s", "y")], {"g": np.ones((2, 6, 1, 1))}, False),
    "added to itself": ([node("Add", "r r", "d"), node("Conv", "d g", "y")], {"g": np.ones((2, 6, 1, 1))}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("first", ["Conv", "ConvTranspose"])
def test_the_second_layer_is_rescaled_where_its_channels_are_known(name: str, first: str) -> None:
    """Every second layer that sums over known channels gives a pair and the same function; every other gives no pair."""
    rng = np.random.default_rng(4)
    tail, constants, paired = TAILS[name]
    weights = {
        name: array if array.dtype == np.int64 else spread(rng, *array.shape) for name, array in constants.items()
    }
    shape = (6, 1, 3, 3) if first == "Conv" else (3, 2, 3, 3)
    weights |= {"a.weight": spread(rng, *shape), "a.bias": rng.normal(size=6), "bias": rng.normal(size=7)}
    nodes = [node(first, "x a.weight a.bias", "a", group=3, pads=[1, 1, 1, 1]), node("Relu", "a", "r"), *tail]
    pairs = check_same_function(graph(nodes, (3, 3, 3), **weights), (3, 3, 3)).pairs
    assert len(pairs) == paired
    assert all(len(pair.scales) == 6 for pair in pairs)


@pytest.mark.parametrize("bias", [(), (1,), (9,), (4, 1), (1, 9)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_fully_connected_layers_are_a_pair(bias: tuple[int, ...], transposed: int) -> None:
    """Gemm, with every shape of its third input, and MatMul with its bias added are rescaled."""
    rng = np.random.default_rng(5)
    weights = {"g": spread(rng, *((9, 5) if transposed else (5, 9))), "m": spread(rng, 9, 8), "n": spread(rng, 8, 3)}
    nodes = [
        node("Gemm", "x g c", "a", transB=transposed, beta=0.5), node("Relu", "a", "b"), node("MatMul", "b m", "d"),
        node("Add", "e d", "f"), node("LeakyRelu", "f", "h"), node("Gemm", "h n", "y"),
    ]  # fmt: skip
    model = graph(nodes, (5,), **weights, c=rng.normal(size=bias), e=rng.normal(size=8))
    assert len(check_same_function(model, (5,)).pairs) == 2


ALONE: dict[str, tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "an input transposed, so that rows are no channels": (
        [node("Gemm", "x g", "a"), node("Relu", "a", "b"), node("Gemm", "b h", "y", transA=1)],
        {"g": (5, 4), "h": (4, 3)}, (5,),
    ),
    "a first weight that another layer has too": (
        [node("Conv", "x v", "a"), node("Relu", "a", "r"), node("Conv", "r w", "c"), node("Conv", "x v", "k"), node("Add", "c k", "y")],
        {"v": (4, 3, 1, 1), "w": (4, 4, 1, 1)}, SHAPE,
    ),
    "a second weight that another layer has too": (
        [node("Conv", "x v", "a"), node("Relu", "a", "r"), node("Conv", "r w", "c"), node("Conv", "x w", "k"), node("Add", "c k", "y")],
        {"v": (3, 3, 1, 1), "w": (4, 3, 1, 1)}, SHAPE,
    ),
    "the tensor as another's slope": (
        [node("Conv", "x v", "a"), node("PRelu", "x a", "r"), node("Conv", "r w", "y")],
        {"v": (3, 3, 1, 1), "w": (4, 3, 1, 1)}, SHAPE,
    ),
    "the tensor as another's bias": (
        [node("Gemm", "x v", "a"), node("Relu", "a", "r"), node("Gemm", "x w r", "y")], {"v": (4, 4), "w": (4, 4)}, (4,),
    ),
    "a bias that is no constant": (
        [node("Gemm", "x v x", "a"), node("Relu", "a", "r"), node("Gemm", "r w", "y")], {"v": (4, 4), "w": (4, 4)}, (4,),
    ),
    "a product over as many columns as channels": (
        [node("Conv", "x v", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "y")], {"v": (8, 3, 1, 1), "w": (8, 4)}, SHAPE,
    ),
    "a stack of products": (
        [node("MatMul", "x v", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "y")], {"v": (4, 6), "w": (6, 6, 5)}, (4,),
    ),
    "channels on the last of three axes": (
        [node("MatMul", "x v", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "y")], {"v": (4, 6), "w": (6, 5)}, (7, 4),
    ),
    "a mean over as many channels as rows": (
        [node("Conv", "x v", "a"), node("ReduceMean", "a", "r", axes=[1], keepdims=0), node("Conv", "r w", "y")],
        {"v": (8, 3, 1, 1), "w": (4, 8, 1)}, SHAPE,
    ),
    "a constant that adds an axis": (
        [node("Gemm", "x v", "a"), node("Add", "a c", "r"), node("MatMul", "r w", "y")],
        {"v": (4, 6), "c": (2, 1, 6), "w": (6, 5)}, (4,),
    ),
    "two images to a row": (
        [node("Conv", "x v", "a"), node("Reshape", "a to", "r"), node("Gemm", "r w", "y")],
        {"v": (4, 3, 1, 1), "w": (512, 5)}, SHAPE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_what_has_no_channel_of_its_own_is_left_alone(name: str) -> None:
    """No pair is seen where layers follow each other but a channel's scale would be noticed, or is another layer's too."""
    rng = np.random.default_rng(6)
    nodes, shapes, shape = ALONE[name]
    weights = {key: spread(rng, *size) for key, size in shapes.items()}
    assert not check_same_function(graph(nodes, shape, **weights, to=np.array([-1, 512])), shape).pairs


def test_a_batch_size_without_a_number_is_no_hindrance_but_other_sizes_are() -> None:
    """Flattening planes of unknown size leaves unknown how many places a channel has, so there is no pair."""
    tail = [node("Conv", "x v", "a"), node("Flatten", "a", "f"), node("Gemm", "f w", "y")]
    rng = np.random.default_rng(8)
    model = graph(tail, SHAPE, v=spread(rng, 4, 3, 1, 1), w=spread(rng, 256, 5))
    assert len(equalize(model).pairs) == 1
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    assert not equalize(model).pairs


@pytest.mark.parametrize("seed", range(25))
def test_random_nets_keep_their_function(seed: int) -> None:
    """Nets drawn from all of these nodes, branches and outputs among them, compute the same before and after."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {"six": np.array(6.0), "slope": rng.normal(size=(1, 1))}
    tensor, channels, outputs, older = "x", 6, ["y"], []
    for index in range(8):
        name, groups = f"n{index}", int(rng.choice([1, 2, channels]))
        produced = groups * int(rng.integers(1, 3)) if groups > 2 else 2 * int(rng.integers(2, 5))
        transposed = rng.random() < 0.2
        shape = (channels, produced // groups) if transposed else (produced, channels // groups)
        weights[f"{name}.weight"] = spread(rng, *shape, 3, 3)
        weights[f"{name}.bias"] = rng.normal(size=produced)
        op = "ConvTranspose" if transposed else "Conv"
        nodes.append(node(op, f"{tensor} {name}.weight {name}.bias", name, group=groups, pads=[1, 1, 1, 1]))
        activation = str(rng.choice(["Relu", "PRelu", "Clip", "LeakyRelu", "HardSwish", "Relu", "Identity"]))
        extra = {"Clip": "  six", "PRelu": " slope"}.get(activation, "")
        nodes.append(node(activation, name + extra, f"{name}.act"))
        tensor, channels = f"{name}.act", produced
        same = [one for one, size in older if size == channels]
        if same and rng.random() < 0.5:
            nodes.append(node("Add", f"{tensor} {same[0]}", f"{name}.sum"))
            tensor = f"{name}.sum"
        if rng.random() < 0.1:
            outputs.append(tensor)
        older.append((tensor, channels))
    weights |= {"n8.weight": spread(rng, 5, channels, 1, 1), "n8.bias": rng.normal(size=5)}
    nodes += [
        node("Conv", f"{tensor} n8.weight n8.bias", "n8"),
        node("Relu", "n8", "n8.act"),
        node("Flatten", "n8.act", "flat"),
    ]
    weights["last"] = spread(rng, 4, 64 * 5)
    nodes.append(node("Gemm", "flat last", "y", transB=1))
    model = graph(nodes, (6, 8, 8), " ".join(dict.fromkeys(outputs)), **weights)
    assert check_same_function(model, (6, 8, 8)).pairs


def test_the_papers_formula_for_two_layers() -> None:
    """One pass over a pair makes both layers' ranges the root of their product (equation 11, by hand)."""
    model = pair_of_convolutions("Relu", {})
    before, after = arrays(model), arrays(equalize(model, iterations=1).model)
    first = np.abs(before["a.weight"]).max(axis=(1, 2, 3))
    second = np.abs(before["c.weight"]).max(axis=(0, 2, 3))
    assert np.abs(after["a.weight"]).max(axis=(1, 2, 3)) == pytest.approx(np.sqrt(first * second), rel=1e-6)
    assert np.abs(after["c.weight"]).max(axis=(0, 2, 3)) == pytest.approx(np.sqrt(first * second), rel=1e-6)
    assert after["a.bias"] == pytest.approx(before["a.bias"] * np.sqrt(second / first), rel=1e-5)


def test_the_papers_formula_for_three_layers() -> None:
    """With a depthwise layer in between the passes end with all three ranges at the cubic root of their product."""
    rng = np.random.default_rng(7)
    shapes = {"a": (6, 3, 1, 1), "d": (6, 1, 3, 3), "c": (4, 6, 1, 1)}
    weights = {f"{name}.weight": spread(rng, *shape) for name, shape in shapes.items()}
    nodes = [
        node("Conv", "x a.weight", "a"), node("Relu", "a", "ar"), node("Conv", "ar d.weight", "d", group=6),
        node("Relu", "d", "dr"), node("Conv", "dr c.weight", "y"),
    ]  # fmt: skip
    equalized = check_same_function(graph(nodes, SHAPE, **weights))
    after = arrays(equalize(graph(nodes, SHAPE, **weights)).model)
    assert [(pair.first, pair.second) for pair in equalized.pairs] == [("a", "d"), ("d", "c")]
    axes = {"a.weight": (1, 2, 3), "d.weight": (1, 2, 3), "c.weight": (0, 2, 3)}
    root = np.prod([np.abs(weights[name]).max(axis=axis) for name, axis in axes.items()], axis=0) ** (1 / 3)
    for name, axis in axes.items():
        assert np.abs(after[name]).max(axis=axis) == pytest.approx(root, rel=1e-3)


def test_the_formula_with_activations() -> None:
    """Scales are the root of the channel's largest magnitude over the root mean square of its share in each output."""
    model = pair_of_convolutions("LeakyRelu", {"alpha": 0.9})
    ranges = {"b": (-np.array([1.0, 8, 3, 1, 2, 6]), np.array([4.0, 2, 3, 9, 1, 5]))}
    (pair,) = equalize(model, activations=ranges).pairs
    weight = np.abs(arrays(model)["c.weight"][:, :, 0, 0].astype(np.float64))
    shares = np.sqrt(((weight / weight.max(axis=1)[:, None]) ** 2).mean(axis=0))
    assert pair.scales == pytest.approx(np.sqrt(np.array([4, 8, 3, 9, 2, 6]) / shares))


def test_a_channel_that_is_never_seen_is_left_among_the_others() -> None:
    """A dead channel beside one a hundred times too loud gets an ordinary scale, and a faint one is not raised at will."""
    model = pair_of_convolutions("Relu", {})
    high = np.array([0.0, 100, 1, 1, 1e-12, 1])
    scales = np.array(equalize(model, activations={"b": (np.zeros(6), high)}).pairs[0].scales)
    alike = np.array(equalize(model, activations={"b": (np.zeros(6), np.ones(6))}).pairs[0].scales)
    assert scales / alike == pytest.approx([1, 10, 1, 1, 1 / 16, 1])


@pytest.mark.parametrize("high", [np.ones(5), np.ones((6, 1)), np.full(6, np.nan), np.full(6, np.inf)])
def test_ranges_that_do_not_fit_are_an_error(high: Array) -> None:
    """Ranges of too few channels, of another shape or not finite are named, not used."""
    with pytest.raises(QuantizationError, match=r"^b: .*channels"):
        equalize(pair_of_convolutions("Relu", {}), activations={"b": (np.zeros(6), high)})


def sqnr(model: onnx.ModelProto, truth: Array, x: Array) -> float:
    """Quantize and measure the logits' SQNR in dB."""
    value = distance(truth, run(quantized(model, Feeds("image", x)), {"image": x})["logits"]).sqnr_db
    assert value is not None
    return value


@pytest.mark.parametrize("seed", range(4))
def test_a_hard_net_becomes_an_easy_one(seed: int) -> None:
    """A channel a hundred times louder ruins the hard net's int8; equalized, it comes within a decibel of the easy one.

    Judged on the images of the calibration, so that what lies outside of the calibrated range is not what is measured.
    """
    easy, hard, x = easy_net(seed), hard_net(seed), images(192, 1)
    truth = run(easy, {"image": x})["logits"]
    assert np.abs(run(hard, {"image": x})["logits"] - truth).max() < 1e-5 * np.abs(truth).max()
    ranges = seen(hard, x, "image")
    assert len(ranges) == 4
    good = sqnr(easy, truth, x)
    assert good > 35
    assert sqnr(hard, truth, x) < good - 20
    assert sqnr(equalize(hard, activations=ranges).model, truth, x) > good - 1
    assert sqnr(equalize(hard).model, truth, x) > good - 3
