"""The pictures of what a net sees, and the page that holds them."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from looked_at import SECTIONS, Pooled, image_of, side
from PIL import Image
from torch import nn

from edgecnn.nets.features import MOST_LAYERS, Features, look
from edgecnn.report.features import MOST_MAPS, draw_image, draw_kernels, draw_maps, draw_saliency, features_page
from edgecnn.report.html import data_uri
from edgecnn.spec import Preprocess

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)


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
    image = image_of(preprocess)
    features = look(net, preprocess, image)
    return features_page(features, image, labels, "my <net>", "x&y.png"), features


def test_the_page_is_whole_and_escaped() -> None:
    """Every section and picture is there, in order; names are text and not markup; nothing is fetched from anywhere."""
    torch.manual_seed(8)
    labels = ["<script>alert(1)</script>", "salt & pepper", 'a "b"', "d", "e", "f", "g"]
    page, features = _page(Pooled(1, 5, len(labels)), side(8), labels)
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
    page, features = _page(net, side(4), ["a", "b"])
    assert (features.saliency[0].map.max() > 0, features.saliency[1].map.max()) == (True, 0)
    assert page.count("No place in the image speaks for it.") == 1
    assert "b, the runner-up" in page.split("No place")[0][-60:]


def test_the_strongest_maps_are_shown_with_their_kernels() -> None:
    """Of 40 maps the 32 with the largest mean are drawn, in order, and the kernels that made them beside each other."""
    torch.manual_seed(9)
    net = Pooled(1, 40, 3)
    page, features = _page(net, side(8), ["a", "b", "c"])
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
    page, _ = _page(net, side(224, 3), ["a", "b", "c"])
    assert 100_000 < len(page) < 3_000_000
    assert page.count("<h3>") == MOST_LAYERS
    assert "12 of the 14 layers" in page
    assert "Layer 14 of 14: 32 maps of 224x224" in page
