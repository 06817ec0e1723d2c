"""From encoded bytes to pixels that a model takes, timed and hashed: what `predict` and the server do with one image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from time import perf_counter

from edgecnn import images
from edgecnn.images import Pixels
from edgecnn.spec import Preprocess


@dataclass(frozen=True)
class Prepared:
    """One image ready for the model: uint8 (H, W, C), the SHA-256 of its encoded bytes, and what it took in milliseconds."""

    pixels: Pixels
    sha256: str
    decode_ms: float
    preprocess_ms: float


def prepare(data: bytes, preprocess: Preprocess, name: str = "image") -> Prepared:
    """Decode, then flatten and resize, one encoded image by the rules of `images`.

    Raises:
        ImageError: it is not an image by those rules; the message begins with `name`.
    """
    start = perf_counter()
    picture = images.to_picture(data, name)
    decoded = perf_counter()
    pixels = images.to_pixels(picture, preprocess, name)
    end = perf_counter()
    return Prepared(pixels, hashlib.sha256(data).hexdigest(), 1e3 * (decoded - start), 1e3 * (end - decoded))
