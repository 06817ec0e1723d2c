"""The ten rules of `edgecnn.images`, each with files encoded here, against numpy and bytes laid out by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.errors import ImageError
from edgecnn.images import decode, encode_png, fit_array, hash_pixels, load
from edgecnn.spec import Fit, Preprocess

Array = npt.NDArray[Any]
SIXTEEN = (0, 128, 129, 256, 32768, 65535)
EIGHT = (0, 0, 1, 1, 128, 255)  # the same, divided by 257 and rounded, by hand
ORIENTATION = 0x0112


def pre(width: int, height: int, channels: int = 3, fit: Fit = "stretch", background: int = 255) -> Preprocess:
    """Make a preprocessing in the order in which image sizes are spoken."""
    side: Any = channels
    return Preprocess(width=width, height=height, channels=side, fit=fit, background=background)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    """Make random pixels, (H, W) for one channel."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: Array, format: str, mode: str | None = None, **options: Any) -> bytes:
    """Encode with Pillow; `options` are those of its `save`."""
    image = Image.fromarray(pixels) if mode is None else Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Lay out one PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Lay out a PNG by hand: `rows` unfiltered, `extra` chunks before the pixels."""
    stride = len(rows) // height if rows else 0
    raw = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height)) if rows else b""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def tiff(pixels: Array, order: str, kind: int = 1, orientation: int | None = None) -> bytes:
    """Lay out a grey TIFF by hand: `order` is '<' or '>', `kind` 1 unsigned, 2 signed, 3 float samples."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    tags = {256: width, 257: height, 258: pixels.dtype.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind} | ({274: orientation} if orientation else {})
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)


def exif(orientation: int) -> bytes:
    """Lay out an EXIF block by hand, with nothing but an orientation."""
    return b"II" + struct.pack("<HI", 42, 8) + struct.pack("<HHHIHHI", 1, ORIENTATION, 3, 1, orientation, 0, 0)


def upright(stored: Array, orientation: int) -> Array:
    """Turn stored rows as the EXIF specification says they are to be shown."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: np.rot90(stored, 2),
        4: stored[::-1],
        5: np.swapaxes(stored, 0, 1),
        6: np.rot90(stored, -1),
        7: np.swapaxes(np.rot90(stored, 2), 0, 1),
        8: np.rot90(stored, 1),
    }[orientation]


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


def close(got: Array, want: Array, levels: float = 1.01) -> None:
    """Assert that all pixels agree to within two roundings: one a pass, or one a product."""
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= levels


# Rule 1: formats


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_decode_to_their_pixels(format: str) -> None:
    """Every lossless colour format decodes to exactly the pixels that were encoded."""
    pixels = noise(9, 7)
    data = encode(pixels, format, lossless=True) if format == "WEBP" else encode(pixels, format)
    np.testing.assert_array_equal(decode(data, pre(7, 9)), pixels)


def test_gif_decodes_to_its_pixels() -> None:
    """A GIF of two hundred colours decodes to exactly the colours of its palette."""
    palette = noise(1, 200)[0]
    index = np.arange(200, dtype=np.uint8).reshape(10, 20)
    image = Image.fromarray(index, "L").convert("P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "GIF")
    np.testing.assert_array_equal(decode(buffer.getvalue(), pre(20, 10)), palette[index])


def test_jpeg_decodes_close_to_its_pixels() -> None:
    """A JPEG of the best quality without subsampling decodes to within a few levels of what was encoded."""
    ramp = np.add.outer(np.arange(24) * 5, np.arange(32) * 4).astype(np.uint8)
    pixels = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)
    close(decode(encode(pixels, "JPEG", quality=100, subsampling=0), pre(32, 24)), pixels, levels=4)


def test_mpo_decodes_to_its_first_picture() -> None:
    """A multi-picture JPEG is read, and its first picture is the one."""
    first, second = np.full((8, 8, 3), 200, dtype=np.uint8), np.full((8, 8, 3), 20, dtype=np.uint8)
    data = encode(first, "MPO", save_all=True, append_images=[Image.fromarray(second)])
    close(decode(data, pre(8, 8)), first, levels=2)


@pytest.mark.parametrize("bits", ["P1\n# grey\n3 1\n1 0 1\n", "P2 3 1 255 0 255 0\n", "P2 3 1 3 0 3 0\n"])
def test_plain_text_netpbm_is_read(bits: str) -> None:
    """The text forms of Netpbm are read, at any maximum."""
    np.testing.assert_array_equal(decode(bits.encode(), pre(3, 1, 1))[0, :, 0], [0, 255, 0])


@pytest.mark.parametrize(
    "data",
    [b"hello, I am a text file\n", b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', b"%PDF-1.7\n", b"\0" * 99],
    ids=["text", "svg", "pdf", "zeros"],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_name(data: bytes) -> None:
    """What is no image is refused with its name and the formats that are read."""
    with pytest.raises(ImageError, match=r"^photo\.png: not an image that can be read here \(PNG, JPEG") as caught:
        decode(data, pre(8, 8), "photo.png")
    assert "WEBP" in str(caught.value)


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "SGI", "DDS"])
def test_formats_not_on_the_list_are_refused(format: str) -> None:
    """An image that Pillow could read but whose format is not on the list is refused as such."""
    data = encode(noise(16, 16), format)
    assert Image.open(io.BytesIO(data)).size == (16, 16)
    with pytest.raises(ImageError, match="not an image that can be read here"):
        decode(data, pre(16, 16))


def test_an_empty_file_is_refused() -> None:
    """No bytes at all are refused as an empty file."""
    with pytest.raises(ImageError, match=r"^a\.png: the file is empty$"):
        decode(b"", pre(8, 8), "a.png")


# Rule 2: size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (10000, 10000), (8001, 8000), (2**31 - 1, 1)])
def test_oversized_header_is_refused_before_decoding(width: int, height: int) -> None:
    """A header that promises too many pixels is refused for its size, although no pixel follows it."""
    with pytest.raises(ImageError, match=r"^bomb\.png: .*over the limit of 64 million"):
        decode(png(width, height, 8, 2, b""), pre(8, 8), "bomb.png")


@pytest.mark.parametrize(
    "data", [b"P5 60000 60000 255\n", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;"]
)
def test_other_formats_are_held_to_the_same_size(data: bytes) -> None:
    """The limit on pixels holds for other formats than PNG."""
    with pytest.raises(ImageError, match="over the limit of 64 million"):
        decode(data, pre(8, 8))


def test_the_limit_itself_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of exactly the limit is decoded and one row more is refused."""
    monkeypatch.setattr(images, "MAX_PIXELS", 80)
    pixels = noise(10, 8)
    np.testing.assert_array_equal(decode(encode(pixels, "PNG"), pre(8, 10)), pixels)
    with pytest.raises(ImageError, match="8x11 pixels is over the limit"):
        decode(encode(noise(11, 8), "PNG"), pre(8, 10))


def test_a_header_without_pixels_is_refused() -> None:
    """An image of no width and no height is refused."""
    with pytest.raises(ImageError):
        decode(png(0, 0, 8, 2, b""), pre(8, 8))


# Rule 3: animated


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(format: str) -> None:
    """Of an animated or multi-page file the first frame is decoded."""
    frames = [np.full((6, 8, 3), level, dtype=np.uint8) for level in (10, 120, 240)]
    frames[0][:3] = (200, 30, 60)
    rest = [Image.fromarray(frame) for frame in frames[1:]]
    options: dict[str, Any] = {} if format == "TIFF" else {"duration": 50}
    options |= {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=rest, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    np.testing.assert_array_equal(decode(data, pre(8, 6)), frames[0])


# Rule 4: damage


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_truncated_files_are_refused(format: str, share: float) -> None:
    """A file of any format that ends too early is refused, and the message names it."""
    data = encode(noise(40, 48), format)
    assert decode(data, pre(48, 40)).shape == (40, 48, 3)
    with pytest.raises(ImageError, match=r"^cut\.bin: .*(damaged|truncated|not an image)"):
        decode(data[: int(len(data) * share)], pre(48, 40), "cut.bin")


@pytest.mark.parametrize("missing", [200, 40, 21])
def test_a_png_short_of_its_last_pixels_is_refused(missing: int) -> None:
    """A PNG that lacks only the last of its pixel data is refused, for no row is guessed."""
    data = png(64, 64, 8, 0, noise(64, 64, 1).tobytes())
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(data[:-missing], pre(64, 64, 1))


def test_any_one_damaged_byte_of_a_png_is_seen_or_harmless() -> None:
    """Whichever byte of a PNG is damaged, the pixels come out right or the file is refused."""
    pixels = noise(6, 5, 1)
    data = png(5, 6, 8, 0, pixels.tobytes())
    refused = 0
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        try:
            np.testing.assert_array_equal(decode(damaged, pre(5, 6, 1))[..., 0], pixels)
        except ImageError:
            refused += 1
    assert refused > len(data) / 2


# Rule 5: 16 bits


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


# Rule 6: EXIF


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


# Rule 7: palettes and alpha


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


# Rule 8: CMYK


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


# Rule 9: channels


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


# Rule 10: resize


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


# Arrays, files and hashes


@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_pixels_come_back(channels: int) -> None:
    """What `encode_png` writes is a PNG that decodes, here and by Pillow alone, to the same pixels."""
    pixels = noise(17, 19, channels).reshape(17, 19, channels)
    data = encode_png(pixels)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))).reshape(pixels.shape), pixels)
    np.testing.assert_array_equal(decode(data, pre(19, 17, channels)), pixels)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (8, 8), (8, 8, 3)], ids=str)
def test_arrays_go_the_way_of_files(shape: tuple[int, ...], channels: int, fit: Fit) -> None:
    """An array is converted and resized exactly as a file with the same pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    want = pre(8, 8, channels, fit, background=5)
    file = encode_png(pixels if pixels.ndim == 3 else pixels[..., None])
    np.testing.assert_array_equal(fit_array(pixels, want), decode(file, want))


def test_files_are_loaded_by_path(tmp_path: Path) -> None:
    """A file is read by its content, whatever its name says."""
    pixels = noise(6, 6)
    (tmp_path / "photo.jpg").write_bytes(encode(pixels, "PNG"))
    np.testing.assert_array_equal(load(tmp_path / "photo.jpg", pre(6, 6)), pixels)


@pytest.mark.parametrize("name", ["absent.png", "folder.png"])
def test_unreadable_files_are_named(tmp_path: Path, name: str) -> None:
    """A file that is not there, or is a folder, is an image error that names it."""
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=rf"{name}: cannot be read \("):
        load(tmp_path / name, pre(6, 6))


def test_broken_files_are_named_in_one_line(tmp_path: Path) -> None:
    """The message about a broken file starts with its path and is one line."""
    file = tmp_path / "broken.png"
    file.write_bytes(encode(noise(32, 32), "PNG")[:400])
    with pytest.raises(ImageError) as caught:
        load(file, pre(8, 8))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_hashes_tell_pictures_apart() -> None:
    """Equal pictures have equal hashes; another pixel or another shape has another."""
    pixels = noise(4, 6).reshape(4, 6, 3)
    changed = pixels.copy()
    changed[3, 5, 2] ^= 1
    assert hash_pixels(pixels) == hash_pixels(np.asfortranarray(pixels))
    assert len({hash_pixels(one) for one in (pixels, changed, pixels.reshape(6, 4, 3), pixels.reshape(4, 18, 1))}) == 4
