"""The resize: stretched, cropped and padded, against one in float64. The tenth of the rules."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import Array, close, encode, noise, png, pre

from edgecnn.images import decode
from edgecnn.spec import Fit


def triangle(inputs: int, outputs: int, start: float, length: float) -> Array:
    """Return the weights (outputs, inputs) of an antialiased bilinear resize of a stretch of a line."""
    scale = length / outputs
    reach = max(scale, 1.0)
    centres = start + (np.arange(outputs) + 0.5) * scale
    distance = np.abs(np.arange(inputs)[None] + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def resized(pixels: Array, width: int, height: int, box: tuple[float, float, float, float] | None = None) -> Array:
    """Resize in float64; `box` is (left, top, width, height)."""
    left, top, across, down = box or (0, 0, pixels.shape[1], pixels.shape[0])
    rows, columns = triangle(pixels.shape[0], height, top, down), triangle(pixels.shape[1], width, left, across)
    return np.asarray(np.einsum("ij,jk...,lk->il...", rows, pixels.astype(np.float64), columns))


@pytest.mark.parametrize("size", [(10, 30), (64, 48), (7, 5), (1, 1), (90, 20)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_stretch_is_antialiased_bilinear(size: tuple[int, int], channels: int) -> None:
    """Stretching ignores the aspect ratio and is a bilinear resize with antialiasing, up and down."""
    pixels = noise(30, 50, channels)
    got = decode(encode(pixels, "PNG"), pre(*size, channels))
    close(got, resized(pixels, *size).reshape(size[1], size[0], channels))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(20, 60, (20, 0, 20, 20)), (60, 20, (0, 20, 20, 20)), (20, 33, (6.5, 0, 20, 20))],
    ids=str,
)
@pytest.mark.parametrize("side", [8, 20, 45])
def test_crop_takes_the_middle(height: int, width: int, box: tuple[float, float, float, float], side: int) -> None:
    """Cropping cuts the longer side to the middle of the picture and keeps the aspect ratio."""
    pixels = noise(height, width)
    close(decode(encode(pixels, "PNG"), pre(side, side, fit="crop")), resized(pixels, side, side, box))


def test_crop_without_scaling_is_a_slice() -> None:
    """Where only one side is too long, cropping is an exact slice."""
    wide, tall = noise(10, 30), noise(30, 10)
    np.testing.assert_array_equal(decode(encode(wide, "PNG"), pre(10, 10, fit="crop")), wide[:, 10:20])
    np.testing.assert_array_equal(decode(encode(tall, "PNG"), pre(10, 10, fit="crop")), tall[10:20])


def test_crop_to_an_oblong_takes_the_middle() -> None:
    """The size that is cropped to need not be square."""
    pixels = noise(40, 40)
    close(decode(encode(pixels, "PNG"), pre(20, 10, fit="crop")), resized(pixels, 20, 10, (0, 10, 40, 20)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", [0, 9, 255])
def test_pad_adds_background(channels: int, background: int) -> None:
    """Padding keeps the whole picture and its aspect ratio, in the middle of the background."""
    pixels = noise(20, 40, channels)
    wide = decode(encode(pixels, "PNG"), pre(16, 16, channels, "pad", background))
    close(wide[4:12], resized(pixels, 16, 8).reshape(8, 16, channels))
    assert (np.delete(wide, slice(4, 12), axis=0) == background).all()
    pixels = np.swapaxes(pixels, 0, 1)
    tall = decode(encode(np.ascontiguousarray(pixels), "PNG"), pre(16, 16, channels, "pad", background))
    close(tall[:, 4:12], resized(pixels, 8, 16).reshape(16, 8, channels))
    assert (np.delete(tall, slice(4, 12), axis=1) == background).all()


def test_pad_of_a_thread_keeps_one_pixel() -> None:
    """A picture a thousand times wider than high still leaves one row of itself."""
    got = decode(encode(np.zeros((1, 1000), dtype=np.uint8), "PNG"), pre(8, 8, 1, "pad", 255))
    assert (got == 0).sum() == 8


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_right_size_is_not_touched(fit: Fit, channels: int) -> None:
    """An image that has the size already keeps every pixel, by whatever fit."""
    pixels = noise(13, 11, channels)
    got = decode(encode(pixels, "PNG"), pre(11, 13, channels, fit))
    np.testing.assert_array_equal(got, pixels.reshape(13, 11, channels))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 7), (997, 13)], ids=str)
def test_every_shape_fits_everywhere(fit: Fit, size: tuple[int, int]) -> None:
    """Any shape, however thin, comes out in the size asked for with its own one colour."""
    data = png(*size, 8, 0, b"\x50" * (size[0] * size[1]))
    for width, height in ((8, 8), (96, 31), (1, 1)):
        got = decode(data, pre(width, height, 1, fit, background=0x50))
        np.testing.assert_array_equal(got, np.full((height, width, 1), 0x50))
