"""Calibration counts what onnx's reference evaluator and numpy see, whatever the batches, and refuses what is no data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgecnn.errors import QuantizationError
from edgecnn.quantization import observe as module
from edgecnn.quantization.observe import Observed, observe

Array = npt.NDArray[Any]
SIDE = 6
BENCH = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_calibration.py"


class Images:
    """Feeds of one input, that note the sizes asked for."""

    def __init__(self, images: Array, name: str = "image") -> None:
        self.images, self.name, self.count = images, name, len(images)
        self.sizes: list[int] = []

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        self.sizes.append(size)
        for at in range(0, len(self.images), size):
            yield {self.name: self.images[at : at + size]}


def net(
    batch: int | str = "batch", weight: Array | None = None, extra: tuple[onnx.NodeProto, ...] = ()
) -> onnx.ModelProto:
    """Make Conv, Clip, GlobalAveragePool, Flatten, Gemm; `extra` nodes may read all of them."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32) if weight is None else weight
    channels = weight.shape[0]
    constants = {
        "conv.weight": weight,
        "zero": np.float32(0),
        "six": np.float32(6),
        "head.weight": rng.normal(size=(5, channels)).astype(np.float32),
        "head.bias": rng.normal(size=5).astype(np.float32),
        "two": np.float32(2),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["conv"], pads=[weight.shape[2] // 2] * 4),
        helper.make_node("Clip", ["conv", "zero", "six"], ["clipped"]),
        helper.make_node("GlobalAveragePool", ["clipped"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], transB=1),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def passing() -> onnx.ModelProto:
    """Make the net whose convolution hands its input on, so that every value is known exactly."""
    return net(weight=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1))


def noise(count: int, scale: float = 2.0) -> Array:
    return np.random.default_rng(count).normal(0, scale, (count, 3, SIDE, SIDE)).astype(np.float32)


def reference(model: onnx.ModelProto, images: Array, tensors: list[str]) -> dict[str, Array]:
    """Compute tensors by onnx's own evaluator, all images at once."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    return dict(zip(tensors, ReferenceEvaluator(copy).run(None, {"image": images}), strict=True))


def same(a: Observed, b: Observed) -> bool:
    """Say whether two observations are equal, up to the last digits of float64 sums."""
    exact = ("low", "high", "count", "zeros", "at_low", "at_high")
    close = ("mean", "rms", "channel_low", "channel_high", "channel_mean")
    return (
        all(getattr(a, field) == getattr(b, field) for field in exact)
        and all(np.allclose(getattr(a, field), getattr(b, field), rtol=1e-12, atol=1e-14) for field in close)
        and np.array_equal(a.histogram, b.histogram)
    )


def test_moments_are_those_of_the_reference() -> None:
    """Extremes, mean, rms and the channels' figures of every tensor agree with onnx.reference and numpy in float64."""
    model, images = net(), noise(75)
    names = ["conv", "clipped", "flat", "logits"]
    seen = observe(model, Images(images), names)
    assert list(seen) == names
    for name, values in reference(model, images, names).items():
        one, wide = seen[name], values.astype(np.float64)
        rest = (0, *range(2, wide.ndim))
        got = [one.low, one.high, one.mean, one.rms]
        assert got == pytest.approx(
            [wide.min(), wide.max(), wide.mean(), np.sqrt((wide**2).mean())], rel=1e-5, abs=1e-6
        )
        assert one.count == values.size
        np.testing.assert_allclose(one.channel_low, wide.min(axis=rest), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.channel_high, wide.max(axis=rest), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.channel_mean, wide.mean(axis=rest), rtol=1e-5, atol=1e-6)


def test_histogram_is_numpys() -> None:
    """Values on a grid that puts many on the bins' edges are counted exactly as numpy.histogram counts them."""
    images = np.random.default_rng(0).integers(-256, 257, (40, 3, SIDE, SIDE)).astype(np.float32) / 64
    images.flat[:2] = -4, 4
    seen = observe(passing(), Images(images), ["conv"], bins=512)["conv"]
    expected, edges = np.histogram(images, bins=512, range=(-4, 4))
    np.testing.assert_array_equal(seen.histogram, expected)
    np.testing.assert_array_equal(seen.edges, edges)
    assert seen.histogram.dtype == np.int64


def test_histogram_of_any_values_is_numpys_but_for_rounding() -> None:
    """Of random values no more than one in ten thousand falls into another bin than numpy puts it into."""
    images = noise(100)
    seen = observe(passing(), Images(images), ["conv"])["conv"]
    expected, _ = np.histogram(images.astype(np.float64), bins=2048, range=(seen.low, seen.high))
    assert seen.histogram.size == 2048
    assert np.abs(seen.histogram - expected).sum() <= images.size / 10_000


def test_spikes_are_counted() -> None:
    """Values that a clip has put on its ends are counted as such, and zeros with them."""
    images = noise(30, scale=8.0)
    seen = observe(passing(), Images(images), ["conv", "clipped"])
    assert seen["clipped"].zeros == seen["clipped"].at_low == (images <= 0).sum()
    assert seen["clipped"].at_high == (images >= 6).sum() > 100
    assert (seen["conv"].zeros, seen["conv"].at_low, seen["conv"].at_high) == (0, 1, 1)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that leaves room for five images, or for none, gives the same counts as batches of 32."""
    images = noise(37).round(1)
    expected = observe(passing(), Images(images), ["conv", "clipped"])
    both = 2 * images[0].nbytes
    for budget, size in ((32 * both, 32), (5 * both + 1, 5), (1, 1)):
        monkeypatch.setattr(module, "BUDGET_BYTES", budget)
        feeds = Images(images)
        seen = observe(passing(), feeds, ["conv", "clipped"])
        assert feeds.sizes == [1, size, size]  # one image to choose by, then two passes
        assert all(same(seen[name], expected[name]) for name in expected)


def test_batch_of_one_and_others_that_are_fixed() -> None:
    """Models whose batch is fixed to 1 or to 4 are fed so and give what the dynamic one gives."""
    images = noise(8).round(1)
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    expected = observe(passing(), Images(images), ["clipped"])["clipped"]
    for batch in (1, 4):
        feeds = Images(images)
        assert same(observe(net(batch, weight), feeds, ["clipped"])["clipped"], expected)
        assert set(feeds.sizes) == {batch}


def test_fixed_batch_that_does_not_divide_the_images() -> None:
    """Six images for a model that takes four at once are refused, with both numbers."""
    with pytest.raises(QuantizationError, match=r"exactly 4 images at once, and 6 "):
        observe(net(4), Images(noise(6)), ["conv"])


def test_input_and_default_tensors() -> None:
    """Without a list, what weighted layers read and write is watched; the image is one of them, a weight is none."""
    images = noise(9)
    seen = observe(net(), Images(images))
    assert list(seen) == ["image", "conv", "flat", "logits"]
    wide = images.astype(np.float64)
    assert [seen["image"].low, seen["image"].high] == [wide.min(), wide.max()]
    assert [seen["image"].mean, seen["image"].rms] == pytest.approx([wide.mean(), np.sqrt((wide**2).mean())], rel=1e-12)
    assert list(observe(net(), Images(images), ["image"])) == ["image"]


def test_model_is_left_alone() -> None:
    """The caller's model has the outputs it had."""
    model = net()
    before = model.SerializeToString()
    observe(model, Images(noise(3)), ["conv"])
    assert model.SerializeToString() == before


def test_constant_tensor() -> None:
    """A tensor that is 2 everywhere has low = high = 2 and all its values in the first bin."""
    extra = (
        helper.make_node("Mul", ["logits", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "two"], ["same"]),
    )
    seen = observe(net(extra=extra), Images(noise(7)), ["same"])["same"]
    assert (seen.low, seen.high, seen.mean, seen.rms, seen.count) == (2, 2, 2, 2, 35)
    assert seen.histogram[0] == seen.histogram.sum() == 35


def test_tensors_without_channels() -> None:
    """A tensor of one dimension has no channels, and neither has one whose second dimension changes with the batch."""
    extra = (
        helper.make_node("ReduceMax", ["flat"], ["least"], keepdims=0),
        helper.make_node("Transpose", ["flat"], ["turned"], perm=[1, 0]),
    )
    seen = observe(net(extra=extra), Images(noise(33)), ["least", "turned", "flat"])
    assert seen["least"].channel_mean is seen["turned"].channel_low is seen["turned"].channel_high is None
    assert seen["flat"].channel_low is not None
    assert seen["turned"].mean == pytest.approx(seen["flat"].mean, rel=1e-12)


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        ([("Log", ["conv"], ["planted"])], "planted"),  # NaN of negative numbers
        ([("Div", ["two", "clipped"], ["planted"])], "planted"),  # infinity of zeros
        ([("Neg", ["two"], ["minus"]), ("Div", ["minus", "clipped"], ["planted"])], "planted"),
    ],
)
def test_values_that_are_not_finite(nodes: list[tuple[str, list[str], list[str]]], name: str) -> None:
    """A NaN or an infinity in the last image's tensor stops calibration, and the message names the tensor."""
    extra = tuple(helper.make_node(*node) for node in nodes)
    images = np.abs(noise(40)) + 1
    model = net(weight=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), extra=extra)
    assert np.isfinite(observe(model, Images(images), [name])[name].high)
    images[-1, 2, 3, 3] = -1
    with pytest.raises(QuantizationError, match=rf"^{name}: .*not finite"):
        observe(model, Images(images), ["conv", name])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (["conv", "nowhere"], "^nowhere: no activation"),
        (["conv.weight"], "^conv.weight: no activation"),
        (["order"], "^order: not float32"),
        ([], "0 tensors"),
    ],
)
def test_tensors_that_cannot_be_watched(tensors: list[str], message: str) -> None:
    """A name that is unknown, a weight's, an integer tensor's, or no name at all is refused."""
    model = net(extra=(helper.make_node("ArgMax", ["logits"], ["order"]),))
    with pytest.raises(QuantizationError, match=message):
        observe(model, Images(noise(2)), tensors)


def test_no_images() -> None:
    """Nothing is calibrated on nothing."""
    with pytest.raises(QuantizationError, match="needs images"):
        observe(net(), Images(noise(1)[:0]), ["conv"])


def test_tensor_without_values() -> None:
    """A tensor that is empty for every image is named."""
    extra = (helper.make_node("NonZero", ["flat"], ["where"]), helper.make_node("Cast", ["where"], ["found"], to=1))
    with pytest.raises(QuantizationError, match=r"^found: held no values"):
        observe(net(extra=extra), Images(np.zeros((3, 3, SIDE, SIDE), np.float32)), ["found"])


@pytest.mark.parametrize("images", [noise(3)[:, :2], noise(3).astype(np.float64)])
def test_images_that_do_not_fit(images: Array) -> None:
    """Wrong channels or a wrong type are refused with what was fed."""
    with pytest.raises(QuantizationError, match=rf"does not run on image {images.dtype}\[1, {images.shape[1]}, 6, 6\]"):
        observe(net(), Images(images), ["conv"])


def test_model_that_does_not_load() -> None:
    """An operator that ONNX Runtime has not got is reported as the model's fault."""
    with pytest.raises(QuantizationError, match="could not load the model"):
        observe(net(extra=(helper.make_node("Nonsense", ["conv"], ["planted"]),)), Images(noise(2)), ["conv"])


@pytest.mark.parametrize("change", [lambda a: a * 1.5, lambda a: a * 0.5, lambda a: a[:-1]])
def test_feeds_that_change(change: Callable[[Array], Array]) -> None:
    """Images that are others the second time are noticed, be they wider, narrower or fewer."""

    class Changing(Images):
        def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
            if len(self.sizes) == 2:  # one image to choose the batch by, then the first pass
                self.images = change(self.images)
            return super().batches(size)

    with pytest.raises(QuantizationError, match=r"^conv: took other values when the images were run again"):
        observe(net(), Changing(noise(20)), ["conv"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Ten times the images take at most 1.1 times the memory of a process that calibrates a ResNet-8."""
    path = tmp_path / "resnet8.onnx"
    code = f"import sys; sys.path.insert(0, {str(BENCH.parent)!r}); import bench_calibration as b, pathlib; "
    code += f"b.write_resnet8(pathlib.Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    peaks = []
    for count in (64, 640):
        command = [sys.executable, str(BENCH), "edgecnn", str(path), str(count)]
        peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["peak"])
    assert 0 < peaks[1] <= 1.1 * peaks[0]
