"""uint8 pixels as the first quantized tensor: held to the graph that normalises them, and to numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper
from quantization import graphs, small, zoo

from edgecnn.metrics import distance
from edgecnn.quantization import pixels, qdq
from edgecnn.quantization.fusion import prove_fusion
from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.pixels import KEY, feed_pixels
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe, recipe_for
from edgecnn.quantization.source import read_source
from edgecnn.spec import Preprocess

Array = npt.NDArray[Any]
NORMALISATION = ("Cast", "Sub", "Mul")


@pytest.fixture(scope="module")
def exported(bundle_folder: Path) -> onnx.ModelProto:
    """The float model that edgecnn exported, made ready."""
    return read_source(bundle_folder / "fp32.onnx").model


def noted(model: onnx.ModelProto) -> Preprocess:
    return msgspec.json.decode(next(entry.value for entry in model.metadata_props if entry.key == KEY), type=Preprocess)


def drawn(model: onnx.ModelProto, low: int = 0, high: int = 256, count: int = 24) -> dict[str, Array]:
    """Draw images whose pixels go from `low` to below `high`, both of which occur."""
    shape = (count, *noted(model).shape)
    found = np.random.default_rng(7).integers(low, high, shape, dtype=np.uint8)
    found[0, 0, 0, 0], found[0, 0, 1, 0] = low, high - 1
    return {model.graph.input[0].name: found}


def built(
    model: onnx.ModelProto, feeds: dict[str, Array], monkeypatch: pytest.MonkeyPatch, fed: bool, first: bool = False
) -> onnx.ModelProto:
    """Quantize with pixels fed or with the normalisation as it is; `first` leaves the first convolution in float."""
    floats = [layers_of(model)[0].node] if first else []
    with monkeypatch.context() as patch:
        if not fed:
            patch.setattr(qdq, "feed_pixels", lambda model: False)
        return quantize(model, small.ranges_of(model, feeds), Recipe(), floats)


def behind(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cut off how pixels become `image_normalised`, and make that a float input."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    kept = [node for node in copy.graph.node if node.name not in ("image_transpose", "image_dequantize")]
    del copy.graph.node[:], copy.graph.input[:]
    copy.graph.node.extend(kept)
    copy.graph.input.append(helper.make_tensor_value_info("image_normalised", onnx.TensorProto.FLOAT, None))
    return copy


@pytest.mark.parametrize("first", [False, True], ids=["int8", "float"])
def test_no_float_tensor_lies_on_the_way_in(
    first: bool, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is transposed as uint8 and dequantized; no arithmetic on it and no quantizer is left."""
    found = built(exported, drawn(exported), monkeypatch, fed=True, first=first)
    onnx.checker.check_model(found, full_check=True)
    operators = [node.op_type for node in found.graph.node]
    assert not {*NORMALISATION} & set(operators)
    assert operators[:2] == ["Transpose", "DequantizeLinear"]
    arrays, preprocess = graphs.arrays(found), noted(exported)
    assert arrays["image_zero_point"].dtype == np.uint8
    np.testing.assert_array_equal(
        arrays["image_scale"], np.full(arrays["image_scale"].shape, np.float32(preprocess.scale))
    )
    np.testing.assert_array_equal(np.unique(arrays["image_zero_point"]), [preprocess.zero_point])
    assert arrays["image_scale"].shape == ((preprocess.height,) if first else ())
    assert [node.output[0] for node in found.graph.node if "image_normalised" in node.input]


def test_the_first_convolution_reads_scale_times_pixel_less_zero_point(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies behind, fed numpy's own normalisation, gives the same answers."""
    feeds, preprocess = drawn(exported), noted(exported)
    found = built(exported, feeds, monkeypatch, fed=True)
    image = next(iter(feeds.values()))
    normalised = (np.float32(preprocess.scale) * (image.astype(np.float32) - preprocess.zero_point)).transpose(
        0, 3, 1, 2
    )
    rest = small.reference(behind(found), {"image_normalised": normalised})
    np.testing.assert_allclose(small.reference(found, feeds)[0], rest[0], rtol=1e-5, atol=1e-5)


def test_the_answers_are_those_with_the_normalisation_written_out(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where calibration saw black and white its quantizer was the image's own: hardly anything is left of a difference."""
    feeds = drawn(exported)
    explicit, fed = (built(exported, feeds, monkeypatch, fed=flag) for flag in (False, True))
    one, other = (small.reference(model, feeds)[0] for model in (explicit, fed))
    truth = small.reference(exported, feeds)[0]
    between, by_rounding = distance(one, other).sqnr_db, distance(truth, one).sqnr_db
    assert by_rounding is not None
    assert between is None or between > by_rounding + 6


def first_convolution(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    """Evaluate what the first convolution gives, before its activation."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    output = next(node for node in copy.graph.node if node.op_type == "Conv").output[0]
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return small.reference(copy, feeds)[0]


def test_pixels_outside_of_what_calibration_saw_are_not_clipped(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated on grey images alone, the explicit quantizer clips black and white; the image itself is whole."""
    grey, full = drawn(exported, 100, 150), drawn(exported)
    truth = first_convolution(exported, full)
    clipped, whole = (first_convolution(built(exported, grey, monkeypatch, fed=flag), full) for flag in (False, True))
    assert small.error(clipped, truth) > 0.1
    assert small.error(whole, truth) < 0.02


def test_the_first_convolution_fuses_because_its_bias_follows(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With grey calibration images the bias's scale has to change too; left as it was, that layer runs in float."""
    grey = drawn(exported, 100, 150)
    assert all(layer.int8 for layer in prove_fusion(built(exported, grey, monkeypatch, fed=True)).layers)
    monkeypatch.setattr(pixels, "_rescale_bias", lambda model, scale: None)
    first, *others = prove_fusion(built(exported, grey, monkeypatch, fed=True)).layers
    assert not first.int8
    assert first.why is not None
    assert "bias" in first.why
    assert all(layer.int8 for layer in others)


def test_the_bias_is_the_float_one_at_the_images_scale(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its integers times scale of the image times that of the weights give the float bias, within what both roundings cost."""
    explicit, fed = (built(exported, drawn(exported, 100, 150), monkeypatch, fed=flag) for flag in (False, True))
    layer = layers_of(exported)[0]
    assert layer.bias is not None
    bias = graphs.arrays(exported)[layer.bias]
    arrays, before = graphs.arrays(fed), graphs.arrays(explicit)
    steps = noted(exported).scale * arrays[f"{layer.weight}_scale"].astype(np.float64)
    np.testing.assert_allclose(arrays[f"{layer.bias}_quantized_scale"], steps, rtol=1e-6)
    lost = np.abs(arrays[f"{layer.bias}_quantized"] * steps - bias)
    assert (lost <= 0.51 * (steps + before[f"{layer.bias}_quantized_scale"])).all()


@pytest.mark.parametrize("narrow", [False, True], ids=["full", "grey"])
def test_before_a_convolution_in_float_nothing_is_lost(
    narrow: bool, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those with the normalisation written out, to float's rounding, in ONNX Runtime too."""
    feeds = drawn(exported)
    seen = drawn(exported, 100, 150) if narrow else feeds
    explicit, fed = (built(exported, seen, monkeypatch, fed=flag, first=True) for flag in (False, True))
    exact = first_convolution(exported, feeds)
    np.testing.assert_allclose(first_convolution(fed, feeds), exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    first = prove_fusion(fed, [layers_of(exported)[0].node]).layers[0]
    assert (first.int8, first.why) == (False, "left in float on purpose")
    for run in (lambda model: small.reference(model, feeds)[0], lambda model: graphs.run(model, feeds)["logits"]):
        # A value between two levels may fall to either side.
        found, wanted = run(fed), run(explicit)
        assert np.median(np.abs(found - wanted)) <= 1e-5 * np.abs(wanted).max()
        assert small.error(found, wanted) < 0.02


def test_tensorrt_gets_no_zero_point(exported: onnx.ModelProto) -> None:
    """Where activations are symmetric int8 the normalisation stays, because pixels need a zero point."""
    feeds = drawn(exported)
    found = quantize(exported, small.ranges_of(exported, feeds), recipe_for("tensorrt"))
    assert set(NORMALISATION) <= {node.op_type for node in found.graph.node}
    zeros = [array for name, array in graphs.arrays(found).items() if name.endswith("zero_point")]
    assert zeros
    assert all(array.dtype == np.int8 for array in zeros)
    assert not any(map(np.any, zeros))


def own(**changes: str) -> onnx.ModelProto:
    """Make the zoo's net of edgecnn's form, with names of nodes; `changes` replace one node's operator by its output."""
    model = zoo.nhwc_uint8()
    for node in model.graph.node:
        node.name = node.output[0]
        node.op_type = changes.get(node.name, node.op_type)
    return small.inferred(model)


@pytest.mark.parametrize("change", ["no notes", "other arithmetic", "read twice", "read by no convolution"])
def test_a_graph_of_another_form_is_left_alone(change: str) -> None:
    """Without edgecnn's notes, or where the image is used in another way, not a byte changes."""
    model = own(s="Add") if change == "other arithmetic" else own()
    if change == "no notes":
        del model.metadata_props[:]
    if change == "read twice":
        model.graph.node.append(helper.make_node("Shape", ["image"], ["size"], name="size"))
    if change == "read by no convolution":
        model.graph.node.append(helper.make_node("Relu", ["planes"], ["more"], name="more"))
    before = model.SerializeToString()
    assert feed_pixels(model) is False
    assert model.SerializeToString() == before
    assert feed_pixels(own()) is True


def test_an_image_of_one_row_has_no_second_scale() -> None:
    """A float convolution over a single row keeps the normalisation: one equal scale would be taken for a quantized layer."""
    model = own()
    notes = noted(model)
    helper.set_model_props(model, {KEY: f'{{"height": 1, "width": {notes.width}, "channels": 3}}'})
    before = model.SerializeToString()
    assert feed_pixels(model) is False
    assert model.SerializeToString() == before


def test_a_float_and_a_quantized_convolution_read_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two convolutions on the image one stays in float: both read the pixels, and only the other's bias is rescaled."""
    model = own()
    weights = {name: array for name, array in graphs.arrays(model).items() if name in ("one.weight", "one.bias")}
    model.graph.initializer.extend(
        numpy_helper.from_array(-array, name.replace("one", "two")) for name, array in weights.items()
    )
    place = next(index for index, node in enumerate(model.graph.node) if node.name == "b")
    second = helper.make_node("Conv", ["planes", "two.weight", "two.bias"], ["a2"], name="a2", pads=[1] * 4)
    model.graph.node.insert(place, second)
    model.graph.node.insert(place + 1, helper.make_node("Add", ["a", "a2"], ["both"], name="both"))
    model.graph.node[place + 2].input[0] = "both"
    model = small.inferred(model)
    feeds = drawn(model, 100, 150)
    ranges = {**small.ranges_of(model, feeds), "both": (-1.0, 1.0)}
    found = quantize(model, ranges, Recipe(), ["a"])
    onnx.checker.check_model(found, full_check=True)
    arrays = graphs.arrays(found)
    np.testing.assert_array_equal(arrays["one.bias"], weights["one.bias"])
    steps = noted(model).scale * arrays["two.weight_scale"]
    np.testing.assert_allclose(arrays["two.bias_quantized_scale"], steps, rtol=1e-6)
    assert {layer.node: layer.int8 for layer in prove_fusion(found, ["a"]).layers if layer.op == "Conv"} == {
        "a": False, "a2": True,
    }  # fmt: skip
    assert small.error(graphs.run(found, feeds)["scores"], small.reference(found, feeds)[0]) < 0.02
