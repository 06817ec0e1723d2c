"""The nets: cost counted by hand, normalisation by hand, and configurations that fit no image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal, special
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.nets import Cost, Deployed, build_net, measure_cost
from edgecnn.nets.build import default_config
from edgecnn.nets.compact import compact_config
from edgecnn.spec import Preprocess


def _side(size: int, channels: int = 1, width: int | None = None) -> Preprocess:
    return Preprocess(height=size, width=width or size, channels=3 if channels == 3 else 1)


def test_cost_of_a_net_counted_by_hand() -> None:
    """Two convolutions on 8x8 and 4x4 and a linear layer cost what pencil and paper say."""
    net = build_net(compact_config((8, 16), depth=1), _side(8), 10)
    parameters = (9 * 1 * 8 + 2 * 8) + (9 * 8 * 16 + 2 * 16) + (16 * 10 + 10)
    macs = 8 * 8 * 8 * (9 * 1) + 4 * 4 * 16 * (9 * 8) + 16 * 10
    assert (parameters, macs) == (1442, 23200)
    assert measure_cost(net, _side(8)) == Cost(parameters=1442, macs=23200)


@pytest.mark.parametrize(
    ("widths", "depth", "height", "width", "channels", "classes"),
    [
        ((4,), 1, 1, 1, 1, 2),
        ((16, 32, 64), 2, 28, 28, 1, 10),
        ((3, 5), 3, 9, 14, 3, 7),
        ((2, 4, 8, 16), 1, 8, 11, 3, 3),
    ],
)
def test_cost_of_any_net_follows_from_its_shape(
    widths: tuple[int, ...], depth: int, height: int, width: int, channels: int, classes: int
) -> None:
    """Each convolution multiplies 9 values a channel at each pixel left, and each halving rounds down."""
    preprocess = _side(height, channels, width)
    net = build_net(compact_config(widths, depth=depth), preprocess, classes)
    parameters, macs, last = 0, 0, channels
    for stage, filters in enumerate(widths):
        pixels = (height >> stage) * (width >> stage)
        for _ in range(depth):
            parameters += 9 * last * filters + 2 * filters
            macs += pixels * filters * 9 * last
            last = filters
    parameters, macs = parameters + last * classes + classes, macs + last * classes
    assert measure_cost(net, preprocess) == Cost(parameters=parameters, macs=macs)
    assert sum(value.numel() for value in net.parameters()) == parameters


@pytest.mark.parametrize("training", [True, False])
def test_measuring_cost_leaves_the_net_as_it_was(training: bool) -> None:
    """Neither the mode, nor the batch norms' statistics, nor any hook is left changed behind."""
    net = build_net(compact_config((4,), depth=1), _side(4), 2).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure_cost(net, _side(4))
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not module._forward_hooks for module in net.modules())


def test_grouped_convolutions_cost_a_group_each() -> None:
    """A depthwise convolution multiplies one plane a filter, not all of them."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), nn.Flatten(), nn.Linear(75, 2))
    assert measure_cost(net, _side(5, 3)) == Cost(parameters=27 + 152, macs=25 * 3 * 9 + 150)


@pytest.mark.parametrize(
    ("size", "channels", "widths", "depth"), [(8, 1, (8, 16), 1), (13, 3, (4, 6, 8), 2), (1, 1, (3,), 1)]
)
def test_the_net_gives_logits_for_its_images(size: int, channels: int, widths: tuple[int, ...], depth: int) -> None:
    """A net maps a batch of its images to as many rows of one logit a class."""
    net = build_net(compact_config(widths, depth=depth), _side(size, channels), 5).eval()
    assert net(torch.zeros(3, channels, size, size)).shape == (3, 5)


def _image(preprocess: Preprocess, count: int = 6) -> torch.Tensor:
    pixels = np.random.default_rng(8).integers(0, 256, (count, *preprocess.shape), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_a_whole_net_computed_by_hand() -> None:
    """Convolution, batch norm, ReLU, pooling and head of a small net are what scipy and numpy compute."""
    preprocess = Preprocess(height=6, width=4, channels=1, scale=0.01, zero_point=90)
    torch.manual_seed(0)
    net = build_net(compact_config((2, 3), depth=1, dropout=0.5), preprocess, 4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    image = _image(preprocess, 2)
    deployed = Deployed(net, preprocess).double().eval()
    with torch.inference_mode():
        logits, probabilities = (value.numpy() for value in deployed(image))
    state = {name: value.numpy() for name, value in net.state_dict().items()}

    def block(planes: np.ndarray, name: str) -> np.ndarray:
        weight = state[f"{name}.0.weight"]
        out = np.stack(
            [
                sum(
                    signal.correlate2d(plane, kernel, mode="same")
                    for plane, kernel in zip(planes, kernels, strict=True)
                )
                for kernels in weight
            ]
        )
        mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        gain = state[f"{name}.1.weight"] / np.sqrt(var + 1e-5)
        shifted = (out - mean[:, None, None]) * gain[:, None, None] + state[f"{name}.1.bias"][:, None, None]
        return np.maximum(shifted, 0)

    for index in range(2):
        x = block((image[index, :, :, 0].numpy().astype(np.float64)[None] - 90) * 0.01, "stages.0")
        x = x.reshape(2, 3, 2, 2, 2).max(axis=(2, 4))
        x = block(x, "stages.2").mean(axis=(1, 2))
        expected = state["head.weight"] @ x + state["head.bias"]
        assert np.allclose(logits[index], expected, rtol=1e-12, atol=1e-12)
        assert np.allclose(probabilities[index], special.softmax(expected), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_deployed_normalises_by_hand_in_float64(channels: int) -> None:
    """In float64 the deployed net is the bare net on scale * (pixel - zero point), planes first, to the last bit."""
    preprocess = Preprocess(height=8, width=8, channels=3 if channels == 3 else 1, scale=0.0173, zero_point=77)
    net = build_net(compact_config((4, 8), depth=1), preprocess, 10).double().eval()
    image = _image(preprocess)
    planes = np.moveaxis((image.numpy().astype(np.float64) - 77) * 0.0173, 3, 1)
    with torch.inference_mode():
        logits, probabilities = Deployed(net, preprocess).eval()(image)
        bare = net(torch.from_numpy(np.ascontiguousarray(planes)))
    assert logits.dtype == probabilities.dtype == torch.float64
    assert torch.allclose(logits, bare, rtol=1e-13, atol=1e-13)
    assert np.allclose(probabilities.numpy(), special.softmax(bare.numpy(), axis=1), rtol=1e-12)


def test_deployed_follows_the_precision_of_its_net() -> None:
    """A float32 net gives float32, near its own float64 twin and not equal to it."""
    preprocess = _side(8)
    net = build_net(compact_config((4,), depth=1), preprocess, 3).eval()
    deployed, image = Deployed(net, preprocess).eval(), _image(preprocess)
    with torch.inference_mode():
        single = deployed(image)[0]
        double = deployed.double()(image)[0]
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    error = float((single.double() - double).abs().max())
    assert 0 < error < 1e-3 * float(double.abs().max())


def test_float_pixels_give_what_their_bytes_give() -> None:
    """While training, float images in pixel units are normalised as the bytes are."""
    preprocess = Preprocess(height=8, width=8, channels=1, scale=0.02, zero_point=100)
    deployed, image = Deployed(build_net(ModelConfig(), preprocess, 3), preprocess).eval(), _image(preprocess)
    with torch.inference_mode():
        assert torch.equal(deployed(image)[0], deployed(image.float())[0])
        assert torch.equal(deployed(image)[0], deployed.logits(image))


def test_a_black_pixel_does_not_wrap_around() -> None:
    """Pixels below the zero point become negative, where bytes would wrap to large values."""
    preprocess = Preprocess(height=1, width=1, channels=1, scale=1.0, zero_point=255)
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    nn.init.ones_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    assert Deployed(net, preprocess).logits(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item() == -255.0


@pytest.mark.parametrize(("size", "widths"), [(1, (8, 16)), (3, (8, 16, 32)), (15, (4, 4, 4, 4, 4))])
def test_images_too_small_for_the_net_are_an_error(size: int, widths: tuple[int, ...]) -> None:
    """A net that would halve its images away is refused with the size that it needs."""
    least = 2 ** (len(widths) - 1)
    with pytest.raises(UsageError, match=rf"too small for {len(widths)} widths.*--size {least} or more"):
        build_net(compact_config(widths), _side(size), 10)
    assert build_net(compact_config(widths), _side(least), 10)


def test_the_shorter_side_decides() -> None:
    """A long and narrow image is too small by its narrow side."""
    with pytest.raises(UsageError, match="64x3 are too small"):
        build_net(compact_config((8, 16, 32)), Preprocess(height=3, width=64, channels=1), 10)


@pytest.mark.parametrize(
    "config",
    [
        compact_config(()),
        compact_config((8, 0)),
        ModelConfig(depth=0),
        ModelConfig(dropout=1.0),
        ModelConfig(dropout=-0.1),
    ],
)
def test_a_configuration_of_nothing_is_an_error(config: ModelConfig) -> None:
    """A net without widths, filters or depth, or that drops everything, is refused."""
    with pytest.raises(UsageError, match="at least 1"):
        build_net(config, _side(32), 10)


@pytest.mark.parametrize(
    ("size", "count", "rest"), [(1, 1, 1), (8, 2, 4), (16, 3, 4), (28, 3, 7), (32, 4, 4), (64, 5, 4), (96, 5, 6)]
)
def test_the_default_net_fits_its_images(size: int, count: int, rest: int) -> None:
    """The default has a halving more for each doubling, ends at a few pixels, and can be built."""
    config = default_config(_side(size))
    assert len(config.widths) == count
    assert size >> (count - 1) == rest
    assert build_net(config, _side(size), 2)
