"""Palettes, alpha, CMYK and channels: the seventh to ninth of the rules."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from pictures import chunk, close, encode, noise, png, pre
from PIL import Image

from edgecnn.images import decode


@pytest.mark.parametrize("background", [0, 77, 255])
def test_palette_transparency_shows_the_background(background: int) -> None:
    """A palette becomes its colours, and its transparent entries the background."""
    palette = np.array([[255, 0, 0], [10, 20, 30], [0, 0, 255], [9, 9, 9]])
    index = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.uint8)
    extra = chunk(b"PLTE", bytes(palette.astype(np.uint8).tobytes())), chunk(b"tRNS", bytes([0, 255, 255, 0]))
    want = palette.copy()
    want[[0, 3]] = background
    got = decode(png(4, 2, 8, 3, index.tobytes(), *extra), pre(4, 2, background=background))
    np.testing.assert_array_equal(got, want[index])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_are_unpacked(bits: int) -> None:
    """Palettes of fewer than eight bits a pixel give the same colours."""
    palette = noise(1, 2**bits)[0]
    index = np.arange(8) % 2**bits
    packed = np.packbits(((index[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1))
    got = decode(png(8, 1, bits, 3, packed.tobytes(), chunk(b"PLTE", palette.tobytes())), pre(8, 1))
    np.testing.assert_array_equal(got[0], palette[index])


def test_partly_transparent_palettes_are_blended() -> None:
    """A palette's partial transparency is blended with the background."""
    extra = chunk(b"PLTE", bytes([200, 100, 0])), chunk(b"tRNS", bytes([64]))
    want = (np.array([200, 100, 0]) * 64 + 50 * 191) / 255
    close(decode(png(1, 1, 8, 3, b"\0", *extra), pre(1, 1, background=50))[0, 0], want)


def test_hidden_colours_never_show() -> None:
    """Colours under full transparency are replaced by the background, and opaque ones are kept."""
    pixels = np.dstack([noise(8, 8), np.zeros((8, 8), dtype=np.uint8)])
    pixels[:, 4:, 3] = 255
    for background in (0, 255):
        got = decode(encode(pixels, "PNG"), pre(8, 8, background=background))
        assert (got[:, :4] == background).all()
        np.testing.assert_array_equal(got[:, 4:], pixels[:, 4:, :3])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("background", [0, 130, 255])
def test_alpha_is_composited(format: str, background: int) -> None:
    """Partial alpha is blended over the background by the textbook formula."""
    pixels = np.dstack([noise(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16)])
    options: dict[str, Any] = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encode(pixels, format, **options)
    alpha = pixels[..., 3:] / 255
    close(decode(data, pre(16, 16, background=background)), pixels[..., :3] * alpha + background * (1 - alpha))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_with_alpha_is_composited(channels: int) -> None:
    """Grey with alpha is blended over the background too."""
    pixels = np.dstack([noise(16, 16, 1), np.arange(256, dtype=np.uint8).reshape(16, 16)])
    alpha = pixels[..., 1:] / 255
    want = np.repeat(pixels[..., :1] * alpha + 40 * (1 - alpha), channels, axis=2)
    close(decode(png(16, 16, 8, 4, pixels.tobytes()), pre(16, 16, channels, background=40)), want)


def test_transparent_colour_keys_show_the_background() -> None:
    """The one transparent colour of a PNG without alpha becomes the background, in grey and in colour."""
    grey = png(3, 1, 8, 0, bytes([1, 2, 3]), chunk(b"tRNS", struct.pack(">H", 2)))
    np.testing.assert_array_equal(decode(grey, pre(3, 1, 1, background=90))[0, :, 0], [1, 90, 3])
    colour = png(2, 1, 8, 2, bytes([1, 2, 3, 1, 2, 4]), chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    np.testing.assert_array_equal(decode(colour, pre(2, 1, background=90))[0], [[90] * 3, [1, 2, 4]])
    bits = png(8, 1, 1, 0, b"\xaa", chunk(b"tRNS", struct.pack(">H", 1)))
    np.testing.assert_array_equal(decode(bits, pre(8, 1, 1, background=90))[0, :, 0], [90, 0] * 4)


def test_transparent_gif_shows_the_background() -> None:
    """The transparent index of a GIF becomes the background."""
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 1, 0]))
    image.putpalette([250, 0, 0, 0, 250, 0])
    buffer = io.BytesIO()
    image.save(buffer, "GIF", transparency=1)
    got = decode(buffer.getvalue(), pre(2, 2, background=33))
    np.testing.assert_array_equal(got, [[[250, 0, 0], [33] * 3], [[33] * 3, [250, 0, 0]]])


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_by_the_simple_formula(format: str) -> None:
    """CMYK becomes (255 - ink)(255 - black) / 255, whether or not the file stores it inverted."""
    inks = np.repeat(np.repeat(noise(4, 4, 4), 8, axis=0), 8, axis=1)
    data = encode(inks, format, "CMYK")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        stored = np.array(image).astype(np.float64)
    assert np.abs(stored - inks).mean() < 8
    close(decode(data, pre(32, 32)), (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255)


def test_colour_becomes_grey_by_luma() -> None:
    """Colour becomes grey by the weights 0.299, 0.587 and 0.114."""
    pixels = noise(32, 32)
    close(decode(encode(pixels, "PNG"), pre(32, 32, 1)), pixels @ np.array([[0.299], [0.587], [0.114]]))


def test_grey_becomes_colour_by_repeating() -> None:
    """Grey becomes colour with three equal channels."""
    pixels = noise(5, 6, 1)
    np.testing.assert_array_equal(decode(encode(pixels, "PNG"), pre(6, 5)), np.stack([pixels] * 3, axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_bit_images_are_black_and_white(channels: int) -> None:
    """One bit a pixel becomes 0 and 255."""
    got = decode(png(8, 2, 1, 0, b"\x0f\xa5"), pre(8, 2, channels))
    want = np.unpackbits(np.array([[0x0F], [0xA5]], dtype=np.uint8), axis=1) * 255
    np.testing.assert_array_equal(got, np.repeat(want[..., None], channels, axis=2))
