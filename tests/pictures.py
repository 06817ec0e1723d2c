"""Image files encoded or laid out by hand, and what their pixels are to be."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgecnn.spec import Fit, Preprocess

Array = npt.NDArray[Any]
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


def close(got: Array, want: Array, levels: float = 1.01) -> None:
    """Assert that all pixels agree to within two roundings: one a pass, or one a product."""
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= levels
