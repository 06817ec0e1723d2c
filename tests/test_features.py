"""What a net sees: maps against scipy, Grad-CAM against pencil and paper, planted blobs found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from looked_at import Pooled, image_of, side
from scipy import signal, special
from torch import nn
from torch.nn import functional

from edgecnn.errors import CheckpointError, UsageError
from edgecnn.nets.features import MOST_LAYERS, look
from edgecnn.spec import Preprocess

Array = npt.NDArray[Any]


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


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_grad_cam_is_the_class_activation_map(channels: int, inplace: bool) -> None:
    """Behind average pooling and one linear layer Grad-CAM equals the map that Zhou et al. 2016 compute without gradients."""
    torch.manual_seed(2)
    net, preprocess = Pooled(channels, 6, 4, inplace), side(7, channels, width=9)
    image = image_of(preprocess)
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
    preprocess = side(6)
    image = image_of(preprocess)
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
    preprocess = side(10, 3)
    image = image_of(preprocess)
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
    net, preprocess = nn.Sequential(nn.AvgPool2d(4), Pooled(1, 6, 3)), side(12, width=20)
    saliency = look(net, preprocess, image_of(preprocess)).saliency[0]
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
    net, preprocess = Residual(inplace), side(6)
    image = image_of(preprocess)
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
    features = look(net, side(5), image_of(side(5)))
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
    net, preprocess = Functional(), side(10)
    image = image_of(preprocess)
    features = look(net, preprocess, image)
    assert [(layer.name, layer.maps.shape) for layer in features.layers] == [("one", (3, 8, 8)), ("two", (4, 2, 2))]
    assert np.allclose(features.layers[0].maps, _convolve(_seen(image, preprocess), net.one)[:, 1:-1, 1:-1], atol=1e-5)


def test_many_layers_are_thinned_out() -> None:
    """Of very many layers the first, the last and some between are kept, and each keeps its number."""
    net = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()) for _ in range(30)), nn.Flatten(), nn.Linear(4, 2)
    )
    features = look(net, side(2), image_of(side(2)))
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
            look(net, side(4), image_of(side(4)))
    else:
        look(net, side(4), image_of(side(4)))
    after = _state(net)
    assert after[:3] == before[:3]
    assert all(gradient is None for gradient, _ in after[2])
    assert before[0].count(True) == 6  # all but the batch norm
    assert all(torch.equal(value, before[3][name]) or (fails and name == "5.bias") for name, value in after[3].items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_inference_mode_around_it_changes_nothing() -> None:
    """Called where gradients are switched off it still finds them."""
    torch.manual_seed(7)
    net, preprocess = Pooled(1, 4, 3), side(5)
    free = look(net, preprocess, image_of(preprocess))
    with torch.inference_mode():
        shut = look(net, preprocess, image_of(preprocess))
    assert free.saliency[0].map.max() > 0
    assert np.array_equal(free.saliency[0].map, shut.saliency[0].map)


def test_one_logit_has_no_runner_up() -> None:
    """A net of one label has one saliency map."""
    assert len(look(Pooled(1, 2, 1), side(4), image_of(side(4))).saliency) == 1


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
        look(net, side(4), image_of(side(4)))
