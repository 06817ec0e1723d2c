"""Faults planted into one layer are found there, and clean models raise no alarm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from parity import planted
from quantization import graphs, small, zoo

from edgecnn.errors import BackendError, UsageError
from edgecnn.parity.localize import Localization, OnnxSide, localize
from edgecnn.parity.localize.cut import open_unfused, open_with
from edgecnn.quantization.half import to_half
from edgecnn.quantization.source import read_source
from edgecnn.spec import BackendRef

FLOAT = {
    "a weight off by 1e-3": (planted.weight("b.weight", lambda w: planted.bumped(w, 1e-3)), "b"),
    "a first weight off by 1e-3": (planted.weight("a.weight", lambda w: planted.bumped(w, 1e-3)), "a"),
    "transposed kernel": (planted.weight("b.weight", lambda w: w.swapaxes(2, 3)), "b"),
    "padding on one side": (planted.attribute("c", "pads", [0, 0, 2, 2]), "c"),
    "no padding": (planted.attribute("b", "pads", [0, 0, 0, 0]), "b"),
    "NaN in a channel": (planted.weight("b.weight", planted.with_nan), "b"),
    "no bias": (planted.weight("c.bias", np.zeros_like), "c"),
    "swapped classes": (planted.weight("g.weight", lambda w: w[[1, 0, 2, 3]]), "g"),
    "reversed input channels": (planted.weight("a.weight", lambda w: w[:, ::-1]), "a"),
}
INT8 = {
    "transposed kernel": (planted.weight("b.weight_quantized", lambda w: w.swapaxes(2, 3)), "b"),
    "padding on one side": (planted.attribute("c", "pads", [0, 0, 2, 2]), "c"),
    "no bias": (planted.weight("a.bias_quantized", np.zeros_like), "a"),
    "large weights of the wrong sign": (
        planted.weight("b.weight_quantized", lambda w: np.where(abs(w) > 120, -w, w)),
        "b",
    ),
    "weight scale": (planted.weight("b.weight_scale", lambda s: s * 1.25), "b"),
    "weight scale of one channel": (planted.weight("b.weight_scale", planted.channel_scaled), "b"),
    "stale scale, twice too large": (planted.weight("br_scale", lambda s: s * 2), "b"),
    "stale scale, twice too large, of the last": (planted.weight("cr_scale", lambda s: s * 2), "c"),
    "stale scale, half too small, of the last": (planted.weight("cr_scale", lambda s: s / 2), "c"),
    "stale scale, half too small": (planted.weight("ar_scale", lambda s: s / 2), "a"),
    "swapped classes": (planted.weight("g.weight_quantized", lambda w: w[[1, 0, 2, 3]]), "g"),
    "NaN in a scale": (planted.weight("b.weight_scale", planted.with_nan), "b"),
}

# Operators that neither float64 evaluator knows before they are prepared.
OLD = ("upsample", "resize_10", "local_function", "old_attributes", "weights_as_inputs")


def find(candidate: onnx.ModelProto, seed: int = 0) -> Localization:
    """Localize against the float chain in float64."""
    return localize(OnnxSide(small.chain(seed)), candidate, {"x": small.images()})


def layer_of(found: Localization) -> str:
    """Name the layer of the first block at fault."""
    assert found.first is not None, found.reason
    return found.first.name.split(" + ")[-1 if found.first.name.startswith("flatten") else 0]


@pytest.mark.parametrize("fault", FLOAT)
def test_a_float_fault_is_found_in_its_layer(fault: str) -> None:
    """Each fault is found in the block of the layer it was planted in, that one alone, and the file is blamed."""
    edit, layer = FLOAT[fault]
    found = find(planted.edited(small.chain(), edit))
    assert layer_of(found) == layer
    assert found.first is not None
    assert found.first.blame == "model file"
    assert [one.name for one in found.blocks if one.culprit] == [found.first.name]
    assert found.advice


@pytest.mark.parametrize("fault", INT8)
def test_an_int8_fault_is_found_in_its_layer(fault: str) -> None:
    """Each fault of a quantized model is found in its layer's block against the float model, and the file is blamed."""
    edit, layer = INT8[fault]
    found = find(planted.edited(planted.quantized(), edit))
    assert layer_of(found) == layer
    assert found.first is not None
    assert found.first.blame == "model file"


@pytest.mark.parametrize("layer", ["a", "b", "c", "g"])
def test_one_ulp_is_no_fault(layer: str) -> None:
    """A weight that differs in its last place raises no alarm."""
    found = find(planted.edited(small.chain(), planted.weight(f"{layer}.weight", planted.one_ulp)))
    assert found.first is None, found.reason


@pytest.mark.parametrize("seed", range(10))
def test_clean_pairs_raise_no_alarm(seed: int) -> None:
    """Ten nets, in float and in int8, have no block at fault, and their blocks answer as the whole does."""
    for candidate in (small.chain(seed), planted.quantized(seed)):
        found = find(candidate, seed)
        assert found.first is None, found.reason
        assert found.whole_reproduced
        assert found.joined == 1
        assert len(found.blocks) >= 4


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_graphs_of_every_shape_are_cut_and_clean(name: str, tmp_path: Path) -> None:
    """Whatever an exporter writes is cut into blocks that answer as the whole does, and none is at fault, prepared or not."""
    raw = zoo.ZOO[name]()
    prepared = read_source(zoo.save(raw, tmp_path / "model.onnx")).model
    pairs = [(prepared, prepared)] if name in OLD else [(raw, raw), (prepared, prepared), (prepared, raw)]
    for reference, model in pairs:
        found = localize(OnnxSide(reference), model, zoo.feeds(raw, 4))
        assert found.first is None, found.reason
        assert found.whole_reproduced
        assert len(found.blocks) > (reference is model)


@pytest.mark.parametrize("name", [name for name in sorted(zoo.ZOO) if name not in ("fixed_batch", "two_inputs")])
def test_quantized_graphs_of_every_shape_are_clean(name: str, tmp_path: Path) -> None:
    """Quantized on other inputs, none of them raises an alarm: not where tensors share steps, nor after a sigmoid."""
    raw = zoo.ZOO[name]()
    model = read_source(zoo.save(raw, tmp_path / "model.onnx")).model
    ((image, calibration),) = zoo.feeds(raw, 64, seed=5).items()
    found = localize(OnnxSide(model), graphs.quantized(model, graphs.Feeds(image, calibration)), zoo.feeds(raw, 8))
    assert found.first is None, found.reason
    assert found.whole_reproduced


def test_the_blocks_are_the_fusions() -> None:
    """A convolution stays with the activation that ONNX Runtime computes in its kernel, and with the sum it takes in."""
    found = find(small.chain())
    assert [one.name for one in found.blocks][:3] == ["a + relu", "b + relu", "c + relu"]
    residual = zoo.residual()
    names = [one.name for one in localize(OnnxSide(residual), residual, zoo.feeds(residual, 4)).blocks]
    assert names[:2] == ["one + relu", "two + add + relu"]
    assert all(one.kernel == "QLinearConv" for one in find(planted.quantized()).blocks if one.name in ("b", "c"))


def test_the_accumulated_error_grows_where_the_error_alone_does_not() -> None:
    """Behind a fault the error fed on is as large as the fault's, while each block alone is right."""
    found = find(planted.edited(small.chain(), FLOAT["no bias"][0]))
    last = found.blocks[-1]
    assert last.alone.sqnr_db is not None
    assert last.accumulated.sqnr_db is not None
    assert last.alone.sqnr_db > 120
    assert last.accumulated.sqnr_db < 60
    truth = small.reference(small.chain(), {"x": small.images()})[0]
    wrong = small.reference(planted.edited(small.chain(), FLOAT["no bias"][0]), {"x": small.images()})[0]
    assert last.accumulated.rms == pytest.approx(np.sqrt(np.mean((wrong - truth) ** 2)), rel=1e-4)


def test_other_inputs_are_preprocessing() -> None:
    """Where the two sides were given other values, and the model is right, preprocessing is blamed, and how it differs."""
    images = small.images()
    found = localize(
        OnnxSide(small.chain()), small.chain(), {"x": images}, candidate_feeds={"x": images[:, ::-1].copy()}
    )
    assert found.first is not None
    assert found.first.blame == "input"
    assert "preprocessing" in found.advice[0]
    assert any("another order" in line for line in found.advice)
    assert sum(one.culprit for one in found.blocks) == 1


@pytest.mark.parametrize(("name", "word"), [("zero_point", "constant"), ("scale", "factor")])
def test_mean_and_std_in_the_graph_are_preprocessing(name: str, word: str) -> None:
    """A normalisation in the graph that was changed is the first block, called preprocessing, and what changed is said."""
    model = zoo.nhwc_uint8()
    changed = planted.edited(model, planted.weight(name, lambda value: value * 1.1))
    found = localize(OnnxSide(model), changed, zoo.feeds(model, 4))
    assert found.first is found.blocks[0]
    assert found.first is not None
    assert found.first.blame == "preprocessing"
    assert any(word in line for line in found.advice)
    assert [one.culprit for one in found.blocks].count(True) == 1


def test_channels_reversed_in_the_graph_are_preprocessing() -> None:
    """A graph that turns RGB into BGR on the way in is told from a wrong first layer."""
    model = zoo.nhwc_uint8()

    def swap(changed: onnx.ModelProto) -> None:
        changed.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        conv = next(node for node in changed.graph.node if node.op_type == "Conv")
        place = list(changed.graph.node).index(conv)
        changed.graph.node.insert(place, helper.make_node("Gather", [conv.input[0], "order"], ["bgr"], axis=1))
        changed.graph.node[place + 1].input[0] = "bgr"

    found = localize(OnnxSide(model), planted.edited(model, swap), zoo.feeds(model, 4))
    assert found.first is not None
    assert found.first.blame == "preprocessing"
    assert any("another order: 0 is the reference's 2" in line for line in found.advice)


@pytest.mark.parametrize("int8", [False, True])
def test_a_wrong_kernel_is_the_backends_fault(int8: bool) -> None:
    """A block that is right by definition but not on the backend is blamed on its kernel, not on the file."""
    model = planted.quantized() if int8 else small.chain()
    change = planted.weight("b.weight_quantized" if int8 else "b.weight", lambda w: w.swapaxes(2, 3))
    found = localize(
        OnnxSide(small.chain()), model, {"x": small.images()}, planted.broken(change, ("b",)), name="other"
    )
    assert layer_of(found) == "b"
    assert found.first is not None
    assert found.first.blame == "kernel"
    assert any("other computes this block wrongly" in line for line in found.advice)


def test_a_fusion_over_two_blocks_is_found_by_joining_them() -> None:
    """What goes wrong only where two blocks are in one model shows once they are joined, and the joint block is named."""
    wrong = planted.broken(planted.weight("b.bias", np.zeros_like), ("b", "c"))
    found = localize(OnnxSide(small.chain()), small.chain(), {"x": small.images()}, wrong)
    assert found.joined > 1
    assert found.whole_reproduced
    assert found.first is not None
    assert {"b", "c"} <= set(found.first.nodes)


def test_what_no_cut_reproduces_is_said() -> None:
    """A backend that is wrong only on the model in one piece leaves no block at fault, and that is reported."""
    wrong = planted.broken(planted.weight("b.bias", np.zeros_like), ("a", "b", "c", "g"))
    model = small.chain()
    model.graph.output.append(onnx.ValueInfoProto(name="mean"))
    found = localize(OnnxSide(model), model, {"x": small.images()}, wrong)
    assert not found.whole_reproduced
    assert "do not answer" in found.reason
    assert any("fusion" in line for line in found.advice)


@pytest.mark.parametrize(
    "open_model", [open_unfused, open_with(BackendRef(backend="onnxruntime"))], ids=["plain", "file"]
)
def test_any_backend_runs_the_blocks(open_model: object) -> None:
    """Blocks run without optimisations, and as files by a backend of the registry, with the same verdicts."""
    faulty = planted.edited(small.chain(), FLOAT["transposed kernel"][0])
    found = localize(OnnxSide(small.chain()), faulty, {"x": small.images()}, open_model)  # type: ignore[arg-type]
    assert layer_of(found) == "b"
    assert found.first is not None
    assert found.first.blame == "model file"


def test_rounding_that_adds_up_proposes_layers() -> None:
    """A quantized model without a fault gets its coarsest layers proposed to be left in float, the worst first."""
    found = find(planted.quantized())
    worst = min(found.blocks, key=lambda one: one.alone.sqnr_db or 0.0)
    assert f"made by {worst.name} (" in found.advice[-1]


def test_names_may_differ_altogether() -> None:
    """A candidate with other names of tensors, nodes and weights is compared layer by layer, and a fault in it found."""
    other = planted.edited(small.chain(), FLOAT["transposed kernel"][0])
    for node in other.graph.node:
        node.name = f"n_{node.name}"
        node.input[:] = [name if name == "x" else f"t_{name}" for name in node.input]
        node.output[:] = [f"t_{name}" for name in node.output]
    for value in (*other.graph.initializer, *other.graph.output):
        value.name = f"t_{value.name}"
    del other.graph.value_info[:]
    found = find(other)
    assert found.first is not None
    assert found.first.nodes[0] == "n_b"
    assert len(found.blocks) >= 4


def test_few_images_are_enough_and_none_is_an_error() -> None:
    """At most sixteen images are run, and to have none or no input is the user's mistake."""
    model = small.chain()
    assert localize(OnnxSide(model), model, {"x": small.images(40)}).images == 16
    with pytest.raises(UsageError, match="at least one image"):
        localize(OnnxSide(model), model, {"x": small.images(0)})
    with pytest.raises(UsageError, match="'x'"):
        localize(OnnxSide(model), model, {})


def fixed(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Copy a model that takes so many images at once, no more and no fewer."""
    copy = planted.copy(model)
    for value in (*copy.graph.input, *copy.graph.output):
        for size in value.type.tensor_type.shape.dim[:1]:
            size.dim_value = batch
    return copy


@pytest.mark.parametrize("batch", [1, 4])
def test_a_candidate_of_fixed_batch_gets_as_many_images_as_it_takes(batch: int) -> None:
    """A file exported for some images at once is localized against a model that takes any number, and on too few it is an error."""
    faulty = planted.edited(small.chain(), FLOAT["transposed kernel"][0])
    found = find(fixed(faulty, batch))
    assert layer_of(found) == "b"
    assert found.images == batch
    with pytest.raises(UsageError, match="needs 17 images"):
        find(fixed(faulty, 17))


@pytest.mark.parametrize("seed", range(3))
def test_float16_is_judged_by_what_float16_costs(seed: int) -> None:
    """A net converted to float16 raises no alarm against its float model, and a transposed kernel in it is found."""
    floats = small.chain(seed)
    found = find(to_half(floats), seed)
    assert found.first is None, found.reason
    assert found.whole_reproduced
    assert len(found.blocks) > 2
    wrong = find(planted.edited(to_half(floats), FLOAT["transposed kernel"][0]), seed)
    assert wrong.first is not None
    assert "b" in wrong.first.nodes
    assert "rounding to float16" in wrong.first.why
    assert wrong.first.blame == "model file"


def test_without_a_failed_verdict_the_words_are_others() -> None:
    """Asked for although nothing failed, it says so, and names the largest difference where none is a fault."""
    side, feeds = OnnxSide(small.chain()), {"x": small.images()}
    clean = localize(side, planted.quantized(), feeds, failed=False)
    worst = max(clean.blocks, key=lambda one: one.multiple or 0.0)
    assert clean.reason.startswith("no verdict failed, and none of")
    assert (
        f"the largest difference is in {worst.name}, {worst.multiple:.3g} times what rounding explains" in clean.reason
    )
    wide = planted.edited(planted.quantized(), INT8["stale scale, twice too large"][0])
    found = localize(side, wide, feeds, failed=False)
    assert layer_of(found) == "b"
    assert "no verdict failed, yet b is the first" in found.reason
    assert "at fault" not in found.reason
    assert not found.failed


def test_what_has_no_blocks_of_its_own_is_refused() -> None:
    """Operators that round by themselves, and weights that were not loaded, are the user's mistake in one line."""
    inside = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 3] x) => (float[n, 2] y) <int8[3, 2] w = {1, 2, 3, 4, 5, 6}>
        { q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z)  f = Cast<to = 1>(i)  y = Mul(f, s) }"""
    )
    with pytest.raises(UsageError, match="DynamicQuantizeLinear"):
        localize(OnnxSide(inside), inside, {"x": np.ones((2, 3), np.float32)})
    apart = small.chain()
    apart.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(UsageError, match="load the model with its external data"):
        find(apart)


def test_shapes_left_from_before_an_edit_do_not_matter() -> None:
    """A class that was cut off of the last layer is found there, though the file still notes the shape it had."""
    model = small.chain()
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info("y"))
    model.graph.value_info.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4]))
    fewer = planted.copy(model)
    for name in ("g.weight", "g.bias"):
        _drop_last(fewer, name)
    found = find(fewer)
    assert layer_of(found) == "g"
    assert found.first is not None
    assert "(16, 3)" in found.first.why


def _drop_last(model: onnx.ModelProto, name: str) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), name))


def test_models_that_do_not_belong_together_are_refused() -> None:
    """A reference without the candidate's outputs is an error, not a verdict."""
    other = graphs.graph([graphs.node("Relu", "x", "r"), graphs.node("Tanh", "x", "t")], (3, 8, 8), "r t")
    with pytest.raises(UsageError, match="do not belong together"):
        localize(OnnxSide(other), small.chain(), {"x": small.images()})


def test_a_model_that_no_one_can_run_is_an_error() -> None:
    """A backend that refuses the model is an error of one line."""

    def refuses(model: onnx.ModelProto) -> object:
        raise BackendError("not today")

    with pytest.raises(BackendError, match="not today"):
        localize(OnnxSide(small.chain()), small.chain(), {"x": small.images()}, refuses)  # type: ignore[arg-type]
