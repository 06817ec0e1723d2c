"""`edgecnn.images`: which files are read and which are refused, against numpy and bytes laid out by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import close, encode, noise, png, pre
from PIL import Image

from edgecnn import images
from edgecnn.errors import ImageError
from edgecnn.images import decode, encode_png, fit_array, hash_pixels, load
from edgecnn.spec import Fit


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
