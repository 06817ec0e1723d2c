"""The parts that localizing is made of: points, cuts, float64, what is expected of rounding, and patterns of a difference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator
from parity import planted
from quantization import graphs, small, zoo

from edgecnn.errors import BackendError
from edgecnn.parity.localize.cut import chain, cut, open_on_cpu
from edgecnn.parity.localize.exact import Exact
from edgecnn.parity.localize.fingerprint import fingerprint
from edgecnn.parity.localize.half import half_noise, holds_half
from edgecnn.parity.localize.points import Grid, Look, points_of
from edgecnn.parity.localize.ready import ready
from edgecnn.parity.localize.result import figures
from edgecnn.parity.localize.rounding import ideal_step, rounded, rounding_noise, steps_of, unseen, use_of
from edgecnn.parity.localize.sides import same_layers
from edgecnn.quantization.fusion import optimised
from edgecnn.quantization.half import to_half

UINT8 = np.dtype(np.uint8)


def test_a_grid_rounds_as_the_operator_does() -> None:
    """Quantizing and dequantizing in numpy is what onnx's own evaluator makes of the two operators."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[3, 50] x) => (float[3, 50] y) <float s = {0.037}, uint8 z = {7}>
        { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    )
    x = np.random.default_rng(0).normal(0, 4, (3, 50)).astype(np.float32)
    grid = Grid(float(np.float32(0.037)), 7, UINT8)
    (wanted,) = small.reference(model, {"x": x})
    assert np.abs(grid.dequantize(grid.quantize(x)) - wanted).max() < 1e-6
    assert grid.quantize(np.array([np.nan, 1e9, -1e9])).tolist() == [7, 255, 0]


def test_float64_is_what_the_operators_mean() -> None:
    """A float graph agrees with onnx's own evaluator to float32's precision, and is finer than it."""
    model, feeds = small.chain(), {"x": small.images()}
    found = Exact(model).run(feeds, ["y", "br"])
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    assert found["y"].dtype == np.float64
    assert 0 < small.error(found["y"], wanted) < 1e-5
    assert found["br"].shape == (16, 6, 8, 8)


def test_float64_knows_quantizers() -> None:
    """A QDQ graph agrees with onnx's own evaluator but for single steps; smooth, it lies nearer to the float model."""
    model, feeds = planted.quantized(), {"x": small.images()}
    found = Exact(model).run(feeds, ["y", "ar_QuantizeLinear_Output"])
    assert small.error(found["y"], small.reference(model, feeds)[0]) < 0.02
    assert found["ar_QuantizeLinear_Output"].dtype == np.uint8
    truth = Exact(small.chain()).run(feeds, ["y"])["y"]
    smooth = Exact(model, smooth=True).run(feeds, ["y"])["y"]
    assert small.error(smooth, truth) < small.error(found["y"], truth)


def test_smooth_is_the_graph_without_its_rounding() -> None:
    """Unrounded, what is written by one scale and read by another comes out as numpy says, and only rounding is left out."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[3, 50] x) => (float[3, 50] y)
        <float s = {0.03}, uint8 z = {128}, float other = {0.0375}, uint8 at = {126}>
        { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, other, at) }"""
    )
    x = np.random.default_rng(0).uniform(-3, 3, (3, 50)).astype(np.float32)
    wanted = (x.astype(np.float64) / np.float32(0.03) + 2) * np.float64(np.float32(0.0375))
    assert np.abs(Exact(model, smooth=True).run({"x": x}, ["y"])["y"] - wanted).max() < 1e-12
    whole = Exact(model, smooth=True, inner=True).run({"x": x}, ["y"])["y"]
    assert np.abs(whole - small.reference(model, {"x": x})[0]).max() < 1e-6


def test_what_rounds_by_itself_is_not_called_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding cannot be left out that is an error of one line which names the operator, with torch and without."""
    import importlib.util

    inside = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (uint8[2, 3] x) => (int32[2, 4] y) <int8[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}>
        { y = MatMulInteger(x, w) }"""
    )
    with pytest.raises(BackendError, match=r"^MatMulInteger cannot.*torch does not evaluate MatMulInteger") as raised:
        Exact(inside, smooth=True).run({"x": np.ones((2, 3), np.uint8)}, ["y"])
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="torch, which can, is not installed"):
        Exact(planted.quantized(), smooth=True).run({"x": small.images(2)}, ["y"])


def test_float64_without_torch_is_onnx_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed the graph is evaluated by onnx, in float64 as well."""
    import importlib.util

    model, feeds = small.chain(), {"x": small.images(2)}
    wanted = Exact(model).run(feeds, ["y"])["y"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = Exact(model).run(feeds, ["y"])["y"]
    assert found.dtype == np.float64
    assert np.abs(found - wanted).max() < 1e-12
    with pytest.raises(BackendError, match="float64"):
        Exact(zoo.upsample()).run(zoo.feeds(zoo.upsample()), ["scores"])


def test_no_point_lies_inside_a_fusion() -> None:
    """What ONNX Runtime keeps to itself is no point: a convolution's output before its activation, or a sum's terms."""
    model = ready(zoo.residual())
    found = {point.tensor: point for point in points_of(model, optimised(model))}
    assert "a" not in found
    assert "d" not in found
    assert {"b", "e", "scores"} <= set(found)
    assert found["b"].maker == "one"
    assert found["b"].activated
    assert found["b"].readers == ("two",)


def test_quantized_points_stand_for_their_float_tensors() -> None:
    """A point of a QDQ model is the integer tensor, with its steps, and known by the float one."""
    model = planted.quantized()
    found = {point.value: point for point in points_of(model, optimised(model))}
    point, scale = found["br"], planted.array(model, "br_scale")
    assert point.tensor == "br_QuantizeLinear_Output"
    assert point.grid == Grid(float(scale), int(planted.array(model, "br_zero_point")), UINT8)
    assert point.readers == ("c",)
    assert point.activated
    assert not any(point.op == "DequantizeLinear" and not point.output for point in found.values())


@pytest.mark.parametrize("int8", [False, True])
def test_cut_blocks_answer_as_the_whole(int8: bool) -> None:
    """The blocks one after the other give the very answer of the model in one piece."""
    model, feeds = planted.quantized() if int8 else small.chain(), {"x": small.images()}
    look, points = Look(model), points_of(model, optimised(model))
    shapes = {name: array.shape for name, array in Exact(model).run(feeds, [one.tensor for one in points]).items()}
    blocks = cut(look, points, {**shapes, "x": feeds["x"].shape})
    for block in blocks:
        onnx.checker.check_model(block.model)
    found = chain(blocks, open_on_cpu, feeds)["y"]
    assert small.error(found, graphs.run(model, feeds)["y"]) < 1e-6
    assert sorted({name for block in blocks for name in block.layers}) == ["a", "b", "c", "g"]


@pytest.mark.parametrize("seed", range(3))
def test_rounding_costs_a_block_what_was_worked_out(seed: int) -> None:
    """The error expected of a block is that of its int8 kernel within a third, whatever the net."""
    floats, model, feeds = small.chain(seed), planted.quantized(seed), {"x": small.images()}
    look, points = Look(model), {point.tensor: point for point in points_of(model, optimised(model))}
    shapes = {name: array.shape for name, array in Exact(model).run(feeds, list(points)).items()}
    block = next(
        one for one in cut(look, list(points.values()), {**shapes, "x": feeds["x"].shape}) if "b" in one.layers
    )
    truth = graphs.run(floats, feeds, ["ar", "br"])
    named = {f"{name}_QuantizeLinear_Output": truth[name] for name in ("ar", "br")}
    steps = steps_of([point for point in points.values() if point.tensor in named], named)
    source, target = points["ar_QuantizeLinear_Output"].grid, block.point.grid
    assert source is not None
    assert target is not None
    answer = graphs.run(block.model, {"ar_QuantizeLinear_Output": source.quantize(truth["ar"])})[block.point.tensor]
    error = figures(truth["br"], target.dequantize(answer)).rms
    expected = rounding_noise(block, points, steps, {"ar_QuantizeLinear_Output": truth["ar"]}, truth["br"])
    assert error is not None
    assert 0.67 < error / expected < 1.5


@pytest.mark.parametrize("seed", range(3))
def test_rounding_to_half_costs_a_net_what_was_worked_out(seed: int) -> None:
    """The error expected of float16 weights is that of the converted net, which ONNX Runtime computes in float32."""
    floats = small.chain(seed)
    feeds, half = {"x": small.images()}, to_half(floats)
    truth = Exact(floats).run(feeds, ["y"])["y"]
    error = np.sqrt(np.mean((graphs.run(half, feeds)["y"] - truth) ** 2))
    expected, largest = half_noise(half, feeds, "y", truth)
    assert 0.05 < error / expected < 3
    assert largest > expected
    assert holds_half(half)
    assert not holds_half(floats)


def test_ideal_steps_cover_values_and_zero() -> None:
    """The ideal step spreads 255 steps over the values and 0, and rounding to it is off by half of it at most."""
    values = np.linspace(1.0, 3.0, 101)
    assert ideal_step(values, UINT8) == pytest.approx(3 / 255)
    assert ideal_step(-values, UINT8) == pytest.approx(3 / 255)
    assert np.abs(rounded(values, 3 / 255) - values).max() <= 1.5 / 255 + 1e-12
    assert rounded(np.zeros(3), 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("grid", "low", "high", "used", "clipped"),
    [
        (Grid(0.02, 0, UINT8), 0.0, 2.55, 0.5, 0.0),
        (Grid(0.005, 0, UINT8), 0.0, 2.55, 2.0, 0.5),
        (Grid(0.01, 0, UINT8), -5.0, 2.55, 1.0, 0.0),
        (Grid(0.01, 0, np.dtype(np.int8)), 0.0, 1.27, 1.0, 0.0),
        (Grid(0.01, 128, UINT8), -0.64, 0.635, 0.5, 0.0),
    ],
)
def test_use_of_a_range(grid: Grid, low: float, high: float, used: float, clipped: float) -> None:
    """Ranges too wide and too narrow are seen; one that begins at 0 has an activation in it, and one around 0 is symmetric."""
    found = use_of(grid, np.linspace(low, high, 1001))
    assert found == (pytest.approx(used, abs=0.01), pytest.approx(clipped, abs=0.01))


def test_figures_are_numpys() -> None:
    """Root mean square, largest and dB are those of numpy; what cannot be compared has none."""
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    one = figures(truth, found)
    assert one.rms == pytest.approx(np.linalg.norm(found - truth) / np.sqrt(20))
    assert one.max_abs == np.abs(found - truth).max()
    assert one.sqnr_db == pytest.approx(10 * np.log10((truth**2).sum() / ((found - truth) ** 2).sum()))
    assert figures(truth, truth).sqnr_db == 300.0
    assert figures(truth, found.T).rms is None
    assert figures(truth, found * np.nan).rms is None
    with pytest.raises(ValueError, match="empty"):
        figures(np.zeros((0, 3)), np.zeros((0, 3)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v[:, [1, 0, 2, 3, 4, 5]], "another order: 0 is the reference's 1, 1 is the reference's 0"),
        (lambda v: v + np.linspace(1, 2, 6).reshape(1, 6, 1, 1), "constant in each channel (the largest +2)"),
        (lambda v: v * np.linspace(1, 2, 6).reshape(1, 6, 1, 1), "factor in each channel (the furthest 2)"),
        (lambda v: v + (np.arange(6) == 4).reshape(1, 6, 1, 1) * v**2, "channel 4 of 6"),
        (lambda v: np.where((np.arange(6) == 3).reshape(1, 6, 1, 1), np.nan, v), "not finite: channel 3 of 6"),
        (lambda v: v * np.pad(np.ones((6, 6)), 1), "along the borders only"),
        (lambda v: v[:, :, 1:], "its shape is"),
    ],
)
def test_patterns_are_recognised(change: object, word: str) -> None:
    """Each kind of difference is named, with the channel or the amount."""
    truth = np.random.default_rng(0).normal(size=(4, 6, 8, 8))
    assert any(word in text for text in fingerprint(truth, change(truth)))  # type: ignore[operator]


def test_noise_has_no_pattern() -> None:
    """A difference that is nothing but noise gets no name."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4, 6, 8, 8))
    assert fingerprint(truth, truth + 0.1 * rng.normal(size=truth.shape)) == []


def test_layers_are_paired_by_name_or_in_their_order() -> None:
    """Layers of the same names are each other's; of other names they are paired in order, if sizes agree."""
    mine, other = small.chain(), small.chain()
    for node in other.graph.node:
        node.input[:] = [name.replace("weight", "w") for name in node.input]
    for tensor in other.graph.initializer:
        tensor.name = tensor.name.replace("weight", "w")
    assert same_layers(Look(mine), Look(planted.quantized())) == {name: name for name in "abcg"}
    assert same_layers(Look(mine), Look(other)) == dict(zip("abcg", Look(other).layers.values(), strict=True))
    assert same_layers(Look(mine), Look(ready(zoo.plain()))) == {}


def test_a_ready_model_is_the_same_one() -> None:
    """Naming nodes and moving constants changes no answer, and no node stays without a name."""
    raw = zoo.constants()
    model, feeds = ready(raw), zoo.feeds(raw, 2)
    assert all(node.name for node in model.graph.node)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    before, after = graphs.run(raw, feeds), graphs.run(model, feeds)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_unseen_images_may_go_a_little_beyond_a_range() -> None:
    """A few values somewhat beyond a range are cut off of the truth as well; many, or far ones, are not."""
    grid, values = Grid(0.01, 0, UINT8), np.linspace(0, 2.5, 1000)
    assert unseen(grid, np.append(values, 3.0)).max() == grid.most
    assert unseen(grid, np.append(values, 6.0)).max() == 6.0
    assert unseen(grid, values * 1.3).max() == 2.5 * 1.3
