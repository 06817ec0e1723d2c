"""The nets: cost counted by hand, normalisation by hand, and configurations that fit no image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import signal, special
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.layers import Conv, Dropout, ModelConfig, Residual
from edgecnn.nets import Cost, Deployed, NetChoice, build_net, choose_net, measure_cost
from edgecnn.nets.compact import compact_config, default_widths
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
        x = block((image[index, :, :, 0].numpy().astype(np.float64)[None] - 90) * 0.01, "layers.0")
        x = x.reshape(2, 3, 2, 2, 2).max(axis=(2, 4))
        x = block(x, "layers.2").mean(axis=(1, 2))
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
    deployed, image = Deployed(build_net(compact_config((4, 8)), preprocess, 3), preprocess).eval(), _image(preprocess)
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
    """A net that would halve its images away is refused, with the layer that does and what to do, as chosen and as built."""
    least = 2 ** (len(widths) - 1)
    choice = NetChoice(net="compact", widths=widths, depth=1)
    pool = 2 * (len(widths) - 1)  # counted from 1: a convolution, a pool, ...; the last pool has nothing to halve
    told = (
        rf"^images of {size}x{size} are too small for --net compact: its layer {pool}, max pool 2x2 .*1x1.*--image-size"
    )
    with pytest.raises(UsageError, match=told):
        choose_net(choice, _side(size), 10)
    with pytest.raises(UsageError, match="max pool 2x2 does not fit: what comes in is 1x1"):
        build_net(compact_config(widths), _side(size), 10)
    assert choose_net(choice, _side(least), 10) == compact_config(widths, depth=1)
    assert build_net(compact_config(widths), _side(least), 10)


def test_the_shorter_side_decides() -> None:
    """A long and narrow image is too small by its narrow side."""
    narrow = Preprocess(height=3, width=64, channels=1)
    with pytest.raises(UsageError, match="images of 64x3 are too small"):
        choose_net(NetChoice(net="compact", widths=(8, 16, 32)), narrow, 10)
    assert choose_net(NetChoice(net="compact"), narrow, 10) == compact_config(default_widths(3))


def test_lenet_needs_images_of_four_pixels() -> None:
    """The textbook's two halvings are refused for three pixels and fit four."""
    with pytest.raises(UsageError, match="images of 3x3 are too small for --net lenet: its layer 4"):
        choose_net(NetChoice(net="lenet"), _side(3), 10)
    assert choose_net(NetChoice(net="lenet"), _side(4), 10).net == "lenet"


@pytest.mark.parametrize("family", ["edge", "resnet8", "depthwise", "compact"])
def test_the_other_families_fit_any_image(family: str) -> None:
    """A net that chooses its halvings by the image, or halves with strides, fits a single pixel and gives its logits."""
    net = build_net(choose_net(NetChoice(net=family), _side(1, 3), 2), _side(1, 3), 2).eval()
    assert net(torch.zeros(1, 3, 1, 1)).shape == (1, 2)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (NetChoice(net="compact", widths=(8, 0)), "--widths 8,0: every width lies from 1"),
        (NetChoice(net="compact", widths=(-4,)), "--widths -4: every width lies from 1"),
        (NetChoice(net="compact", widths=(10**9,)), "--widths 1000000000: every width lies from 1 to 65536"),
        (NetChoice(net="compact", widths=(20000, 20000), depth=1), "--net compact: in its layer 3: .*50,000,000"),
        (NetChoice(net="vgg"), "--net vgg: there are edge, lenet, resnet8, depthwise, compact; or give a .toml file"),
        (NetChoice(net="lenet", size="n"), "--size does not apply to --net lenet"),
        (NetChoice(net="lenet", width=2.0), "--width does not apply to --net lenet"),
        (NetChoice(net="edge", widths=(8,)), "--widths does not apply to --net edge"),
        (NetChoice(net="resnet8", depth=2), "--depth does not apply to --net resnet8"),
        (NetChoice(net="depthwise", dropout=0.5), "--dropout does not apply to --net depthwise"),
        (NetChoice(net="my.toml", size="n"), "--size does not apply to --net my.toml"),
        (NetChoice(net="my:net", width=2.0), "--width does not apply to --net my:net"),
    ],
)
def test_a_choice_that_cannot_be_followed_is_an_error(choice: NetChoice, told: str) -> None:
    """A net of nothing, one far too large, an unknown one, and what a net cannot follow are one line each."""
    with pytest.raises(UsageError, match=f"^{told}[^\n]*$"):
        choose_net(choice, _side(32), 10)


@pytest.mark.parametrize(
    "make", [lambda: ModelConfig(net="none"), lambda: ModelConfig(net="both", layers=(Dropout(),), function="a:b")]
)
def test_a_net_is_made_in_one_way(make: Callable[[], ModelConfig]) -> None:
    """A configuration without layers and function, or with both, cannot be made."""
    with pytest.raises(ValueError, match="either layers or a function"):
        make()


def test_a_net_without_widths_has_no_first_layer() -> None:
    """Compact without widths is average pooling alone, and costs its linear layer."""
    net = build_net(compact_config(()), _side(8, 3), 4)
    assert measure_cost(net, _side(8, 3)) == Cost(parameters=3 * 4 + 4, macs=12)


@pytest.mark.parametrize(
    ("size", "count", "rest"), [(1, 1, 1), (8, 2, 4), (16, 3, 4), (28, 3, 7), (32, 4, 4), (64, 5, 4), (96, 5, 6)]
)
def test_compacts_default_widths_fit_their_images(size: int, count: int, rest: int) -> None:
    """The default has a halving more for each doubling, ends at a few pixels, and can be built."""
    config = choose_net(NetChoice(net="compact"), _side(size), 2)
    filters = [layer.filters for layer in config.layers if isinstance(layer, Conv)]
    assert filters[::2] == filters[1::2] == list(default_widths(size))
    assert len(default_widths(size)) == count
    assert size >> (count - 1) == rest
    assert build_net(config, _side(size), 2)


def test_the_choices_of_a_family_are_followed() -> None:
    """Width, depth, dropout and size change the layers as they say, and the name tells the size."""
    wide = choose_net(NetChoice(net="edge", size="n", width=2.0, depth=3, dropout=0.3), _side(28), 10)
    assert wide.net == "edge-n"
    outer = [layer.filters for layer in wide.layers if isinstance(layer, Conv)]
    assert outer == [32, 48, 64]  # n has 16, 24 and 32
    assert sum(isinstance(layer, Residual) for layer in wide.layers) == 9
    assert [layer.rate for layer in wide.layers if isinstance(layer, Dropout)] == [0.3]
    assert not [layer for layer in choose_net(NetChoice(), _side(28), 10).layers if isinstance(layer, Dropout)]
    half = choose_net(NetChoice(net="resnet8", width=0.5), _side(32, 3), 10)
    assert [layer.layers[0].filters for layer in half.layers if isinstance(layer, Residual)] == [8, 16, 32]
    dropped = choose_net(NetChoice(net="lenet", dropout=0.5), _side(28), 10)
    assert [layer.rate for layer in dropped.layers if isinstance(layer, Dropout)] == [0.5]
