"""float16 models: held to numpy's and torch's own float16, and to what float16 can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantization import zoo
from torch.nn import functional

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import layers_of, weights_of
from edgecnn.quantization.half import half_losses, to_half
from edgecnn.quantization.source import read_source

EPSILON = 2.0**-11  # float16 rounds by at most this share


def run(model: onnx.ModelProto, feeds: zoo.Arrays) -> list[np.ndarray]:
    """Run on the CPU, which computes in float32 between casts, and drops pairs of casts and with them their rounding."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def one_layer(weight: np.ndarray) -> onnx.ModelProto:
    """Make a 1x1 convolution of one pixel, which is a matrix product."""
    graph = "net (float[N,4,1,1] x) => (float[N,3,1,1] y) { y = Conv(x, w) }"
    return zoo.build(graph, {"w": weight.reshape(3, 4, 1, 1)})


def set_weight(model: onnx.ModelProto, *values: float) -> onnx.ModelProto:
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array.flat[: len(values)] = values
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[0].name))
    return model


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model_becomes_half_and_keeps_its_signature(name: str, tmp_path: Path) -> None:
    """The result loads, takes and gives what it did, holds its layers' weights in float16 and errs by float16's rounding."""
    model = read_source(zoo.save(zoo.ZOO[name](), tmp_path / "model.onnx")).model
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(half, full_check=True)
    assert list(half.graph.input) == list(model.graph.input)
    assert [value.name for value in half.graph.output] == [value.name for value in model.graph.output]
    assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in half.graph.output)
    weights = weights_of(half)
    layers = layers_of(half)
    assert [layer.weight for layer in layers] == [layer.weight for layer in layers_of(model)]
    assert all(weights[layer.weight].data_type == TensorProto.FLOAT16 for layer in layers)
    feeds = zoo.feeds(model, 1 if name == "fixed_batch" else 2)
    for wanted, got in zip(run(model, feeds), run(half, feeds), strict=True):
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        # A handful of roundings, each of half a unit; and some, or nothing was in float16 at all.
        assert 0 < error < 12 * EPSILON


def test_one_layer_is_numpys_float16() -> None:
    """Onnx's evaluator gives the products of numpy's float16, rounded; the CPU provider has the same weights."""
    random = np.random.default_rng(0)
    weight, x = (random.normal(size=shape).astype(np.float32) for shape in ((3, 4), (50, 4)))
    half, feeds = to_half(one_layer(weight)), {"x": x.reshape(50, 4, 1, 1)}
    exact = x.astype(np.float16).astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T
    (rounded,) = ReferenceEvaluator(half).run(None, feeds)
    assert np.array_equal(rounded, rounded.astype(np.float16))
    np.testing.assert_allclose(rounded.reshape(50, 3), exact, rtol=4 * EPSILON, atol=4 * EPSILON)
    on_cpu = x.astype(np.float64) @ weight.astype(np.float16).astype(np.float64).T
    np.testing.assert_allclose(run(half, feeds)[0].reshape(50, 3), on_cpu, atol=2e-6)
    assert np.abs(on_cpu - x.astype(np.float64) @ weight.astype(np.float64).T).max() > 1e-4


def test_a_small_net_is_torchs_half(tmp_path: Path) -> None:
    """The plain net in float16 gives what torch's half gives, within a few roundings."""
    model = read_source(zoo.save(zoo.plain(), tmp_path / "model.onnx")).model
    w = {
        name: torch.from_numpy(numpy_helper.to_array(tensor).copy()).half()
        for name, tensor in weights_of(model).items()
    }
    feeds = zoo.feeds(model, 4)
    x = functional.conv2d(torch.from_numpy(feeds["image"]).half(), w["one.weight"], w["one.bias"], padding=1).relu()
    x = functional.conv2d(functional.max_pool2d(x, 2), w["two.weight"], w["two.bias"], padding=1).relu()
    wanted = functional.linear(x.mean((2, 3)), w["head.weight"], w["head.bias"]).float().numpy()
    np.testing.assert_allclose(run(to_half(model), feeds)[0], wanted, atol=4 * EPSILON * np.abs(wanted).max())


def test_weights_beyond_float16_are_refused() -> None:
    """A weight that would become infinite is refused by name; the largest that fits is converted to itself."""
    largest = set_weight(one_layer(np.ones((3, 4), np.float32)), 65504)
    assert numpy_helper.to_array(weights_of(to_half(largest))["w"]).flat[0] == 65504
    assert half_losses(largest) == ()
    beyond = set_weight(one_layer(np.ones((3, 4), np.float32)), 65520, -1e6)
    with pytest.raises(QuantizationError, match=r"float16 ends at 65504.*: w \(2 of 12\); keep float32"):
        to_half(beyond)


def test_weights_too_small_for_float16_are_counted() -> None:
    """Values under half the smallest float16, 2 ** -25, count as lost; 0 itself and what still rounds up do not."""
    model = set_weight(one_layer(np.ones((3, 4), np.float32)), 2.0**-26, -1e-12, 0, 2.0**-24, 2.0**-25 * 1.01)
    (loss,) = half_losses(model)
    assert (loss.weight, loss.too_large, loss.too_small, loss.of) == ("w", 0, 2, 12)
    half = numpy_helper.to_array(weights_of(to_half(model))["w"]).ravel()
    assert np.abs(half[:5].astype(np.float64)).tolist() == pytest.approx([2**-24, 2**-24, 0, 2**-24, 2**-24])


def test_a_converter_that_does_nothing_or_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the converter to return the model as it is, or to give up, that would be an error."""
    from onnxruntime.transformers import float16

    monkeypatch.setattr(float16, "convert_float_to_float16", lambda model, keep_io_types: model)
    with pytest.raises(QuantizationError, match="left every weight as it was"):
        to_half(zoo.plain())

    def fail(model: onnx.ModelProto, keep_io_types: bool) -> onnx.ModelProto:
        raise AssertionError("no\nway")

    monkeypatch.setattr(float16, "convert_float_to_float16", fail)
    with pytest.raises(QuantizationError, match=r"converting to float16 failed \(no way\)"):
        to_half(zoo.plain())
