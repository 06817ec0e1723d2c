"""What a net sees: maps against scipy, Grad-CAM against pencil and paper, planted blobs found, and the page about it."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from scipy import signal, special
from torch import nn
from torch.nn import functional

from edgecnn.cli import cli
from edgecnn.errors import CheckpointError, UsageError
from edgecnn.nets.features import MOST_LAYERS, Features, look
from edgecnn.report.features import MOST_MAPS, draw_image, draw_kernels, draw_maps, draw_saliency, features_page
from edgecnn.report.html import data_uri
from edgecnn.spec import Preprocess
from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)


def _side(size: int, channels: int = 1, width: int | None = None) -> Preprocess:
    return Preprocess(
        height=size, width=width or size, channels=3 if channels == 3 else 1, scale=1 / 64, zero_point=100
    )


def _image(preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, preprocess.shape, dtype=np.uint8)


def _seen(image: npt.NDArray[np.uint8], preprocess: Preprocess) -> Array:
    """Normalise by hand: float64 (channels, height, width)."""
    return ((image.astype(np.float64) - preprocess.zero_point) * preprocess.scale).transpose(2, 0, 1)


def _convolve(x: Array, convolution: nn.Conv2d) -> Array:
    """Convolve (in, height, width) by scipy, with a margin of half the kernel."""
    weight = convolution.weight.detach().double().numpy()
    bias = convolution.bias.detach().numpy() if convolution.bias is not None else np.zeros(len(weight))
    return np.stack([
        sum(signal.correlate2d(plane, kernel, mode="same") for plane, kernel in zip(x, kernels, strict=True)) + add
        for kernels, add in zip(weight, bias, strict=True)
    ])  # fmt: skip


def _cam(maps: Array, weights: Array) -> Array:
    """Zhou et al. 2016: the maps weighted by the class's row of the last layer; what is negative is left out."""
    total = np.maximum(np.tensordot(weights, maps, axes=1), 0)
    return total / total.max() if total.max() > 0 else total


class Pooled(nn.Module):
    """Convolution, ReLU, the mean of each map, a linear layer: the net of Zhou et al. 2016."""

    def __init__(self, inputs: int, filters: int, classes: int, inplace: bool = True) -> None:
        super().__init__()
        self.odd_name = nn.Conv2d(inputs, filters, 3, padding=1)
        self.step = nn.ReLU(inplace=inplace)
        self.last = nn.Linear(filters, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.step(self.odd_name(x)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_grad_cam_is_the_class_activation_map(channels: int, inplace: bool) -> None:
    """Behind average pooling and one linear layer Grad-CAM equals the map that Zhou et al. 2016 compute without gradients."""
    torch.manual_seed(2)
    net, preprocess = Pooled(channels, 6, 4, inplace), _side(7, channels, width=9)
    image = _image(preprocess)
    features = look(net, preprocess, image)
    maps = np.maximum(_convolve(_seen(image, preprocess), net.odd_name), 0)
    weights, bias = net.last.weight.detach().double().numpy(), net.last.bias.detach().double().numpy()
    logits = weights @ maps.mean(axis=(1, 2)) + bias
    assert np.allclose(features.layers[0].maps, maps, atol=1e-5)
    assert np.allclose(features.logits, logits, atol=1e-5)
    assert np.allclose(features.probabilities, special.softmax(logits), atol=1e-5)
    assert [saliency.index for saliency in features.saliency] == np.argsort(-logits)[:2].tolist()
    for saliency in features.saliency:
        expected = _cam(maps, weights[saliency.index])
        assert expected.max() == 1
        assert np.allclose(saliency.cells, expected, atol=1e-5)
        assert np.allclose(saliency.map, expected, atol=1e-5)  # the layer has the image's size
    assert np.array_equal(features.kernels, net.odd_name.weight.detach().numpy())


def test_grad_cam_behind_anything_is_the_mean_slope() -> None:
    """Where a hidden layer follows, each map's weight is the slope of the logit as the whole map is raised, measured in float64."""
    torch.manual_seed(3)
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 9, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)]
    net = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), *head).double()
    preprocess = _side(6)
    image = _image(preprocess)
    features = look(net, preprocess, image)
    maps = np.maximum(_convolve(_seen(image, preprocess), net[0]) / np.sqrt(1 + net[1].eps), 0)  # type: ignore[arg-type]
    step = 1e-6

    def logit(raised: Array, index: int) -> float:
        return float(nn.Sequential(*head)(torch.from_numpy(raised)[None])[0, index].detach())

    for saliency in features.saliency:
        slopes = []
        for channel in range(5):
            raise_one = np.zeros((5, 1, 1))
            raise_one[channel] = step
            rise = logit(maps + raise_one, saliency.index) - logit(maps - raise_one, saliency.index)
            slopes.append(rise / (2 * step) / maps[0].size)
        assert np.allclose(saliency.cells, _cam(maps, np.array(slopes)), atol=1e-5)


class Spoil(nn.Module):
    """Changes what it is given in place, as an activation that hooks do not know might."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(-3).add_(7)


def test_maps_are_copied_before_anything_changes_them_in_place() -> None:
    """Each layer's maps are those that functional calls give, whatever works in place behind them."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Spoil(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, bias=False), nn.ReLU6(inplace=True), Spoil(), nn.Conv2d(6, 5, 1), Spoil(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    norm: Any = net[1]
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        value.data.uniform_(0.5, 2)
    preprocess = _side(10, 3)
    image = _image(preprocess)
    layers = look(net, preprocess, image).layers
    x = torch.from_numpy(_seen(image, preprocess)).float()[None]
    norms = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    first = functional.relu(functional.batch_norm(functional.conv2d(x, net[0].weight, net[0].bias, padding=1), *norms))  # type: ignore[arg-type]
    second = functional.relu6(functional.conv2d(functional.max_pool2d(7 - 3 * first, 2), net[5].weight))  # type: ignore[arg-type]
    third = functional.conv2d(7 - 3 * second, net[8].weight, net[8].bias)  # type: ignore[arg-type]
    assert [layer.name for layer in layers] == ["2", "6", "8"]
    assert [layer.steps for layer in layers] == [
        ("3x3 convolution", "batch norm", "ReLU"), ("3x3 convolution", "ReLU6"), ("1x1 convolution",)
    ]  # fmt: skip
    assert [layer.first for layer in layers] == [True, False, False]
    for layer, expected in zip(layers, (first, second, third), strict=True):
        assert np.allclose(layer.maps, expected[0].detach().numpy(), atol=1e-5)


def _blob(row: int, column: int) -> npt.NDArray[np.uint8]:
    image = np.full((16, 16, 1), 20, dtype=np.uint8)
    image[row : row + 4, column : column + 4] = 250
    return image


class Blobs(nn.Module):
    """Answers "blob" for a bright 3x3 square anywhere, else "none"; made by hand, not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.find = nn.Conv2d(1, 2, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.halve = nn.MaxPool2d(2)
        self.pass_on = nn.Conv2d(2, 2, 1)
        self.act2 = nn.ReLU(inplace=True)
        self.last = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.find.weight[0] = 1.0
            self.find.weight[1] = -1.0
            self.find.bias[0] = -8.0  # type: ignore[index]  # a 3x3 square of ones exceeds it, what is darker does not
            self.find.bias[1] = 1.0  # type: ignore[index]
            self.pass_on.weight[:, :, 0, 0] = torch.eye(2)
            self.last.weight[:] = torch.tensor([[90.0, -1.0], [-90.0, 1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act2(self.pass_on(self.halve(self.act(self.find(x)))))
        logits: torch.Tensor = self.last(x.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 11), (11, 1), (11, 11), (6, 6)])
def test_saliency_follows_what_the_answer_comes_from(row: int, column: int) -> None:
    """A net that answers by a bright square looks at that square, wherever it lies, and its opposite at all else."""
    preprocess = Preprocess(height=16, width=16, channels=1, scale=1 / 250)
    features = look(Blobs(), preprocess, _blob(row, column))
    blob, none = features.saliency
    assert (blob.index, none.index) == (0, 1)
    inside = np.zeros((16, 16), dtype=bool)
    inside[max(0, row - 1) : row + 5, max(0, column - 1) : column + 5] = True
    assert blob.map[inside].sum() > 0.9 * blob.map.sum() > 0
    assert none.map[~inside].sum() > 0.9 * none.map.sum() > 0


def test_saliency_is_enlarged_to_the_image() -> None:
    """Between the centres of the layer's cells the map runs straight, along either side, and is flat outside of them."""
    torch.manual_seed(10)
    net, preprocess = nn.Sequential(nn.AvgPool2d(4), Pooled(1, 6, 3)), _side(12, width=20)
    saliency = look(net, preprocess, _image(preprocess)).saliency[0]
    assert saliency.cells.shape == (3, 5)
    assert np.ptp(saliency.cells) > 0
    down = np.stack([np.interp(np.arange(12), np.arange(3) * 4 + 1.5, column) for column in saliency.cells.T])
    across = np.stack([np.interp(np.arange(20), np.arange(5) * 4 + 1.5, row) for row in down.T])
    assert np.allclose(saliency.map, across, atol=1e-6)


class Residual(nn.Module):
    """Two blocks with shortcuts, the first through a convolution, added in place or not; one ReLU module used five times."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.relu = nn.ReLU(inplace=inplace)
        self.stem = self._conv(1, 4, 3)
        self.a, self.b, self.shortcut = self._conv(4, 8, 3), self._conv(8, 8, 3), self._conv(4, 8, 1)
        self.c, self.d = self._conv(8, 8, 3), self._conv(8, 8, 3)
        self.last = nn.Linear(8, 3)

    @staticmethod
    def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs))

    def _add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.inplace:
            x += y
            return x
        return x + y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self._add(self.b(self.relu(self.a(x))), self.shortcut(x)))
        x = self.relu(self._add(self.d(self.relu(self.c(x))), x))
        logits: torch.Tensor = self.last(x.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("inplace", [True, False])
def test_shortcuts_and_shared_activations(inplace: bool) -> None:
    """The sum's activation is the layer, not its terms; the last call of a shared module is the one differentiated at."""
    torch.manual_seed(5)
    net, preprocess = Residual(inplace), _side(6)
    image = _image(preprocess)
    features = look(net, preprocess, image)
    plain, added = ("3x3 convolution", "batch norm", "ReLU"), ("sum of branches", "ReLU")
    assert [layer.steps for layer in features.layers] == [plain, plain, added, plain, added]
    assert {layer.name for layer in features.layers} == {"relu"}
    maps = features.layers[-1].maps.astype(np.float64)
    weights = net.last.weight.detach().double().numpy()
    assert np.allclose(weights @ maps.mean(axis=(1, 2)) + net.last.bias.detach().numpy(), features.logits, atol=1e-5)
    for saliency in features.saliency:
        assert np.allclose(saliency.cells, _cam(maps, weights[saliency.index]), atol=1e-5)


def test_linear_bottlenecks_are_layers() -> None:
    """A convolution that no activation follows is shown as it is, with its norm."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(50, 3),
    )  # fmt: skip
    features = look(net, _side(5), _image(_side(5)))
    assert [layer.steps for layer in features.layers] == [
        ("3x3 convolution", "ReLU6"), ("3x3 depthwise convolution", "batch norm", "ReLU6"), ("1x1 convolution", "batch norm"),
    ]  # fmt: skip
    assert features.layers[-1].maps.min() < 0


class Functional(nn.Module):
    """Activations and pooling without modules, and a last convolution that leaves one place, as LeNet-5 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2)
        self.act = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.one(x), inplace=True), 2)
        return self.act(self.three(functional.relu(self.two(x)))).flatten(1)


def test_what_hooks_cannot_see_is_shown_before_it() -> None:
    """Without activation modules the convolutions' own outputs are the layers; one place alone is no map."""
    torch.manual_seed(6)
    net, preprocess = Functional(), _side(10)
    image = _image(preprocess)
    features = look(net, preprocess, image)
    assert [(layer.name, layer.maps.shape) for layer in features.layers] == [("one", (3, 8, 8)), ("two", (4, 2, 2))]
    assert np.allclose(features.layers[0].maps, _convolve(_seen(image, preprocess), net.one)[:, 1:-1, 1:-1], atol=1e-5)


def test_many_layers_are_thinned_out() -> None:
    """Of very many layers the first, the last and some between are kept, and each keeps its number."""
    net = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()) for _ in range(30)), nn.Flatten(), nn.Linear(4, 2)
    )
    features = look(net, _side(2), _image(_side(2)))
    numbers = [layer.number for layer in features.layers]
    assert (len(numbers), features.layer_count) == (MOST_LAYERS, 30)
    assert (numbers[0], numbers[-1]) == (1, 30)
    assert all(2 <= after - before <= 3 for before, after in itertools.pairwise(numbers))
    assert [layer.name for layer in features.layers] == [f"{number - 1}.1" for number in numbers]


def _state(net: nn.Module) -> Any:
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    gradients = [(parameter.grad, parameter.requires_grad) for parameter in net.parameters()]
    return modes, hooks, gradients, {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_net_is_left_as_it_was_found(fails: bool) -> None:
    """Modes module by module, hooks, gradients, frozen parameters and statistics are as before, even after an error."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)
    )
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    if fails:
        net[5].bias.data.fill_(float("nan"))  # type: ignore[union-attr,operator]
    before = _state(net)
    generator = torch.get_rng_state()
    if fails:
        with pytest.raises(CheckpointError, match="not finite"):
            look(net, _side(4), _image(_side(4)))
    else:
        look(net, _side(4), _image(_side(4)))
    after = _state(net)
    assert after[:3] == before[:3]
    assert all(gradient is None for gradient, _ in after[2])
    assert before[0].count(True) == 6  # all but the batch norm
    assert all(torch.equal(value, before[3][name]) or (fails and name == "5.bias") for name, value in after[3].items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_inference_mode_around_it_changes_nothing() -> None:
    """Called where gradients are switched off it still finds them."""
    torch.manual_seed(7)
    net, preprocess = Pooled(1, 4, 3), _side(5)
    free = look(net, preprocess, _image(preprocess))
    with torch.inference_mode():
        shut = look(net, preprocess, _image(preprocess))
    assert free.saliency[0].map.max() > 0
    assert np.array_equal(free.saliency[0].map, shut.saliency[0].map)


def test_one_logit_has_no_runner_up() -> None:
    """A net of one label has one saliency map."""
    assert len(look(Pooled(1, 2, 1), _side(4), _image(_side(4))).saliency) == 1


class Cut(Pooled):
    """A net whose answer cannot be differentiated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "no convolution"),
        (nn.Flatten(), "no convolution"),
        (Cut(1, 2, 2), "no gradient of the net's answer reaches step"),
    ],
)
def test_nets_that_cannot_be_looked_at_are_refused(net: nn.Module, told: str) -> None:
    """A net without convolutions, or without gradients, is turned down with the reason."""
    with pytest.raises(UsageError, match=told):
        look(net, _side(4), _image(_side(4)))


def _opened(png: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_kernels_are_drawn_on_one_signed_scale() -> None:
    """Positive weights are red, negative ones blue, zero white, and half the weight is never the full colour."""
    kernels = np.zeros((2, 1, 2, 2), dtype=np.float32)
    kernels[0, 0] = [[2, -2], [0, 0]]
    kernels[1, 0] = [[1, -1], [0, 0]]
    png, largest = draw_kernels(kernels)
    picture = _opened(png)
    assert (largest, picture.shape) == (2, (96, 180, 3))  # tiles of 72 with gaps of 12 around them
    red, blue, half = picture[20, 20], picture[20, 60], picture[20, 104]
    assert red[0] > red[1] + 100
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert picture[60, 20].tolist() == picture[60, 104].tolist() == [255, 255, 255]
    assert half[0] > half[2]
    assert half.sum() > red.sum() + 100
    assert len(np.unique(picture[12:48, 12:48].reshape(-1, 3), axis=0)) == 1  # whole pixels, no smoothing


def test_colour_kernels_stand_side_by_side() -> None:
    """The weights for red, green and blue are three squares with a line between them."""
    kernels = np.stack([np.full((2, 2), value, dtype=np.float32) for value in (1, 0, -1)])[None]
    picture = _opened(draw_kernels(kernels)[0])
    row = picture[20, 12:-12]
    cell = row.shape[0] // 8  # 2 + 1 + 2 + 1 + 2
    colours = [row[cell * at + cell // 2].tolist() for at in range(8)]
    assert colours[0] == colours[1]
    assert colours[0][0] > colours[0][2]
    assert colours[3] == colours[4] == [255, 255, 255]
    assert colours[6] == colours[7]
    assert colours[6][2] > colours[6][0]
    assert colours[2] == colours[5] == picture[0, 0].tolist()


def test_each_map_has_its_own_contrast() -> None:
    """A map a thousand times weaker looks the same; a dead one is black."""
    plane = RANDOM.random((8, 8), dtype=np.float32)
    picture = _opened(draw_maps(np.stack([plane, plane / 1000, plane * 0])))
    one, two, three = (picture[6:102, left : left + 96] for left in (6, 108, 210))
    assert picture.shape == (108, 312, 3)
    assert np.array_equal(one, two)
    assert one.max() == 255
    assert three.max() == 0
    brightest = np.unravel_index(one.sum(axis=2).argmax(), (96, 96))
    assert tuple(int(at) // 12 for at in brightest) == np.unravel_index(plane.argmax(), (8, 8))


def test_maps_of_either_sign_have_white_for_zero() -> None:
    """As soon as a layer has negative values its maps are drawn as kernels are."""
    picture = _opened(draw_maps(np.array([[[-1, 0, 1]]], dtype=np.float32)))
    blue, white, red = (picture[10, 6 + 32 * at + 10] for at in range(3))
    assert blue[2] > blue[0] + 100
    assert red[0] > red[2] + 100
    assert white.tolist() == [255, 255, 255]


def test_large_pictures_are_reduced() -> None:
    """A 224x224 map takes no more room than a tile, a 1000x500 image no more than a picture, and averages stay."""
    maps = np.zeros((1, 224, 224), dtype=np.float32)
    maps[0, :, :112] = 1
    picture = _opened(draw_maps(maps))
    assert picture.shape == (108, 108, 3)
    assert (picture[50, 20].sum(), picture[50, 90].sum()) == (255 + 255 + 196, 0)
    assert _opened(draw_image(np.full((500, 1000, 3), 9, dtype=np.uint8))).shape == (144, 288, 3)
    assert _opened(draw_image(np.full((4, 8, 1), 9, dtype=np.uint8))).shape == (144, 288, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_saliency_colours_only_where_it_is(channels: int) -> None:
    """Places that speak for nothing stay grey, the strongest is the most yellow, and both keep the image below."""
    image = np.full((2, 2, channels), 100, dtype=np.uint8)
    image[1] = 200
    picture = _opened(draw_saliency(image, np.array([[0, 1], [0, 0.5]], dtype=np.float32)))
    none, full, lighter, half = picture[10, 10], picture[10, 280], picture[280, 10], picture[280, 280]
    assert np.ptp(none) == np.ptp(lighter) == 0
    assert lighter[0] > none[0] + 50
    assert full[0] > full[2] + 60
    assert full[1] > full[2] + 60
    assert half[0] > half[1] > half[2]


def _page(net: nn.Module, preprocess: Preprocess, labels: list[str]) -> tuple[str, Features]:
    image = _image(preprocess)
    features = look(net, preprocess, image)
    return features_page(features, image, labels, "my <net>", "x&y.png"), features


SECTIONS = ("The image and the answer", "1. The first filters", "2. Feature maps", "3. Where it looked")


def test_the_page_is_whole_and_escaped() -> None:
    """Every section and picture is there, in order; names are text and not markup; nothing is fetched from anywhere."""
    torch.manual_seed(8)
    labels = ["<script>alert(1)</script>", "salt & pepper", 'a "b"', "d", "e", "f", "g"]
    page, features = _page(Pooled(1, 5, len(labels)), _side(8), labels)
    headings = [page.index(f"<h2>{title}") for title in SECTIONS]
    assert headings == sorted(headings)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 9  # image, kernels, maps, image again, two overlays, three keys
    for source in sources:
        start, _, data = source.partition(",")
        assert start == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert "://" not in page
    assert "<script" not in page
    assert "href" not in page
    assert "my <net>" not in page
    answer, runner_up = (labels[saliency.index] for saliency in features.saliency)
    order = np.argsort(-features.logits)[:5]
    rows = re.findall(r'<td>(.*?)</td><td class="n">(.*?)%</td>', page)
    assert [float(chance) for _, chance in rows] == pytest.approx(features.probabilities[order] * 100, abs=0.005)
    assert [name for name, _ in rows] == [_escaped(labels[index]) for index in order]
    assert f"{_escaped(answer)}, the answer:" in page
    assert f"{_escaped(runner_up)}, the runner-up:" in page


def _escaped(label: str) -> str:
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def test_a_label_that_nothing_speaks_for_is_said() -> None:
    """Where no place speaks for the runner-up its caption says so."""
    net = Pooled(1, 2, 2)
    with torch.no_grad():
        net.last.weight[:] = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        net.last.bias[:] = torch.tensor([1.0, 0.0])
        net.odd_name.bias.fill_(9.0)  # type: ignore[union-attr]
    page, features = _page(net, _side(4), ["a", "b"])
    assert (features.saliency[0].map.max() > 0, features.saliency[1].map.max()) == (True, 0)
    assert page.count("No place in the image speaks for it.") == 1
    assert "b, the runner-up" in page.split("No place")[0][-60:]


def test_the_strongest_maps_are_shown_with_their_kernels() -> None:
    """Of 40 maps the 32 with the largest mean are drawn, in order, and the kernels that made them beside each other."""
    torch.manual_seed(9)
    net = Pooled(1, 40, 3)
    page, features = _page(net, _side(8), ["a", "b", "c"])
    means = features.layers[0].maps.mean(axis=(1, 2))
    kept = sorted(sorted(range(40), key=lambda index: means[index], reverse=True)[:MOST_MAPS])
    assert kept != list(range(32))
    assert f'"{data_uri(draw_maps(features.layers[0].maps[kept]))}"' in page
    assert f'"{data_uri(draw_kernels(features.kernels[kept])[0])}"' in page
    assert "The 32 of 40 maps with the largest mean" in page
    assert "Here are 32 of its 40." in page


def test_a_page_about_a_large_image_stays_small() -> None:
    """Fourteen layers of 32 maps of 224x224 make less than 3 MB."""
    layers = [m for index in range(14) for m in (nn.Conv2d(32 if index else 3, 32, 1), nn.LeakyReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    page, _ = _page(net, _side(224, 3), ["a", "b", "c"])
    assert 100_000 < len(page) < 3_000_000
    assert page.count("<h3>") == MOST_LAYERS
    assert "12 of the 14 layers" in page
    assert "Layer 14 of 14: 32 maps of 224x224" in page


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def golden(bundle_folder: Path) -> Path:
    return bundle_folder / "goldens" / "000.png"


def _zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", ["run", "bundle", "zip"])
def test_the_command_writes_the_page(
    kind: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """For a run, its bundle and the bundle's zip the page is written, with the probabilities that ONNX Runtime gives."""
    net = {"run": run_folder, "bundle": bundle_folder}.get(kind) or _zipped(bundle_folder, tmp_path / "b.zip")
    page = tmp_path / "new" / "page.html"
    result = invoke("inspect", net, "--features", golden, "-o", page, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    found = json.loads(result.stdout)
    assert (found["image"], found["page"]) == (str(golden), str(page))
    asked = invoke("predict", bundle_folder, golden, "-b", "onnxruntime:fp32", "--top", "10", "--json")
    answers = {guess["label"]: guess["probability"] for guess in json.loads(asked.stdout)["top"]}
    assert len(answers) == 10
    assert found["probabilities"] == pytest.approx(answers, abs=1e-4)
    assert next(iter(found["probabilities"])) == found["answer"] == max(answers, key=answers.__getitem__)
    written = page.read_text()
    assert all(f"<h2>{title}" in written for title in SECTIONS)
    assert list(page.parent.iterdir()) == [page]


def test_the_command_says_what_it_wrote(run_folder: Path, golden: Path, tmp_path: Path) -> None:
    """As text it gives the image, the answer, the five likeliest labels and the page."""
    page = tmp_path / "page.html"
    result = invoke("inspect", run_folder, "--features", golden, "-o", page)
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == ["image", "answer", "probabilities", "page"]
    assert lines[2][1].count(",") == 4
    assert lines[2][1].startswith(lines[1][1])
    assert page.is_file()


def test_labels_of_a_run_are_escaped(run_folder: Path, golden: Path, tmp_path: Path) -> None:
    """A run whose labels are markup gives a page in which they are text."""
    checkpoint = load_checkpoint(run_folder)
    labels = tuple(f"<b>{label}</b>&" for label in checkpoint.labels)
    header = Header(model=checkpoint.model, preprocess=checkpoint.preprocess, labels=labels)
    run = tmp_path / "run"
    save_checkpoint(run / "model.safetensors", checkpoint.build(), header)
    result = invoke("inspect", run, "--features", golden, "-o", tmp_path / "page.html", "--json")
    page = (tmp_path / "page.html").read_text()
    assert json.loads(result.stdout)["answer"] in labels
    assert "<b>" not in page
    assert "&lt;b&gt;3&lt;/b&gt;&amp;" in page


def _without_checkpoint(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["artifacts"]["checkpoint"]
    del manifest["files"]["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.safetensors").unlink()
    return folder


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no page": (["{run}", "--features", "{image}"], "go together"),
    "no image": (["{run}", "-o", "{tmp}/page.html"], "go together"),
    "an image that is not there": (["{run}", "--features", "{tmp}/gone.png", "-o", "{tmp}/page.html"], "{tmp}/gone.png"),
    "a folder for an image": (["{run}", "--features", "{run}", "-o", "{tmp}/page.html"], "is a directory"),
    "not an image": (["{run}", "--features", "{run}/config.json", "-o", "{tmp}/page.html"], "config.json: not an image"),
    "no net at all": (["{bundle}/goldens", "--features", "{image}", "-o", "{tmp}/page.html"], "give a run folder or a bundle"),
    "an ONNX file": (["{bundle}/fp32.onnx", "--features", "{image}", "-o", "{tmp}/page.html"], "needs torch weights"),
    "a folder for the page": (["{run}", "--features", "{image}", "-o", "{tmp}"], "is a directory"),
    "a page in a file": (["{run}", "--features", "{image}", "-o", "{image}/page.html"], "{image}"),
    "the page over the image": (["{run}", "--features", "{image}", "-o", "{image}"], "would replace the image"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    mistake: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """What was wrong is said in one line on stderr, with exit code 2, and no page is written."""
    places = {"run": run_folder, "bundle": bundle_folder, "image": golden, "tmp": tmp_path}
    words, told = MISTAKES[mistake]
    before = golden.read_bytes()
    _refused(invoke("inspect", *(word.format(**places) for word in words)), told.format(**places))
    assert not list(tmp_path.iterdir())
    assert golden.read_bytes() == before


def _refused(result: Result, told: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert told in line


def _damaged(run: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-7])
    return folder


def test_bundles_without_weights_and_damaged_runs_are_refused(
    run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """A bundle that carries no torch checkpoint, and a run whose checkpoint is cut short, are one line each."""
    makers: list[tuple[Callable[[Path, Path], Path], Path, str]] = [
        (_without_checkpoint, bundle_folder, "no artifact that torch reads"),
        (_damaged, run_folder, "not a checkpoint of edgecnn, or damaged"),
    ]
    for number, (make, source, told) in enumerate(makers):
        made = make(source, tmp_path / f"made{number}")
        _refused(invoke("inspect", made, "--features", golden, "-o", tmp_path / "page.html"), told)
        assert not (tmp_path / "page.html").exists()


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from edgecnn.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_without_torch_it_says_what_to_install(
    kind: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """Where torch is not installed one line names the extra that brings it."""
    net = run_folder if kind == "run" else bundle_folder
    command = [sys.executable, "-c", WITHOUT_TORCH, "inspect", net, "--features", golden, "-o", tmp_path / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "torch" in line
    assert "pip install 'edgecnn[train]'" in line
    assert not list(tmp_path.iterdir())
