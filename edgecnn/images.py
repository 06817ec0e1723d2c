"""From an encoded image to uint8 pixels: the only decoder and resizer, for training and for the box alike.

The rules, in order:

1. **Formats**: PNG, JPEG, BMP, GIF, PPM, TIFF, WebP. Anything else is refused.
2. **Size**: at most `MAX_PIXELS` in the image and in each tile of a TIFF, read from the header before anything is decoded;
   at most `MAX_BYTES` in the file and `MAX_SCANS` in a JPEG.
3. **Animated** or multi-page: the first frame.
4. **Truncated** or damaged: refused; there is no guessing of missing rows.
5. **16 bit grey**: divided by 257 and rounded, so 65535 becomes 255; nothing is clipped. 16 bit colour keeps
   its high byte. Float and 32 bit integer images have no defined white and are refused.
6. **EXIF orientation** is applied; a damaged EXIF block counts as upright.
7. **Palette** images become RGB, with their transparency. **Alpha** is composited over `background`, so the
   hidden colours of transparent pixels never show.
8. **CMYK** becomes RGB by Pillow's formula (no colour profile is applied).
9. **Channels**: colour to grey is ITU-R 601 luma; grey to colour repeats the channel.
10. **Resize**: bilinear with antialiasing, by the preprocessing's `fit`: `stretch` ignores the aspect ratio, `crop` cuts
    the longer side, `pad` adds `background`. An image that already has the size is not touched.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from edgecnn.errors import ImageError
from edgecnn.spec import Preprocess

Pixels = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
)
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20  # of an encoded image: what as many pixels take in four bytes each
MAX_SCANS = 500  # of a JPEG, of which a progressive one has about ten: each goes over all its pixels
_SCAN = b"\xff\xda"  # the marker that begins one
_CHUNK = 1 << 16
_STRIP = 1 << 20  # pixels that are composited at a time, so that a large image is not held five times over
_TILE = (322, 323)  # a TIFF's TileWidth and TileLength
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def keep_memory(blocks: int) -> None:
    """Let Pillow keep the memory of images it is done with for the next ones, up to `blocks` blocks of 16 MB.

    In a thread that is not the main one the C library gives it back and takes it anew for every image, which costs a
    fifth of decoding a JPEG of 640x480. (Pillow's documentation, "Block allocator"; the same as PILLOW_BLOCKS_MAX.)
    """
    keep = getattr(getattr(Image, "core", None), "set_blocks_max", None)  # of the C module, which has no other door
    if keep is not None and "PILLOW_BLOCKS_MAX" not in os.environ:
        keep(blocks)


def is_image_name(path: Path) -> bool:
    """Say whether a path below a folder is named like an image, and is not a copy that a tool left behind."""
    hidden = path.name.startswith(".") or any(part.startswith((".", "__")) for part in path.parts[:-1])
    return path.suffix.lower() in SUFFIXES and not hidden


def load(path: Path, preprocess: Preprocess) -> Pixels:
    """Read, decode and resize one file to uint8 (height, width, channels).

    Raises:
        ImageError: the file cannot be read or is not an image by the rules above; the message names it.
    """
    return decode(read(path), preprocess, str(path))


def read(path: Path, before: Callable[[int], object] | None = None) -> bytes:
    """Read an image file's bytes, as they are; `before` is called first, with their number.

    Raises:
        ImageError: it cannot be read, is no file but a pipe, device or folder, or is over `MAX_BYTES`.
    """
    try:
        # A pipe that nobody writes to would keep an open waiting; a file does not mind.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 -- of a descriptor
            return _read_file(file, path, before)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name with a null byte in it
        raise ImageError(f"{str(path)!r}: cannot be a path ({error})") from None


def _read_file(file: io.FileIO, path: Path, before: Callable[[int], object] | None) -> bytes:
    seen = os.fstat(file.fileno())
    if stat.S_ISDIR(seen.st_mode):
        raise ImageError(f"{path}: cannot be read (Is a directory)")
    if not stat.S_ISREG(seen.st_mode):
        raise ImageError(f"{path}: a pipe or device and no file; what a pipe holds goes in by stdin, as `-`")
    if seen.st_size > MAX_BYTES:
        raise _too_large(path)
    if before:
        before(seen.st_size)
    data = file.read(seen.st_size + 1)
    if len(data) == seen.st_size:  # and so its end was seen
        return data
    parts, size = [data], len(data)
    while size <= MAX_BYTES and (chunk := file.read(_CHUNK)):  # it grows, or its file system gives no size
        parts.append(chunk)
        size += len(chunk)
    if size > MAX_BYTES:
        raise _too_large(path)
    return b"".join(parts)


def _too_large(path: Path) -> ImageError:
    return ImageError(f"{path}: over the limit of {MAX_BYTES >> 20} MB for an image")


def decode(data: bytes, preprocess: Preprocess, name: str = "image") -> Pixels:
    """Decode and resize encoded bytes to uint8 (height, width, channels); `name` is for error messages."""
    with opened(data, name) as image:
        return fit(to_picture(image, name), preprocess)


@contextmanager
def opened(data: bytes, name: str = "image") -> Iterator[Image.Image]:
    """Read no more than the header of encoded bytes, by rules 1 and 2.

    Raises:
        ImageError: for whatever is wrong with the image, also where it shows only inside the block; one line with `name`.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            _check_inside(image, data, name)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError:  # what Pillow itself refuses, before it says the size
        raise ImageError(
            f"{name}: over the limit of {MAX_PIXELS // 1_000_000} million pixels; scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that can be read here ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory for an image of this size; scale it down first") from None
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: damaged or truncated image ({reason})") from None


def to_picture(image: Image.Image, name: str = "image") -> Image.Image:
    """Decode what `opened` gave to an upright image of 8 bits a channel, by rules 3 to 6; `fit` does the rest."""
    image.load()
    return _upright(_eight_bit(image, name))


def fit(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Flatten, convert and resize a decoded 8 bit image by rules 7 to 10."""
    mode = "L" if preprocess.channels == 1 else "RGB"
    image = _flatten(image, preprocess.background)
    if image.mode != mode:
        image = image.convert(mode)
    size = preprocess.width, preprocess.height
    if image.size != size:
        image = _resize(image, size, preprocess)
    return np.asarray(image, dtype=np.uint8).reshape(preprocess.shape)


def fit_array(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Bring one uint8 image, (H, W), (H, W, 1) or (H, W, 3), through the same conversion and resize."""
    if pixels.ndim == 3 and pixels.shape == preprocess.shape:
        return pixels
    return fit(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels), preprocess)


def encode_png(pixels: Pixels) -> bytes:
    """Encode uint8 (H, W, C) without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hash_pixels(pixels: Pixels) -> str:
    """Return the SHA-256 of an image's shape and content: equal exactly for equal pictures."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} pixels is over the limit of {MAX_PIXELS // 1_000_000} million; scale it down first"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image has no pixels")


def _check_inside(image: Image.Image, data: bytes, name: str) -> None:
    """Refuse what looks small from outside: tiles far larger than their TIFF, and a JPEG of endless scans."""
    if image.format == "TIFF":
        width, height = (int(getattr(image, "tag_v2", {}).get(tag, 1)) for tag in _TILE)
        if width * height > MAX_PIXELS:
            raise ImageError(f"{name}: tiles of {width}x{height} pixels are over the limit of an image")
    if image.format in ("JPEG", "MPO") and not _in_one_scan(image, data) and data.count(_SCAN) > MAX_SCANS:
        raise ImageError(f"{name}: over {MAX_SCANS} scans in a JPEG, which no camera or program writes")


def _in_one_scan(image: Image.Image, data: bytes) -> bool:
    """Say whether a decoder reads one scan of a JPEG and no more: the first holds every channel, and all of it.

    Pillow stops behind the header of the first scan (ITU-T T.81, B.2.3). Counting the others of a photo takes longer
    than opening it.
    """
    channels = getattr(image, "layers", 0)
    file = getattr(image, "fp", None)
    end = file.tell() if image.format == "JPEG" and file else 0
    header = data[max(0, end - 8 - 2 * channels) : end]
    whole = header[:2] == _SCAN and header[4:5] == bytes((channels,))
    return whole and not image.info.get("progressive")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_sixteen(image, np.asarray(image))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # what older Pillow calls 16 bit grey
        return _from_sixteen(image, np.asarray(image))
    if image.mode in ("I", "F"):
        kind = "32 bit integer" if image.mode == "I" else "float"
        raise ImageError(f"{name}: {kind} pixels have no defined white; save it with 8 or 16 bits")
    return image


def _from_sixteen(image: Image.Image, values: npt.NDArray[Any]) -> Image.Image:
    converted = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    key = image.info.get("transparency")  # of 16 bits, so it is compared before the division
    if isinstance(key, int):
        converted.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    converted.info = {name: value for name, value in image.info.items() if name != "transparency"}
    converted.getexif().update(_exif(image))
    return converted


def _exif(image: Image.Image) -> dict[int, Any]:
    try:
        return dict(image.getexif())
    except Exception:  # a damaged EXIF block must not lose a good picture
        return {}


def _upright(image: Image.Image) -> Image.Image:
    orientation = _exif(image).get(_ORIENTATION, 1)
    operation = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _flatten(image: Image.Image, background: int) -> Image.Image:
    if image.mode not in ("P", "PA", "LA", "La", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    if image.width * image.height <= _STRIP:
        return _composite(image, background)
    flat = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        flat.paste(_composite(strip, background), (0, top))
    return flat


def _composite(image: Image.Image, background: int) -> Image.Image:
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _resize(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    width, height = size
    bilinear = Image.Resampling.BILINEAR
    if preprocess.fit == "stretch":
        return image.resize(size, bilinear)
    across, down = width / image.width, height / image.height
    if preprocess.fit == "crop":
        scale = max(across, down)
        cut_width, cut_height = min(image.width, width / scale), min(image.height, height / scale)
        left, top = (image.width - cut_width) / 2, (image.height - cut_height) / 2
        return image.resize(size, bilinear, box=(left, top, left + cut_width, top + cut_height))
    scale = min(across, down)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, size, (preprocess.background,) * len(image.getbands()))
    canvas.paste(image.resize(inner, bilinear), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
