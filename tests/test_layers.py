"""Layers as data: what trace() says of every family, held against torch itself, and that all of them quantize."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgecnn.exporter import ExportRequest
from edgecnn.layers import Conv, Depthwise, Dropout, Layer, Linear, ModelConfig, Pool, Residual, UnfitError, trace
from edgecnn.nets import NetChoice, build_net, choose_net, measure_cost
from edgecnn.nets.table import measured_rows
from edgecnn.spec import Preprocess, Tolerance

CHOICES = {
    "edge-n": NetChoice(net="edge", size="n"),
    "edge-s": NetChoice(net="edge", size="s"),
    "edge-m": NetChoice(net="edge", size="m"),
    "edge-deep": NetChoice(net="edge", size="n", depth=3, width=0.5, dropout=0.2),
    "lenet": NetChoice(net="lenet"),
    "resnet8": NetChoice(net="resnet8"),
    "resnet8-half": NetChoice(net="resnet8", width=0.5),
    "depthwise": NetChoice(net="depthwise"),
    "depthwise-wide": NetChoice(net="depthwise", width=0.5),
    "compact": NetChoice(net="compact"),
    "compact-widths": NetChoice(net="compact", widths=(6, 10), depth=3),
}
# Every option that a layer has, in one net: paddings, strides, kernels of even size, and planes that are not square.
ODD: tuple[Layer, ...] = (
    Conv(filters=5, kernel=4, stride=1, padding=1, activation="relu6"),
    Depthwise(kernel=5, stride=2, padding=0, norm=False),
    Pool(pooling="average", kernel=3, stride=1, padding=1),
    Residual(layers=(Conv(filters=7, kernel=3, stride=2), Depthwise(kernel=3), Conv(filters=7, kernel=1, activation="none")), activation="relu6"),
    Residual(layers=(Pool(kernel=3, stride=1, padding=1), Depthwise(activation="none"))),
    Pool(kernel=3, stride=2),
    Conv(filters=4, kernel=1, norm=False, activation="none"),
    Dropout(rate=0.5),
    Linear(units=9, activation="none"),
    Linear(units=6),
)  # fmt: skip


def side(size: int, channels: int = 1, width: int | None = None) -> Preprocess:
    return Preprocess(height=size, width=width or size, channels=3 if channels == 3 else 1)


def image(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.channels, preprocess.height, preprocess.width


def config_of(name: str, preprocess: Preprocess) -> ModelConfig:
    return ModelConfig(net="odd", layers=ODD) if name == "odd" else choose_net(CHOICES[name], preprocess, 10)


def seen_by_hooks(net: nn.Module, preprocess: Preprocess) -> list[tuple[str, tuple[int, ...]]]:
    """Run one image, and list what the modules that make a row each gave: the last module of each layer."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def note(kind: str) -> Any:
        return lambda module, inputs, output: found.append((kind, tuple(output.shape[1:])))

    for module in net.modules():
        kinds = {
            nn.Conv2d: "conv",
            nn.Linear: "linear",
            nn.MaxPool2d: "pool",
            nn.AvgPool2d: "pool",
            nn.Dropout: "dropout",
        }
        kind = "residual" if type(module).__name__ == "ResidualBlock" else kinds.get(type(module))
        if kind:
            module.register_forward_hook(note(kind))
    with torch.no_grad():
        net.eval()(torch.zeros(1, *image(preprocess)))
    return found


def kind_of(name: str) -> str:
    first, second, *_ = name.split()
    word = second if first in ("shortcut", "average", "max") else first
    return "conv" if word == "depthwise" else word


SIZES = [side(8), side(8, 3), side(28), side(28, 3), side(64), side(96, 3)]
NAMES = [*CHOICES, "odd"]


@pytest.mark.parametrize("preprocess", SIZES, ids=lambda one: f"{one.width}x{one.channels}")
@pytest.mark.parametrize("name", NAMES)
def test_trace_says_what_torch_does(name: str, preprocess: Preprocess) -> None:
    """Parameters, multiplications and shapes of every layer are those of the modules as torch runs them."""
    if name == "odd" and preprocess.height < 28:
        preprocess = side(31, preprocess.channels, 40)
    config = config_of(name, preprocess)
    rows = trace(config.layers, image(preprocess), 10)
    net = build_net(config, preprocess, 10)
    cost = measure_cost(net, preprocess)
    assert sum(row.parameters for row in rows) == cost.parameters == sum(p.numel() for p in net.parameters())
    assert sum(row.macs for row in rows) == cost.macs
    # A shortcut is computed before the layers around which it leads, and told after them: the order may differ.
    wanted = sorted((kind_of(row.name), row.shape) for row in rows)
    assert wanted == sorted(seen_by_hooks(net, preprocess))
    assert rows[-1].shape == (10,)


@pytest.mark.parametrize(
    ("size", "most"), [("n", 30_000), ("s", 50_000), ("m", 100_000)]
)  # fmt: skip
@pytest.mark.parametrize("pixels", [8, 28])
def test_edge_is_no_larger_than_its_size_says(size: Any, most: int, pixels: int) -> None:
    """For 10 classes the sizes of edge stay within 30, 50 and 100 thousand parameters, and use most of them."""
    net = build_net(choose_net(NetChoice(size=size), side(pixels), 10), side(pixels), 10)
    assert 0.9 * most < sum(p.numel() for p in net.parameters()) <= most


def test_resnet8_is_the_benchmarks() -> None:
    """For CIFAR's images resnet8 has the 77 to 78 thousand parameters and 12.5 million MACs of MLPerf Tiny's."""
    rows = trace(choose_net(NetChoice(net="resnet8"), side(32, 3), 10).layers, (3, 32, 32), 10)
    assert 77_000 <= sum(row.parameters for row in rows) <= 78_500
    assert sum(row.macs for row in rows) == pytest.approx(12.5e6, rel=0.005)


def test_lenet_is_the_textbooks_but_for_its_padding() -> None:
    """LeNet-5's layers have their known counts, but that both convolutions keep the size: 784 values are flattened."""
    rows = trace(choose_net(NetChoice(net="lenet"), side(28), 10).layers, (1, 28, 28), 10)
    assert [row.parameters for row in rows if row.parameters] == [156, 2416, (784 + 1) * 120, 10164, 850]
    assert [row.shape for row in rows if row.macs] == [(6, 28, 28), (16, 14, 14), (120,), (84,), (10,)]


# Receptive fields


def measured_fields(layers: tuple[Layer, ...], pixels: int) -> list[int]:
    """Measure, layer by layer, how wide the pixels lie that one value in the middle has a gradient of.

    Float64, weights that are all positive, batch norm as it is fresh, and many random images, for max pooling lets
    one pixel of each window through.
    """
    torch.manual_seed(0)
    net = build_net(ModelConfig(net="any", layers=layers), side(pixels), 2).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.uniform_(0.1, 1.0)
                weight /= weight[0].sum()
    found = []
    images = torch.rand(16, 1, pixels, pixels, dtype=torch.float64).requires_grad_()
    planes = images
    for layer in net.layers:
        planes = layer(planes)
        middle = planes.shape[2] // 2
        (gradient,) = torch.autograd.grad(planes[:, :, middle, middle].sum(), images, retain_graph=True)
        seen = (gradient != 0).any(0).any(0)
        rows, columns = (seen.any(axis).nonzero() for axis in (1, 0))
        sides = {int(line.max() - line.min()) + 1 for line in (rows, columns)}
        assert len(sides) == 1
        assert int(rows.min()) > 0, "the field is cut off by the border"
        assert int(rows.max()) < pixels - 1, "the field is cut off by the border"
        found.append(sides.pop())
    return found


def outer_rows(layers: tuple[Layer, ...], pixels: int) -> list[int | None]:
    """Give the fields that trace() says each layer has, a residual's parts left out."""
    return [row.field for row in trace(layers, (1, pixels, pixels), 2)[:-1] if not row.name.startswith("  ")]


# Choice, side for which its layers are chosen, side of the measurement. Narrow nets, for width changes no field.
FIELDS: dict[str, tuple[NetChoice, int, int]] = {
    "edge-n": (NetChoice(net="edge", size="n", width=0.25), 28, 64),
    "edge-m for 96 pixels": (NetChoice(net="edge", size="m", width=0.1), 96, 160),
    "lenet": (CHOICES["lenet"], 28, 48),
    "resnet8": (NetChoice(net="resnet8", width=0.25), 32, 64),
    "depthwise": (NetChoice(net="depthwise", width=0.05), 28, 112),
    "compact": (NetChoice(net="compact", widths=(4, 4, 4)), 28, 64),
}


@pytest.mark.parametrize("name", FIELDS)
def test_receptive_fields_are_what_gradients_reach(name: str) -> None:
    """The side of what each layer sees is that of the pixels with a gradient, where the image is large enough."""
    choice, chosen, pixels = FIELDS[name]
    layers = choose_net(choice, side(chosen), 2).layers
    kinds = (Conv, Depthwise, Residual)
    last = next(place for place, layer in enumerate(layers) if not isinstance(layer, kinds) and _flattens(layer))
    assert outer_rows(layers, pixels)[:last] == measured_fields(layers[:last], pixels)


def _flattens(layer: Layer) -> bool:
    return isinstance(layer, Linear | Dropout) or (isinstance(layer, Pool) and layer.kernel == "all")


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ((Conv(filters=2), Conv(filters=2)), [3, 5]),
        ((Conv(filters=2, stride=2), Conv(filters=2), Conv(filters=2, stride=2), Conv(filters=2)), [3, 7, 11, 19]),
        ((Pool(), Pool(), Conv(filters=2)), [2, 4, 12]),
        ((Conv(filters=2, kernel=4, padding=0), Pool(kernel=3, stride=1), Depthwise(kernel=5)), [4, 6, 10]),
        ((Conv(filters=2, kernel=1, stride=3, padding=0), Conv(filters=2)), [1, 7]),
        ((Residual(layers=(Conv(filters=4, stride=2), Conv(filters=4))), Conv(filters=2)), [7, 11]),
    ],
)  # fmt: skip
def test_receptive_fields_by_hand(layers: tuple[Layer, ...], wanted: list[int]) -> None:
    """Each layer adds its kernel less one, times the strides before it: by hand, by trace() and by gradients."""
    assert outer_rows(layers, 41) == wanted
    assert measured_fields(layers, 41) == wanted


@pytest.mark.parametrize(("pixels", "wanted"), [(6, [3, 5, None]), (7, [3, 5, None]), (8, [3, 5, 7])])
def test_a_field_as_large_as_the_image_is_all_of_it(pixels: int, wanted: list[int | None]) -> None:
    """From the size of the image on the field has no number, and neither has what follows global pooling."""
    layers: tuple[Layer, ...] = (Conv(filters=1),) * 3
    assert outer_rows(layers, pixels) == wanted
    after = (*layers, Pool(pooling="average", kernel="all"), Conv(filters=2, kernel=1))
    assert outer_rows(after, pixels)[3:] == [None, None]


@pytest.mark.parametrize("name", ["edge-n", "resnet8-half", "lenet", "odd"])
def test_measured_rows_are_the_traced_ones(name: str) -> None:
    """The table of somebody else's module, measured, has the shapes, counts and fields that ours has by arithmetic."""
    preprocess = side(64, 3)
    config = config_of(name, preprocess)
    net = build_net(config, preprocess, 10).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measured = measured_rows(net, preprocess)
    traced = trace(config.layers, image(preprocess), 10)
    assert sum(row.parameters for row in measured) == sum(row.parameters for row in traced)
    multiplied = [(row.shape, row.macs) for row in measured if row.macs]
    assert sorted(multiplied) == sorted((row.shape, row.macs) for row in traced if row.macs)
    wanted = {(row.shape, row.field) for row in traced if row.macs and row.field and row.field < 32}
    found = {(row.shape, row.field) for row in measured if "Conv2d" in row.name}
    assert wanted <= found
    assert len(wanted) >= 2
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(not module._forward_hooks for module in net.modules())


def test_a_shared_layer_is_counted_once_and_run_twice() -> None:
    """A module that is called twice has two rows, its parameters in the first and its multiplications in both."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(81, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(torch.relu(self.conv(x)))).flatten(1))  # type: ignore[no-any-return]

    rows = measured_rows(Twice(), side(9))
    assert [(row.name, row.parameters, row.macs, row.field) for row in rows] == [
        ("conv Conv2d", 10, 729, 3),
        ("conv Conv2d", 0, 729, 5),
        ("head Linear", 164, 162, None),
    ]


# Layers that do not fit


@pytest.mark.parametrize(
    ("layers", "path", "told"),
    [
        ((Pool(), Pool(), Pool(), Pool()), (3,), "max pool 2x2 does not fit: what comes in is 1x1, after strides of 8 in all"),
        ((Conv(filters=2, kernel=9, padding=0),), (0,), "conv 9x9 2 relu does not fit: what comes in is 8x8"),
        ((Linear(units=3), Conv(filters=2)), (1,), "needs planes, but a linear layer before it has flattened them"),
        ((Linear(units=3), Pool(kernel="all")), (1,), "needs planes"),
        ((Linear(units=3), Residual(layers=(Depthwise(),))), (1,), "residual needs planes"),
        ((Residual(layers=()),), (0,), "residual holds no layers"),
        ((Residual(layers=(Conv(filters=1, padding=0),)),), (0,), "make 1x6x6 of 1x8x8, and no stride makes a shortcut"),
        ((Dropout(), Residual(layers=(Pool(), Pool(), Pool(), Pool()))), (1, 3), "what comes in is 1x1"),
        ((Pool(kernel=3, padding=2),), (0,), "a padding of 2 is more than half of the kernel"),
        ((Pool(kernel="all", stride=2),), (0,), "one window has neither stride nor padding"),
        ((Pool(kernel="all", padding=1),), (0,), "one window has neither stride nor padding"),
        ((Conv(filters=60000), Dropout(), Conv(filters=60000, kernel=1)), (2,), "has 3,600,780,000 parameters"),
        ((Conv(filters=2, kernel=1, padding=64), Conv(filters=65536, kernel=1)), (1,), "1,212,153,856 values come out"),
        ((Conv(filters=9000, kernel=1), Linear(units=5000)), (1,), "50,000,000 is the most"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_found(layers: tuple[Layer, ...], path: tuple[int, ...], told: str) -> None:
    """What does not fit, or is too large to be meant, is an error that leads to the layer and says why."""
    with pytest.raises(UnfitError) as caught:
        trace(layers, (1, 8, 8), 10)
    assert caught.value.path == path
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_layer_counts_towards_the_size() -> None:
    """A linear layer to so many classes that the net is too large is found behind the last layer."""
    with pytest.raises(UnfitError) as caught:
        trace((Linear(units=60000),), (1, 1, 1), 1000)
    assert caught.value.path == (1,)


# Deployment


@pytest.mark.slow
@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("name", ["edge-m", "lenet", "resnet8", "depthwise", "compact"])
def test_every_family_quantizes(name: str, tmp_path: Path) -> None:
    """Of every family batch norms fold, every layer is fused in int8, and int8 gives about what float32 gives."""
    from edgecnn.backends.base import open_session
    from edgecnn.spec import Artifact, BackendRef
    from edgecnn.training.checkpoint import Header, save_checkpoint
    from edgecnn_exporters.onnx import OnnxExporter
    from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter

    preprocess = Preprocess(height=12, width=12, channels=3, scale=1 / 64, zero_point=128)
    torch.manual_seed(0)
    config = choose_net(CHOICES[name], preprocess, 5)
    net = build_net(config, preprocess, 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one pass then fills the norms
    pixels = np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3), dtype=np.uint8)
    net.train()(torch.from_numpy((pixels.astype(np.float32) - 128) / 64).permute(0, 3, 1, 2))
    labels = tuple("abcde")
    save_checkpoint(tmp_path / "net", net.eval(), Header(model=config, preprocess=preprocess, labels=labels))
    # A fresh net hardly tells images apart, so answers may change: the error below is what counts here.
    request = ExportRequest(
        checkpoint=tmp_path / "net", folder=tmp_path, calibration=pixels, tolerance=Tolerance(max_drop=0.9)
    )
    fp32 = OnnxExporter().export(request).path
    operators = [node.op_type for node in onnx.load(str(fp32)).graph.node]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == convolutions
    linear = sum(isinstance(module, nn.Linear) for module in net.modules())
    int8 = OnnxInt8Exporter().export(dataclasses.replace(request, written={"fp32": fp32}))
    layers = int8.details["fusion"]["layers"]
    assert [layer["op"] for layer in layers].count("Conv") == convolutions
    assert len(layers) == convolutions + linear
    assert all(layer["int8"] for layer in layers)
    kernels = int8.details["fusion"]["operators"]
    assert (kernels["QLinearConv"], kernels["QGemm"]) == (convolutions, linear)
    assert not {"Conv", "FusedConv", "NchwcConv", "Gemm"} & set(kernels)
    logits = {}
    for path in (fp32, int8.path):
        with open_session(BackendRef(backend="onnxruntime"), Artifact(name="a", format="onnx", path=path)) as session:
            logits[path] = session.run({"image": pixels})["logits"].astype(np.float64)
    signal = logits[fp32] - logits[fp32].mean(0)  # what tells images apart, which is little in a fresh net
    assert np.sqrt(np.square(logits[int8.path] - logits[fp32]).mean() / np.square(signal).mean()) < 0.5
    assert len(json.dumps(int8.details)) < 100_000


def test_every_size_of_a_layer_is_whole() -> None:
    """The values that a row counts are the product of its shape, which has no side of zero."""
    for choice in CHOICES.values():
        rows = trace(choose_net(choice, side(28), 10).layers, (1, 28, 28), 10)
        assert min(math.prod(row.shape) for row in rows) >= 1
