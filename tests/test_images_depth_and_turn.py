"""Images of 16 bits a sample, and images that EXIF says to turn: the fifth and sixth of the rules."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from pictures import ORIENTATION, Array, chunk, close, encode, exif, noise, png, pre, upright
from PIL import Image

from edgecnn.errors import ImageError
from edgecnn.images import decode

SIXTEEN = (0, 128, 129, 256, 32768, 65535)
EIGHT = (0, 0, 1, 1, 128, 255)  # the same, divided by 257 and rounded, by hand


def tiff(pixels: Array, order: str, kind: int = 1, orientation: int | None = None) -> bytes:
    """Lay out a grey TIFF by hand: `order` is '<' or '>', `kind` 1 unsigned, 2 signed, 3 float samples."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    tags = {256: width, 257: height, 258: pixels.dtype.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind} | ({274: orientation} if orientation else {})
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)


def sixteen_bit(container: str, values: Array, orientation: int | None = None) -> bytes:
    """Encode 16 bit grey values in one of four containers, by hand."""
    height, width = values.shape
    if container == "png":
        extra = [chunk(b"eXIf", exif(orientation))] if orientation else []
        return png(width, height, 16, 0, values.astype(">u2").tobytes(), *extra)
    if container == "pgm":
        return f"P5 {width} {height} 65535\n".encode() + values.astype(">u2").tobytes()
    return tiff(values.astype(np.uint16), "<" if container == "tiff-little" else ">", orientation=orientation)


@pytest.mark.parametrize("container", ["png", "tiff-little", "tiff-big", "pgm"])
def test_sixteen_bit_grey_is_divided_by_257(container: str) -> None:
    """16 bit grey is divided by 257 and rounded, wherever it is stored; 65535 becomes 255 and nothing is clipped."""
    data = sixteen_bit(container, np.array([SIXTEEN]))
    np.testing.assert_array_equal(decode(data, pre(6, 1, 1))[0, :, 0], EIGHT)
    np.testing.assert_array_equal(decode(data, pre(6, 1, 3))[0], np.repeat(np.array(EIGHT)[:, None], 3, axis=1))


@pytest.mark.parametrize("container", ["png", "tiff-little", "tiff-big", "pgm"])
def test_all_sixteen_bit_values_are_rounded(container: str) -> None:
    """Every one of the 65,536 values of 16 bit grey goes to the nearest of 256."""
    values = np.arange(65536).reshape(256, 256)
    got = decode(sixteen_bit(container, values), pre(256, 256, 1))[..., 0]
    np.testing.assert_array_equal(got, np.floor(values / 257.0 + 0.5))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("container", ["png", "tiff-little"])
def test_sixteen_bit_images_are_turned_too(container: str, orientation: int) -> None:
    """16 bit grey with an EXIF orientation is both converted and turned, once."""
    values = np.random.default_rng(1).integers(0, 65536, (4, 7))
    want = np.rint(upright(values, orientation) / 257.0)
    got = decode(sixteen_bit(container, values, orientation), pre(want.shape[1], want.shape[0], 1))
    np.testing.assert_array_equal(got[..., 0], want)


def test_sixteen_bit_colour_is_scaled_the_same_way() -> None:
    """16 bit colour comes out within a level of its value divided by 257."""
    values = np.random.default_rng(2).integers(0, 65536, (5, 6, 3))
    close(decode(png(6, 5, 16, 2, values.astype(">u2").tobytes()), pre(6, 5)), values / 257.0)


@pytest.mark.parametrize("key", [0, 128, 256, 65535])
def test_sixteen_bit_transparency_is_a_sixteen_bit_value(key: int) -> None:
    """The transparent value of 16 bit grey makes transparent those pixels that have it, and no others."""
    data = png(6, 1, 16, 0, struct.pack(">6H", *SIXTEEN), chunk(b"tRNS", struct.pack(">H", key)))
    want = [77 if value == key else small for value, small in zip(SIXTEEN, EIGHT, strict=True)]
    np.testing.assert_array_equal(decode(data, pre(6, 1, 1, background=77))[0, :, 0], want)


@pytest.mark.parametrize(
    ("pixels", "kind", "word"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), 3, "float"),
        (np.arange(64, dtype=np.int32).reshape(8, 8), 2, "32 bit integer"),
    ],
    ids=["float", "int32"],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_pixels_without_a_white_are_refused(pixels: Array, kind: int, word: str, order: str) -> None:
    """Float and 32 bit integer TIFFs are refused, and the message says why and what to do."""
    with pytest.raises(ImageError, match=rf"^scan\.tif: {word} pixels have no defined white; save it with 8 or 16"):
        decode(tiff(pixels, order, kind), pre(8, 8, 1), "scan.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    """Each of the eight orientations is shown as the EXIF specification says, in every format that has them."""
    pixels = noise(16, 24, seed=orientation)
    prefixed = b"Exif\0\0" + exif(orientation)
    options: dict[str, dict[str, Any]] = {
        "PNG": {"exif": exif(orientation)},
        "TIFF": {"tiffinfo": {ORIENTATION: orientation}},
        "WEBP": {"exif": prefixed, "lossless": True},
        "JPEG": {"exif": prefixed},
    }
    data = encode(pixels, format, **options[format])
    if format == "JPEG":
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    want = upright(pixels, orientation)
    np.testing.assert_array_equal(decode(data, pre(want.shape[1], want.shape[0])), want)


def test_orientation_comes_before_the_resize() -> None:
    """A lying photo that is stood up keeps its left and right when it is stretched."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[10:] = 255  # the stored bottom half is the shown left half
    got = decode(encode(pixels, "PNG", exif=exif(6)), pre(10, 10))
    assert got[:, :4].min() == 255
    assert got[:, 6:].max() == 0


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_orientation_turns_transparency_along(mode: str) -> None:
    """Alpha is turned together with the picture, also in a palette."""
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 255
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    buffer = io.BytesIO()
    if mode == "P":
        image = Image.frombytes("P", (3, 2), bytes([0, 0, 0, 1, 1, 1]))
        image.putpalette([0] * 6)
        image.save(buffer, "PNG", exif=exif(8), transparency=bytes([255, 0]))
    else:
        image.save(buffer, "PNG", exif=exif(8))
    want = np.array([[0, 200]] * 3)
    np.testing.assert_array_equal(decode(buffer.getvalue(), pre(2, 3, 1, background=200))[..., 0], want)


BROKEN_EXIF = {
    "empty": b"",
    "garbage": b"\x13\x37" * 20,
    "cut": exif(6)[:15],
    "offset": b"II*\0\xff\xff\xff\x7f",
    "loop": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8),
    "zero": exif(0),
    "nine": exif(9),
    "large": exif(65535),
    "text": b"II*\0" + struct.pack("<IHHHI4sI", 8, 1, ORIENTATION, 2, 2, b"6\0\0\0", 0),
    "rational": b"II*\0" + struct.pack("<IHHHIII", 8, 1, ORIENTATION, 5, 1, 26, 0) + struct.pack("<II", 6, 0),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", BROKEN_EXIF)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_counts_as_upright(format: str, name: str) -> None:
    """A damaged EXIF block or an orientation that does not exist loses nothing: the picture is read as it lies."""
    pixels = noise(16, 24)
    if format == "PNG":
        data = png(24, 16, 8, 2, pixels.tobytes(), chunk(b"eXIf", BROKEN_EXIF[name]))
    elif format == "JPEG":
        plain, block = encode(pixels, "JPEG"), b"Exif\0\0" + BROKEN_EXIF[name]
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
        pixels = np.array(Image.open(io.BytesIO(plain)).convert("RGB"))
    else:
        data = encode(pixels, "WEBP", lossless=True, exif=BROKEN_EXIF[name])
    np.testing.assert_array_equal(decode(data, pre(24, 16)), pixels)
