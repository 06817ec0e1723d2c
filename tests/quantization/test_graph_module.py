"""A graph run by torch gives what ONNX's reference evaluator and ONNX Runtime give, operator by operator and whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn.errors import QuantizationError, TrainingError
from edgecnn.quantization.graph_module import GraphModule, write_back
from edgecnn.quantization.operators import OPERATORS

Array = npt.NDArray[Any]


@dataclass
class Case:
    """One node: its operator, the shape of its input `x`, further inputs that are constants ("" leaves one out), attributes."""

    op: str
    shape: tuple[int, ...]
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    # ONNX's reference evaluator is wrong or silent here, so that ONNX Runtime alone judges, and the reason.
    only_runtime: str = ""


def normal(*shape: int) -> Array:
    """Draw float64 values that float32 holds exactly, because that is what a graph's weights are."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32).astype(np.float64)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


IMAGE = (2, 4, 9, 7)
CASES = [
    *(Case(op, (3, 5), (normal(5),)) for op in ("Add", "Sub", "Mul", "Div")),
    *(Case(op, (3, 5)) for op in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Softmax", "LogSoftmax", "Tanh", "Elu", "Identity", "Transpose", "Flatten", "Dropout")),
    Case("LeakyRelu", (3, 5), attributes={"alpha": 0.3}),
    Case("Elu", (3, 5), attributes={"alpha": 0.3}),
    Case("HardSigmoid", (3, 5), attributes={"alpha": 1 / 6, "beta": 0.4}),
    Case("PRelu", IMAGE, (normal(4, 1, 1),)),
    Case("Clip", (3, 5), (np.array(-0.5), np.array(0.75))),
    Case("Clip", (3, 5), ("", np.array(0.75))),
    Case("Clip", (3, 5), (np.array(-0.5),)),
    Case("Clip", (3, 5), attributes={"min": -0.5, "max": 0.7}, opset=9, only_runtime="knows no Clip this old"),
    Case("Softmax", (3, 4, 5), attributes={"axis": 1}),
    Case("Softmax", (3, 4, 5), attributes={"axis": 1}, opset=11, only_runtime="takes one axis only"),
    Case("Softmax", (3, 4, 5), opset=9, only_runtime="takes one axis only"),
    Case("Conv", IMAGE, (normal(6, 4, 3, 3), normal(6))),
    Case("Conv", IMAGE, (normal(6, 4, 3, 3),), {"pads": [1, 1, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
    Case("Conv", IMAGE, (normal(8, 1, 3, 3), normal(8)), {"group": 4, "pads": [1, 1, 1, 1]}),
    Case("Conv", IMAGE, (normal(6, 2, 3, 2), normal(6)), {"group": 2, "pads": [0, 1, 2, 0]}),
    *(Case("Conv", IMAGE, (normal(6, 4, 3, 2), normal(6)), {"auto_pad": mode, "strides": [2, 3]}) for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    Case("Conv", (2, 4, 9), (normal(6, 4, 3), normal(6)), {"pads": [2, 1]}),
    Case("Conv", (1, 2, 5, 4, 6), (normal(3, 2, 2, 3, 3), normal(3)), {"pads": [0, 1, 1, 0, 1, 1]}),
    Case("ConvTranspose", IMAGE, (normal(4, 5, 3, 3), normal(5))),
    Case("ConvTranspose", IMAGE, (normal(4, 3, 3, 2), normal(6)), {"group": 2, "strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 0]}, only_runtime="fails on groups"),
    Case("ConvTranspose", IMAGE, (normal(4, 3, 3, 2),), {"dilations": [2, 1], "pads": [1, 1, 1, 1]}),
    Case("Gemm", (3, 5), (normal(5, 4), normal(4))),
    Case("Gemm", (3, 5), (normal(4, 5), normal(3, 1)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (5, 3), (normal(5, 4),), {"transA": 1}),
    Case("MatMul", (2, 3, 5), (normal(5, 4),)),
    *(Case(op, IMAGE, attributes=attributes)
      for op in ("MaxPool", "AveragePool")
      for attributes in (
          {"kernel_shape": [2, 2]},
          {"kernel_shape": [2, 2], "strides": [2, 2]},
          {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]},
          {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 0]},
          {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
          {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
      )),
    *(Case(op, (2, 3, 9), attributes={"kernel_shape": [3], "strides": [2]}) for op in ("MaxPool", "AveragePool")),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2], "dilations": [2, 3]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, only_runtime="gives another shape"),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1, "ceil_mode": 1}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case("BatchNormalization", IMAGE, (normal(4), normal(4), normal(4), normal(4) ** 2 + 0.1), {"epsilon": 1e-3}),
    Case("ReduceMean", IMAGE, (ints(2, 3),)),
    Case("ReduceMean", IMAGE, (ints(-1, 1),), {"keepdims": 0}),
    Case("ReduceMean", IMAGE),
    Case("ReduceMean", IMAGE, attributes={"axes": [2, 3], "keepdims": 0}, opset=13),
    Case("Flatten", IMAGE, attributes={"axis": 2}),
    Case("Flatten", IMAGE, attributes={"axis": 0}),
    Case("Flatten", IMAGE, attributes={"axis": -1}),
    Case("Reshape", IMAGE, (ints(0, -1),)),
    Case("Reshape", IMAGE, (ints(2, 0, 63),)),
    Case("Reshape", IMAGE, (ints(-1, 28),), {"allowzero": 1}),
    Case("Transpose", IMAGE, attributes={"perm": [0, 2, 3, 1]}),
    Case("Squeeze", (2, 1, 3, 1)),
    Case("Squeeze", (2, 1, 3, 1), (ints(-1),)),
    Case("Squeeze", (2, 1, 3, 1), attributes={"axes": [1, 3]}, opset=11),
    Case("Unsqueeze", (2, 3), (ints(0, -1),)),
    Case("Unsqueeze", (2, 3), attributes={"axes": [1, 3]}, opset=11),
    Case("Concat", (2, 3), (normal(2, 4),), {"axis": 1}),
    Case("Concat", (2, 3), (normal(4, 3),), {"axis": -2}),
    Case("Split", (2, 7), (ints(3, 4),), {"axis": 1}, outputs=2),
    Case("Split", (2, 7), attributes={"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Split", (6, 2), attributes={"split": [1, 5]}, opset=11, outputs=2),
    Case("Slice", IMAGE, (ints(1, -3), ints(9, 2**31), ints(2, -1), ints(2, 1))),
    Case("Slice", IMAGE, (ints(1, 0), ints(2, -1))),
    Case("Slice", IMAGE, attributes={"starts": [1], "ends": [-1], "axes": [2]}, opset=9, only_runtime="knows no Slice this old"),
    Case("Gather", IMAGE, (ints(3, -1, 0),), {"axis": 2}),
    Case("Gather", IMAGE, (np.array(1),), {"axis": -3}),
    Case("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 0, 3, 1), np.array(0.5))),
    Case("Pad", IMAGE, (ints(0, 0, -1, 2, 0, 0, 0, -2),), only_runtime="refuses to cut off"),
    Case("Pad", IMAGE, (ints(1, 2, 3, 0), "", ints(2, -1)), {"mode": "reflect"}),
    Case("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 1, 3, 0),), {"mode": "edge"}),
    Case("Pad", IMAGE, (ints(0, 0, 1, 2, 0, 1, 3, 0),), {"mode": "wrap"}),
    Case("Pad", IMAGE, attributes={"pads": [0, 0, 1, 2, 0, 0, 3, 1], "value": 0.5}, opset=9, only_runtime="knows no Pad this old"),
    *(Case("Resize", IMAGE, ("", np.array([1, 1, 2, 1.6], dtype=np.float32)), {"mode": mode, "coordinate_transformation_mode": place},
           only_runtime="aligns to a side that is no whole number" if place == "align_corners" else "")
      for mode in ("nearest", "linear") for place in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")),
    *(Case("Resize", IMAGE, ("", "", ints(2, 4, 5, 13)), {"mode": "nearest", "nearest_mode": mode, "coordinate_transformation_mode": "half_pixel"})
      for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    Case("Resize", IMAGE, ("", "", ints(1, 14)), {"mode": "linear", "axes": [2, 3], "coordinate_transformation_mode": "pytorch_half_pixel"}),
]  # fmt: skip


def built(case: Case, kind: int) -> onnx.ModelProto:
    """Build a model of one node that computes in one float type."""
    real = helper.tensor_dtype_to_np_dtype(kind)
    names, initializers = ["x"], []
    for index, value in enumerate(case.constants):
        names.append("" if isinstance(value, str) else f"c{index}")
        if not isinstance(value, str):
            # Scales of Resize are float32 whatever the image is.
            value = value.astype(real) if value.dtype == np.float64 else value
            initializers.append(numpy_helper.from_array(np.asarray(value), f"c{index}"))
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="the_node", **case.attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, case.shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)


def by_torch(model: onnx.ModelProto, feeds: dict[str, Array], double: bool = False) -> list[Array]:
    module = GraphModule(model)
    module = module.double() if double else module
    names = [value.name for value in model.graph.output]
    with torch.no_grad():
        found = module({name: torch.from_numpy(value) for name, value in feeds.items()}, names)
    return [found[name].numpy() for name in names]


def by_runtime(model: onnx.ModelProto, feeds: dict[str, Array], names: list[str] | None = None) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    return session.run(names, feeds)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", [case for case in CASES if not case.only_runtime], ids=lambda case: case.op)
def test_every_operator_is_the_reference_evaluators(case: Case) -> None:
    """In float64 each operator gives what ONNX's own reference evaluator gives, to rounding."""
    x = 2 * normal(*case.shape)
    expected = ReferenceEvaluator(built(case, TensorProto.DOUBLE)).run(None, {"x": x})
    found = by_torch(built(case, TensorProto.DOUBLE), {"x": x}, double=True)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_every_operator_is_onnx_runtimes(case: Case) -> None:
    """In float32 each operator gives what ONNX Runtime gives, to rounding."""
    x = (2 * normal(*case.shape)).astype(np.float32)
    model = built(case, TensorProto.FLOAT)
    for one, other in zip(by_torch(model, {"x": x}), by_runtime(model, {"x": x}), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_operator_is_untested() -> None:
    """Every operator of the table has a case above, but for those that the small graphs below hold."""
    assert set(OPERATORS) - {case.op for case in CASES} == {"Cast", "Constant", "Shape"}


def reshaping() -> onnx.ModelProto:
    """Build a net as other exporters write them: uint8 in, weights shared, the shape of the last reshape computed."""
    weights = {
        "conv.w": normal(4, 3, 3, 3), "conv.b": normal(4), "fc.w": normal(4, 5), "six": np.array(6.0), "three": np.array(3.0),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["real", "conv.w", "conv.b"], ["c"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Add", ["c", "three"], ["d"]),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Clip", ["d", "zero", "six"], ["e"]),
        helper.make_node("Div", ["e", "six"], ["f"]),
        helper.make_node("Mul", ["c", "f"], ["g"]),
        helper.make_node("GlobalAveragePool", ["g"], ["h"]),
        helper.make_node("Shape", ["h"], ["sides"]),
        helper.make_node("Constant", [], ["at"], value=numpy_helper.from_array(ints(0))),
        helper.make_node("Gather", ["sides", "at"], ["batch"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["h", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc.w"], ["logits"], name="last"),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pixels(n: int = 3) -> Array:
    return np.random.default_rng(1).integers(0, 256, size=(n, 3, 8, 8), dtype=np.uint8)


def test_shapes_may_be_computed() -> None:
    """A net whose last reshape follows the batch runs at any batch, and any tensor in it can be asked for."""
    model = reshaping()
    for n in (1, 3):
        (found,) = by_torch(model, {"image": pixels(n)})
        (expected,) = by_runtime(model, {"image": pixels(n)})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    feeds = {"image": torch.from_numpy(pixels())}
    inner = GraphModule(model)(feeds, ["logits", "g"])
    assert list(inner) == ["logits", "g"]
    (after,) = ReferenceEvaluator(model).run(["probabilities"], {"image": pixels()})
    np.testing.assert_allclose(inner["logits"].softmax(1).detach().numpy(), after, rtol=1e-4, atol=1e-6)


def test_an_exported_net_gives_the_goldens_truth(bundle_folder: Path) -> None:
    """The graph of a real export, run in float64 on the goldens' pixels, gives torch's float64 logits of the bundle."""
    from edgecnn.bundle import Bundle

    goldens = Bundle.open(bundle_folder).goldens()
    model = onnx.load(str(bundle_folder / "fp32.onnx"))
    feeds = {"image": np.asarray(goldens.pixels)}
    module = GraphModule(model).double()
    with torch.no_grad():
        found = module({"image": torch.from_numpy(feeds["image"])}, ["logits"])["logits"]
    assert found.dtype == torch.float64
    # The graph's weights were rounded to float32 after the norms were folded in.
    np.testing.assert_allclose(found.numpy(), goldens.logits_float64, rtol=1e-4, atol=1e-4)
    (single, *_), (runtime,) = by_torch(model, feeds), by_runtime(model, feeds, ["logits"])
    np.testing.assert_allclose(single, runtime, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_differences() -> None:
    """The gradient of every trained weight of the small net agrees with finite differences in float64."""
    module = GraphModule(reshaping()).double()
    feeds = {"image": torch.from_numpy(pixels())}
    names, parameters = list(module.trained), list(module.trained.values())
    assert names == ["conv.w", "conv.b", "fc.w"]

    def loss() -> torch.Tensor:
        return module(feeds, ["logits"])["logits"].square().mean().sqrt()

    gradients = torch.autograd.grad(loss(), parameters)
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat = parameter.data.view(-1)
        for place in range(0, len(flat), 7):
            flat[place] += step
            above = loss().item()
            flat[place] -= 2 * step
            below = loss().item()
            flat[place] += step
            assert gradient.view(-1)[place].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


def test_touch_sees_every_tensor_before_it_is_read() -> None:
    """What `touch` makes of an input, a weight and an activation is what the following nodes compute with."""
    module, feeds = GraphModule(reshaping()), {"image": torch.from_numpy(pixels())}
    seen = []

    def noted(name: str, value: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return value

    plain = module(feeds, ["logits"], noted)["logits"]
    assert {"image", "conv.w", "conv.b", "fc.w", "six", "c", "flat", "logits"} <= set(seen)
    assert "probabilities" not in seen
    for name in ("image", "conv.w", "g", "fc.w"):
        changed = module(feeds, ["logits"], lambda of, value, name=name: value * 0 if of == name else value)["logits"]
        assert not torch.equal(changed, plain)


def test_weights_are_written_back_and_nothing_else() -> None:
    """A changed weight is in the new model and nowhere else, and the model that came in is as it was."""
    model = reshaping()
    before = model.SerializeToString()
    module = GraphModule(model)
    assert write_back(module, model).SerializeToString() == before
    with torch.no_grad():
        module.trained["conv.b"] += 1
    after = write_back(module, model)
    assert model.SerializeToString() == before
    old, new = ({one.name: numpy_helper.to_array(one) for one in of.graph.initializer} for of in (model, after))
    assert list(old) == list(new)
    np.testing.assert_array_equal(new["conv.b"], old["conv.b"] + np.float32(1))
    assert all(np.array_equal(old[name], new[name]) for name in old if name != "conv.b")
    (found,), (expected,) = by_torch(after, {"image": pixels()}), by_runtime(after, {"image": pixels()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_weights_that_are_no_numbers_or_of_another_model_are_refused() -> None:
    """A weight that is NaN, and a module of another model, are errors that name the weight."""
    model = reshaping()
    module = GraphModule(model)
    other = built(Case("Gemm", (3, 5), (normal(5, 4),)), TensorProto.FLOAT)
    with pytest.raises(QuantizationError, match=r"'conv\.w'"):
        write_back(module, other)
    with torch.no_grad():
        module.trained["fc.w"][0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"'fc\.w'"):
        write_back(module, model)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (Case("NonZero", (3, 5)), r"NonZero \(node the_node\)"),
        (Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 2]}, outputs=2), "second output"),
        (Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 2], "dilations": [2, 2]}), "dilations"),
        (Case("Resize", IMAGE, ("", np.ones(4, dtype=np.float32) * 2), {"mode": "cubic"}), "mode cubic"),
        (Case("Slice", IMAGE, (ints(3), ints(0), ints(2), ints(-1))), "backwards"),
        (Case("ConvTranspose", IMAGE, (normal(4, 5, 3, 3),), {"auto_pad": "SAME_UPPER"}), "automatic padding"),
        (Case("BatchNormalization", IMAGE, (normal(4),) * 4, {"training_mode": 1}), "training mode"),
    ],
    ids=lambda value: value.op if isinstance(value, Case) else "",
)
def test_what_cannot_be_trained_through_is_named(case: Case, says: str) -> None:
    """An operator or attribute without a gradient is refused in one line with operator and node, never run wrongly."""
    with pytest.raises(QuantizationError, match=says) as caught:
        by_torch(built(case, TensorProto.FLOAT), {"x": normal(*case.shape).astype(np.float32)})
    assert str(caught.value).startswith(f"QAT cannot run {case.op} (node the_node): ")
    assert "\n" not in str(caught.value)


def test_operators_of_other_domains_are_not_taken_for_onnxs() -> None:
    """A vendor's operator that happens to be called Relu is refused by its full name."""
    model = built(Case("Relu", (3, 5)), TensorProto.FLOAT)
    model.graph.node[0].domain = "com.example"
    with pytest.raises(QuantizationError, match=r"com\.example\.Relu"):
        GraphModule(model)


def test_a_missing_input_and_an_unknown_tensor_are_named() -> None:
    """A feed left out, or an output that the graph does not have, is an error with its name."""
    module = GraphModule(reshaping())
    with pytest.raises(QuantizationError, match="'image'"):
        module({}, ["logits"])
    with pytest.raises(QuantizationError, match="'scores'"):
        module({"image": torch.from_numpy(pixels())}, ["scores"])
