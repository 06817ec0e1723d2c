"""Quantization-aware training: it rounds what the quantized model rounds, and wins back what quantization lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecnn.data import DataOptions, open_data
from edgecnn.errors import QuantizationError, TrainingError
from edgecnn.metrics import distance
from edgecnn.quantization import operators
from edgecnn.quantization.fake_quantization import FakeQuantization, Grid, Layout, read_layout
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.finetune import TunedEpoch, finetune
from edgecnn.quantization.graph_module import GraphModule, write_back
from edgecnn.quantization.qdq import activation_tensors, quantize
from edgecnn.quantization.recipe import Recipe

Array = npt.NDArray[Any]
Ranges = dict[str, tuple[float, float]]
SEVEN = Recipe(reduced_range=True)


@dataclass
class Stand:
    """Stands in for a FeedSet: arrays in memory, fed at most `limit` at once."""

    name: str
    images: Array
    labels: npt.NDArray[np.int64] | None
    limit: int = 1000

    @property
    def count(self) -> int:
        return len(self.images)

    def subset(self, indices: Array) -> Stand:
        labels = None if self.labels is None else self.labels[indices]
        return Stand(self.name, self.images[indices], labels, self.limit)

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        size = min(size, self.limit)
        for start in range(0, self.count, size):
            yield {self.name: self.images[start : start + size]}


def tune(
    model: onnx.ModelProto, ranges: Ranges, train: Stand, recipe: Recipe = SEVEN, floats: Collection[str] = (), **options: Any
) -> tuple[onnx.ModelProto, Ranges]:  # fmt: skip
    options = {"output": "logits", "batch_size": 32, **options}
    return finetune(model, ranges, recipe, floats, cast(FeedSet, train), **options)


def untrained(seed: int = 0) -> onnx.ModelProto:
    """Build two convolutions and a head for 8x8 digits, with random weights."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in {"a": (8, 1, 3, 3), "b": (16, 8, 3, 3), "head": (10, 256)}.items():
        weights[f"{name}.weight"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.bias"] = np.zeros(shape[0])
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["a.relu"], name="a_relu"),
        helper.make_node("Conv", ["a.relu", "b.weight", "b.bias"], ["b"], name="b", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["b.relu"], name="b_relu"),
        helper.make_node("Flatten", ["b.relu"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], name="head", transB=1),
        helper.make_node("Softmax", ["logits"], ["p"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture(scope="module")
def digits() -> tuple[Stand, Stand]:
    """Return training and test images of the digits, normalised."""
    data = open_data("digits", DataOptions())
    parts = []
    for part in (data.train, data.test):
        images = ((part.pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2).copy()
        parts.append(Stand("x", images, part.labels))
    return parts[0], parts[1]


@pytest.fixture(scope="module")
def trained(digits: tuple[Stand, Stand]) -> onnx.ModelProto:
    """Return the small net, trained in float for some seconds."""
    train, model = digits[0], untrained()
    assert train.labels is not None
    module, rng = GraphModule(model), np.random.default_rng(0)
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(8):
        for where in np.array_split(rng.permutation(train.count), train.count // 64):
            logits = module({"x": torch.from_numpy(train.images[where])}, ["logits"])["logits"]
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.labels[where]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return write_back(module, model)


@pytest.fixture(scope="module")
def unbalanced(trained: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same function with every other channel of the first layer 300 times as large, as folded norms can leave it.

    In eight bits the small channels, and the weights that read the large ones, are then nearly nothing.
    """
    model = onnx.ModelProto.FromString(trained.SerializeToString())
    factor = np.where(np.arange(8) % 2, 1.0, 300.0).astype(np.float32)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name == "a.weight":
            value = value * factor[:, None, None, None]
        elif tensor.name == "a.bias":
            value = value * factor
        elif tensor.name == "b.weight":
            value = value / factor[None, :, None, None]
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def answers(model: onnx.ModelProto, feeds: Stand, wanted: list[str], fused: bool = True) -> list[Array]:
    """Compute any tensors in ONNX Runtime, with its fused integer kernels or operator by operator."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    there = {value.name for value in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in there)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    parts = [session.run(wanted, batch) for batch in feeds.batches(128)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def watched(model: onnx.ModelProto, feeds: Stand) -> Ranges:
    """Take the least and largest value of every tensor that is to be quantized."""
    names = [name for name in activation_tensors(model) if name != feeds.name]
    ranges = {name: (float(v.min()), float(v.max())) for name, v in zip(names, answers(model, feeds, names), strict=True)}  # fmt: skip
    return ranges | {feeds.name: (float(feeds.images.min()), float(feeds.images.max()))}


def right(model: onnx.ModelProto, feeds: Stand) -> float:
    return float((answers(model, feeds, ["logits"])[0].argmax(1) == feeds.labels).mean())


def rounded_logits(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Stand, recipe: Recipe) -> Array:
    """Compute the logits of the float model with fake quantization, in torch."""
    fakes = FakeQuantization(read_layout(model, quantized), 64 if recipe.reduced_range else 127)
    with torch.no_grad():
        logits: Array = GraphModule(model)({"x": torch.from_numpy(feeds.images)}, ["logits"], fakes.touch)["logits"].numpy()  # fmt: skip
    return logits


def scales_of(quantized: onnx.ModelProto) -> dict[str, float]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    return {node.input[0]: found[node.input[1]].item() for node in quantized.graph.node if node.op_type == "QuantizeLinear"}  # fmt: skip


def test_the_layout_is_what_the_quantizer_made(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """Tensors, number types and channel axes are those of the quantized model, and layers in float are not in it."""
    ranges = watched(trained, digits[0])
    layout = read_layout(trained, quantize(trained, ranges, SEVEN))
    assert set(layout.activations) == {"x", "a.relu", "b.relu", "flat"}
    assert layout.weights == {"a.weight": 0, "b.weight": 0, "head.weight": 0}
    assert not layout.constants
    low, high = ranges["x"]
    grid = layout.activations["x"]
    assert grid.scale == pytest.approx((high - low) / 255, rel=1e-6)
    assert (grid.zero_point, grid.least, grid.most) == (round(-low / grid.scale), 0, 255)
    assert layout.activations["flat"].key == layout.activations["b.relu"].key
    assert set(read_layout(trained, quantize(trained, ranges, SEVEN, ["b", "head"])).weights) == {"a.weight"}
    signed = read_layout(trained, quantize(trained, ranges, Recipe(activations="int8", integer_bias=False)))
    assert {(one.zero_point, one.least, one.most) for one in signed.activations.values()} == {(0, -128, 127)}
    assert signed.weights == layout.weights


def residual() -> onnx.ModelProto:
    """Build a net with a constant that is added, a sum, and a quantized tensor for its output."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)), "shift": rng.normal(size=(1, 4, 1, 1)), "v": rng.normal(size=(4, 4, 1, 1))}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c"),
        helper.make_node("Add", ["c", "shift"], ["d"], name="d"),
        helper.make_node("Conv", ["d", "v"], ["e"], name="e"),
        helper.make_node("Add", ["d", "e"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 3, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def test_constants_and_outputs_are_rounded_too() -> None:
    """A constant that is quantized as an activation, and a quantized output of the graph, are computed as in the model."""
    model = residual()
    feeds = Stand("x", np.random.default_rng(1).normal(size=(16, 4, 3, 3)).astype(np.float32), None)
    quantized = quantize(model, watched(model, feeds), Recipe())
    layout = read_layout(model, quantized)
    assert {"x", "c", "d", "e", "y"} == set(layout.activations)
    assert set(layout.constants) == {"shift"}
    with torch.no_grad():
        fakes = FakeQuantization(layout, 127)
        found = GraphModule(model)({"x": torch.from_numpy(feeds.images)}, ["y"], fakes.touch)["y"].numpy()
    (expected,) = answers(quantized, feeds, ["y"], fused=False)
    # A value on the border between two steps may fall to either side.
    assert np.abs(found - expected).max() <= 1.01 * layout.activations["y"].scale
    assert (np.abs(found - expected) < 1e-5).mean() > 0.99


@pytest.mark.parametrize("learn", [False, True])
def test_activations_are_rounded_as_onnx_defines_it(learn: bool) -> None:
    """Rounding, clipping and the gradient, which is 1 inside the range and 0 where a value was clipped, are as by hand."""
    grid = Grid("scale", 0.05, 40, 0, 255)
    fakes = FakeQuantization(Layout({"t": grid}, {}, {}), 127, learn)
    # Halfway between two steps nothing is asked.
    value = torch.tensor([-9.0, -2.01, -1.99, -0.061, 0.0, 0.012, 0.238, 10.74, 10.76, 99.0], requires_grad=True)
    result = fakes.touch("t", value)
    levels = np.clip(np.rint(value.detach().numpy() / np.float32(0.05)) + 40, 0, 255)
    np.testing.assert_allclose(result.detach().numpy(), (levels - 40) * 0.05, rtol=1e-6)
    (gradient,) = torch.autograd.grad(result.sum(), value)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert fakes.touch("other", value) is value


def test_the_scales_gradient_is_that_of_a_learned_step() -> None:
    """A clipped value pulls the range with all its weight, one inside it with its rounding error (Esser et al. 2020, eq. 3)."""
    grid = Grid("scale", 0.5, 10, 0, 20)
    fakes = FakeQuantization(Layout({"t": grid}, {}, {}), 127, learn=True)
    value = torch.tensor([0.6, -1.1, 77.0, -77.0])
    upstream = torch.tensor([1.0, 2.0, 3.0, 5.0])
    (upstream * fakes.touch("t", value)).sum().backward()  # type: ignore[no-untyped-call]
    inside = [round(0.6 / 0.5) - 0.6 / 0.5, round(-1.1 / 0.5) + 1.1 / 0.5]
    by_scale = np.dot(upstream.numpy(), [*inside, 20 - 10, 0 - 10])
    assert fakes.growth.grad is not None
    assert fakes.growth.grad.item() == pytest.approx(by_scale * 0.5, rel=1e-4)  # d scale / d growth is the scale


@pytest.mark.parametrize("most", [127, 64])
@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_weights_are_rounded_symmetrically(most: int, axis: int | None) -> None:
    """A weight's largest magnitude in each channel becomes the largest level, a channel of zeros stays zero."""
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 4)).astype(np.float32)
    if axis is not None:
        weight.swapaxes(0, axis)[2] = 0
    value = torch.from_numpy(weight).requires_grad_()
    fakes = FakeQuantization(Layout({}, {"w": axis}, {}), most)
    found = fakes.touch("w", value)
    moved = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(4, -1)
    scale = np.abs(moved).max(1, keepdims=True) / most
    expected = np.rint(moved / np.where(scale == 0, 1, scale)) * scale
    back = found.detach().numpy()
    back = back.reshape(1, -1) if axis is None else np.moveaxis(back, axis, 0).reshape(4, -1)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), value)
    assert bool((gradient == 1).all())


@pytest.mark.parametrize(
    ("recipe", "floats"),
    [
        (Recipe(), []),
        (SEVEN, []),
        (SEVEN, ["a"]),
        (SEVEN, ["b", "head"]),
        (Recipe(activations="int8", integer_bias=False), []),
    ],
    ids=["eight", "seven", "first in float", "last in float", "signed"],
)
def test_what_is_trained_is_what_is_run(
    trained: onnx.ModelProto, digits: tuple[Stand, Stand], recipe: Recipe, floats: list[str]
) -> None:
    """Fake-quantized logits in torch are those of the quantized model in ONNX Runtime, unfused to rounding, fused closely."""
    train, test = digits
    ranges = watched(trained, train)
    quantized = quantize(trained, ranges, recipe, floats)
    fake = rounded_logits(trained, quantized, test, recipe)
    exact = distance(answers(quantized, test, ["logits"], fused=False)[0], fake)
    fused = distance(answers(quantized, test, ["logits"])[0], fake)
    error = distance(answers(trained, test, ["logits"])[0], fake)
    assert exact.sqnr_db is not None
    assert exact.sqnr_db > 60
    assert fused.sqnr_db is not None
    assert error.sqnr_db is not None
    assert fused.sqnr_db > error.sqnr_db + 6
    wrong = rounded_logits(trained, quantized, test, Recipe(reduced_range=not recipe.reduced_range))
    assert (distance(answers(quantized, test, ["logits"])[0], wrong).sqnr_db or 0) < fused.sqnr_db - 6


def test_what_unbalanced_channels_lose_is_won_back(unbalanced: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """A net that loses tens of points to rounding has most of them back after two short epochs, in the same layout."""
    train, test = digits
    ranges, before = watched(unbalanced, train), unbalanced.SerializeToString()
    plain = quantize(unbalanced, ranges, SEVEN)
    epochs: list[TunedEpoch] = []
    tuned, after = tune(unbalanced, ranges, train, on_epoch=epochs.append)
    again = quantize(tuned, after, SEVEN)
    in_float, lost, won = right(unbalanced, test), right(plain, test), right(again, test)
    assert in_float - lost > 0.15
    assert won > in_float - (in_float - lost) / 3
    assert unbalanced.SerializeToString() == before
    assert after == ranges
    assert [(n.name, n.op_type, *n.input, *n.output) for n in plain.graph.node] == [
        (n.name, n.op_type, *n.input, *n.output) for n in again.graph.node
    ]
    assert [(one.number, one.epochs, one.best) for one in epochs] == [(1, 2, True), (2, 2, True)]
    assert epochs[0].loss > epochs[1].loss > 0
    assert 0.5 < epochs[1].agreement <= 1


def test_the_float_models_answers_are_enough(unbalanced: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """Without labels the float model's own answers on the images bring the quantized net back to them."""
    train, test = digits
    unlabelled = Stand("x", train.images, None)
    ranges = watched(unbalanced, train)
    (truth,) = answers(unbalanced, test, ["logits"])
    plain = distance(truth, answers(quantize(unbalanced, ranges, SEVEN), test, ["logits"])[0])
    tuned, after = tune(unbalanced, ranges, unlabelled)
    again = distance(truth, answers(quantize(tuned, after, SEVEN), test, ["logits"])[0])
    assert again.top1_agreement > plain.top1_agreement + 0.1
    assert again.rms < plain.rms


def test_ranges_that_cut_off_are_widened_where_they_may_be(
    trained: onnx.ModelProto, digits: tuple[Stand, Stand]
) -> None:
    """With learned scales, ranges that clip most of an activation grow, the quantizer takes them over, and more is right."""
    train, test = digits
    ranges = {name: (low, high) if name == "x" else (low / 12, high / 12) for name, (low, high) in watched(trained, train).items()}  # fmt: skip
    tuned, after = tune(trained, ranges, train, learn_ranges=True, lr=1e-2)
    for name in ("a.relu", "b.relu"):
        assert after[name][1] > 1.05 * ranges[name][1]
        assert after[name][0] == ranges[name][0] == 0
    before, quantized = quantize(trained, ranges, SEVEN), quantize(tuned, after, SEVEN)
    old, new = scales_of(before), scales_of(quantized)
    for name in ("x", "a.relu", "b.relu"):
        assert new[name] / old[name] == pytest.approx(after[name][1] / ranges[name][1], rel=1e-5)
    zeros = [[numpy_helper.to_array(t).item() for t in one.graph.initializer if t.name == "x_zero_point"] for one in (before, quantized)]  # fmt: skip
    assert zeros[0] == zeros[1] != []
    assert right(quantized, test) > right(before, test) + 0.05


def test_layers_in_float_stay_in_float(unbalanced: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """With the hurt layers left in float nothing is lost, and training does no harm."""
    train, test = digits
    ranges, floats = watched(unbalanced, train), ["a", "b"]
    tuned, after = tune(unbalanced, ranges, train, floats=floats, epochs=1)
    assert right(quantize(tuned, after, SEVEN, floats), test) > right(unbalanced, test) - 0.02


def test_a_seed_gives_the_same_bytes(unbalanced: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """One seed gives the same weights to the bit, another seed others."""
    few = digits[0].subset(np.arange(100))
    ranges = watched(unbalanced, few)
    first, second, other = (tune(unbalanced, ranges, few, seed=seed, epochs=1)[0].SerializeToString() for seed in (5, 5, 6))  # fmt: skip
    assert first == second != other


def test_small_batches_are_added_up(unbalanced: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """A model that takes 8 images at once is trained as one that takes 32, to rounding."""
    few = digits[0].subset(np.arange(96))
    ranges = watched(unbalanced, few)
    whole, _ = tune(unbalanced, ranges, few, epochs=1)
    parts, _ = tune(unbalanced, ranges, Stand("x", few.images, few.labels, limit=8), epochs=1)
    start = [numpy_helper.to_array(tensor) for tensor in unbalanced.graph.initializer]
    one, two = ([numpy_helper.to_array(tensor) for tensor in model.graph.initializer] for model in (whole, parts))
    for before, a, b in zip(start, one, two, strict=True):
        assert np.abs(a - before).max() > 0
        assert np.abs(a - b).mean() < 0.05 * np.abs(a - before).mean()


def test_weights_that_got_worse_are_not_given_back(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """Where every epoch ends worse than the model that came in, the very same weights come back, and the epochs say so."""
    few = digits[0].subset(np.arange(200))
    ranges, epochs = watched(trained, few), list[TunedEpoch]()
    tuned, after = tune(trained, ranges, few, lr=2.0, learn_ranges=True, on_epoch=epochs.append)
    assert [one.best for one in epochs] == [False, False]
    assert epochs[0].agreement < 0.9
    assert after == ranges
    assert tuned.SerializeToString() == trained.SerializeToString()


def test_the_epochs_are_judged_as_the_quantized_model_is(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """An epoch's agreement with the float model is what ONNX Runtime counts on the quantized model of its weights."""
    few = digits[0].subset(np.arange(300))  # fewer than are judged, so that all are
    ranges = {name: (low, high) if name == "x" else (low / 6, high / 6) for name, (low, high) in watched(trained, few).items()}  # fmt: skip
    epochs = list[TunedEpoch]()
    tuned, after = tune(trained, ranges, few, epochs=1, on_epoch=epochs.append)
    assert epochs[0].best
    truth, found = (answers(model, few, ["logits"])[0] for model in (trained, quantize(tuned, after, SEVEN)))
    assert distance(truth, found).top1_agreement == pytest.approx(epochs[0].agreement, abs=0.01)
    assert epochs[0].agreement < 0.99


def test_a_loss_that_is_no_number_ends_it(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """Steps far too large end in one line that says what to do, and no model is given back."""
    few = digits[0].subset(np.arange(200))
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf); use a smaller learning rate"):
        tune(trained, watched(trained, few), few, lr=1e37, epochs=9)


def test_an_interrupt_goes_through(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """Ctrl-C is not swallowed."""
    few = digits[0].subset(np.arange(64))

    def interrupt(epoch: TunedEpoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(trained, watched(trained, few), few, on_epoch=interrupt)


def test_a_graph_that_torch_computes_differently_is_refused(
    trained: onnx.ModelProto, digits: tuple[Stand, Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that is planted wrong is noticed before any training, by ONNX Runtime's own answers."""
    few = digits[0].subset(np.arange(64))
    ranges = watched(trained, few)
    monkeypatch.setitem(operators.OPERATORS, "Relu", lambda call, x: x.clamp(min=-0.05))
    with pytest.raises(QuantizationError, match="differ from ONNX Runtime's"):
        tune(trained, ranges, few)


def test_what_cannot_be_trained_is_said(trained: onnx.ModelProto, digits: tuple[Stand, Stand]) -> None:
    """No images, no epochs, unknown logits, labels beyond the classes, one class, and layers all in float are errors."""
    few = digits[0].subset(np.arange(32))
    ranges = watched(trained, few)
    for options, says in (
        ({"train": few.subset(np.arange(0))}, "there are 0 and 2"),
        ({"epochs": 0}, "there are 32 and 0"),
        ({"output": "scores"}, "'scores'"),
        ({"train": Stand("x", few.images, np.full(32, 10))}, "labels go from 10 to 10, and the model has 10 classes"),
        ({"floats": ["a", "b", "head"]}, "no layer is left"),
    ):
        with pytest.raises(QuantizationError, match=says) as caught:
            tune(**{"model": trained, "ranges": ranges, "train": few, **options})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(QuantizationError, match="is no tensor of the float model"):
        read_layout(residual(), quantize(trained, ranges, SEVEN))


def test_a_real_export_keeps_its_pixels(bundle_folder: Path) -> None:
    """A net that edgecnn exported is tuned through its own normalisation, and its image is still the first quantized tensor."""
    data = open_data("digits", DataOptions())
    model = onnx.shape_inference.infer_shapes(onnx.load(str(bundle_folder / "fp32.onnx")))
    train = Stand("image", data.train.pixels[:256], data.train.labels[:256])
    ranges = {name: span for name, span in watched(model, train).items() if name != "image"}
    tuned, after = tune(model, ranges, train, epochs=1, lr=1e-3)
    quantized = quantize(tuned, after, SEVEN)
    assert any(node.name == "image_dequantize" for node in quantized.graph.node)
    assert "permute" not in read_layout(tuned, quantized).activations
    (truth,), (found,) = answers(model, train, ["logits"]), answers(quantized, train, ["logits"])
    assert distance(truth, found).top1_agreement > 0.8
    assert not np.array_equal(found, answers(quantize(model, ranges, SEVEN), train, ["logits"])[0])
