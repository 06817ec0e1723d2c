"""Lines of printed text as pictures, half of them upside down: what a classifier of text direction is shown."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH = 48, 192


def text_image(rng: np.random.Generator, turned: bool) -> Image.Image:
    """Draw a few words in some colour on some paper, a little blurred, and turn the picture around if asked."""
    paper = tuple(int(value) for value in rng.integers(150, 256, 3))
    ink = tuple(int(value) for value in rng.integers(0, 110, 3))
    if rng.random() < 0.3:
        paper, ink = ink, paper
    image = Image.new("RGB", (WIDTH, HEIGHT), paper)
    font = ImageFont.load_default(size=float(rng.uniform(20, 34)))
    words = ["".join(rng.choice(list(string.ascii_letters + string.digits), rng.integers(2, 8))) for _ in range(4)]
    ImageDraw.Draw(image).text((float(rng.uniform(2, 12)), float(rng.uniform(0, 12))), " ".join(words), ink, font)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    return image.rotate(180) if turned else image


def write_text_images(folder: Path, count: int, seed: int = 0) -> None:
    """Write `count` PNG files into a folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        text_image(rng, turned=index % 2 == 1).save(folder / f"{index:05d}.png")
