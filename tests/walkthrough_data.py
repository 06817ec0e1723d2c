"""Small made data in the very formats of MedMNIST and of GTSRB, for the walk-throughs: drawn, not real, but learnable."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SPLITS = ("train", "val", "test")
_GTSRB_COLUMNS = ["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"]
_SPEEDS = {0: "20", 1: "30", 2: "50", 3: "60", 4: "70", 5: "80", 7: "100", 8: "120"}
_ARROWS = {33: 0, 34: 180, 35: 90, 36: 45, 37: 135, 38: -45, 39: -135, 40: 120}  # degrees, anticlockwise from the right


def make_medmnist(
    path: Path, size: int = 28, counts: Sequence[int] = (320, 80, 320), colour: bool = False, seed: int = 0
) -> None:
    """Write an .npz with MedMNIST's names: images uint8 (N, S, S) or (N, S, S, 3), labels uint8 (N, 1).

    Grey is a chest with two lungs, and three in four with a faint opacity; colour is blood cells of eight kinds.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    for split, count in zip(SPLITS, counts, strict=True):
        labels = np.arange(count) % 8 if colour else (np.arange(count) % 4 != 0).astype(np.int64)
        labels = rng.permutation(labels)
        draw = blood_cell if colour else chest
        arrays[f"{split}_images"] = np.stack([draw(int(label), size, rng) for label in labels])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stubs take the arrays for its flag


def make_xray_folders(root: Path, patients: int = 40, visits: int = 4, size: int = 32, seed: int = 1) -> None:
    """Write class folders of PNGs with the patient in each name, `sick/patient007_2.png`; one in two is sick."""
    for patient in range(patients):
        label = patient % 2
        folder = root / ("healthy", "sick")[label]
        folder.mkdir(parents=True, exist_ok=True)
        for visit in range(visits):
            body = np.random.default_rng([seed, patient])  # the same chest on every visit
            noise = np.random.default_rng([seed, patient, visit])
            image = chest(label, size, body).astype(np.float64) + noise.normal(0, 4, (size, size))
            Image.fromarray(_eight_bits(image)).save(folder / f"patient{patient:03d}_{visit}.png")


def chest(label: int, size: int, rng: np.random.Generator) -> Pixels:
    """Draw a chest in grey, uint8 (S, S); label 1 has an opacity in one lung, at times hardly to be seen."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    image = 150 + 25 * rng.standard_normal() - 20 * x**2
    for side in (-1, 1):
        across, up = side * 0.42 + rng.normal(0, 0.04), rng.normal(0, 0.05)
        image = image - 85 * _bump(x - across, y - up, 0.28, 0.62)
    if label:
        side, reach = rng.choice((-1, 1)), rng.uniform(0.12, 0.26)
        image = image + rng.uniform(25, 110) * _bump(
            x - side * rng.uniform(0.3, 0.5), y - rng.uniform(-0.4, 0.5), reach, reach
        )
    return _eight_bits(image + rng.normal(0, 7, (size, size)))


def blood_cell(label: int, size: int, rng: np.random.Generator) -> Pixels:
    """Draw a stained cell in colour, uint8 (S, S, 3); the kinds differ in tint, size and number of lobes."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    cell = _bump(x, y, 0.5 + 0.2 * (label // 4), 0.5 + 0.2 * (label // 4))
    nucleus = np.zeros((size, size))
    turn = rng.uniform(0, 2 * np.pi)
    for lobe in range(1 + label % 4):
        angle = turn + lobe * 2 * np.pi / (1 + label % 4)
        away = 0.0 if label % 4 == 0 else 0.3
        nucleus = np.maximum(nucleus, _bump(x - away * np.cos(angle), y - away * np.sin(angle), 0.18, 0.18))
    tint = np.array([30.0, 60.0, 10.0]) if label // 4 else np.array([10.0, 60.0, 45.0])
    image = 225 - cell[..., None] * tint - nucleus[..., None] * np.array([110.0, 120.0, 40.0])
    return _eight_bits(image + rng.normal(0, 8, (size, size, 3)))


@dataclass(frozen=True)
class Track:
    """What all frames of one physical sign share: where it stands, its light, how it is turned, and its dirt."""

    sign: int
    background: tuple[int, int, int]
    light: float
    turn: float
    dirt: tuple[float, float, float]

    @classmethod
    def drawn(cls, sign: int, rng: np.random.Generator) -> Track:
        """Draw one: half of the signs have a patch of dirt on them, large enough to hide a digit."""
        red, green, blue = (int(value) for value in rng.integers(20, 235, 3))
        across, down = rng.uniform(0.3, 0.7, 2)
        size = float(rng.uniform(0.12, 0.22)) if rng.random() < 0.5 else 0.0
        return cls(
            sign,
            (red, green, blue),
            float(rng.uniform(0.35, 1.0)),
            float(rng.uniform(-8, 8)),
            (float(across), float(down), size),
        )


def make_gtsrb(
    root: Path, classes: Sequence[int] = range(43), tracks: int = 4, frames: int = 30, tests: int = 200, seed: int = 0
) -> None:
    """Write GTSRB's two parts below `root`, as unpacked from its archives, with `tests` test images of signs unseen."""
    rng = np.random.default_rng(seed)
    for sign in classes:
        folder = root / "Final_Training" / "Images" / f"{sign:05d}"
        folder.mkdir(parents=True)
        rows = []
        for number in range(tracks):
            track = Track.drawn(sign, rng)
            for frame in range(frames):
                name = f"{number:05d}_{frame:05d}.ppm"
                rows.append(_save(folder / name, track, frame / max(frames - 1, 1), rng))
        _write_table(folder / f"GT-{sign:05d}.csv", rows)
    folder = root / "Final_Test" / "Images"
    folder.mkdir(parents=True)
    rows = [
        _save(folder / f"{number:05d}.ppm", Track.drawn(int(rng.choice(list(classes))), rng), rng.random(), rng)
        for number in range(tests)
    ]
    _write_table(folder / "GT-final_test.csv", rows)
    _write_table(folder / "GT-final_test.test.csv", rows, labelled=False)  # what the archive of the images holds


def draw_sign(sign: int, side: int) -> Image.Image:
    """Draw a sign, RGBA (side, side), transparent around it: ring, triangle, octagon, diamond or disc, and a symbol."""
    large = side * 4  # drawn large and scaled down, so that edges are smooth
    image = Image.new("RGBA", (large, large), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    symbol = "black"
    red, white, blue, yellow = (190, 20, 30), (240, 240, 235), (20, 70, 180), (240, 190, 20)
    if sign in _ARROWS:
        pen.ellipse((0, 0, large - 1, large - 1), fill=blue)
        _arrow(pen, _ARROWS[sign], large)
        return image.resize((side, side), Image.Resampling.BOX)
    if sign == 14:
        pen.regular_polygon((large / 2, large / 2, large * 0.5), 8, rotation=22, fill=red)
        symbol = "white"
    elif sign == 12:
        pen.regular_polygon((large / 2, large / 2, large * 0.5), 4, rotation=45, fill=yellow, outline="white")
    elif sign in (11, 13) or 18 <= sign <= 31:
        turn = 180 if sign == 13 else 0
        pen.regular_polygon((large / 2, large * 0.55, large * 0.5), 3, rotation=turn, fill=red)
        pen.regular_polygon((large / 2, large * 0.55, large * 0.34), 3, rotation=turn, fill=white)
    else:
        end = sign in (6, 32, 41, 42)
        pen.ellipse((0, 0, large - 1, large - 1), fill="black" if end else red)
        pen.ellipse((large * 0.13, large * 0.13, large * 0.87, large * 0.87), fill=white)
    text = _SPEEDS.get(sign, "STOP" if sign == 14 else "" if sign in (12, 13, 15) else chr(ord("A") + sign % 26))
    font = ImageFont.load_default(large * (0.42 if len(text) < 3 else 0.3))
    pen.text((large / 2, large * 0.53), text, fill=symbol, font=font, anchor="mm", stroke_width=large // 60)
    return image.resize((side, side), Image.Resampling.BOX)


def _save(path: Path, track: Track, nearness: float, rng: np.random.Generator) -> list[int | str]:
    """Write one frame, 15 to 80 pixels and not square, and return its line of the table."""
    side = int(15 + nearness * 50 + rng.integers(0, 3))
    width, height = side + int(rng.integers(3, 13)), side + int(rng.integers(3, 13))
    left, top = (int(rng.integers(1, room)) for room in (width - side, height - side))
    frame = Image.new("RGB", (width, height), track.background)
    sign = draw_sign(track.sign, side)
    across, down, size = (share * side for share in track.dirt)
    if size:
        pen = ImageDraw.Draw(sign)
        pen.ellipse((across - size, down - size, across + size, down + size), fill=(95, 85, 70, 255))
    sign = sign.rotate(track.turn, Image.Resampling.BILINEAR)
    frame.paste(sign, (left, top), sign)
    pixels = np.asarray(frame, dtype=np.float64) * track.light * rng.uniform(0.92, 1.08)
    Image.fromarray(_eight_bits(pixels + rng.normal(0, 5, pixels.shape))).save(path)
    return [path.name, width, height, left, top, left + side - 1, top + side - 1, track.sign]


def _write_table(path: Path, rows: Sequence[Sequence[int | str]], labelled: bool = True) -> None:
    columns = len(_GTSRB_COLUMNS) - (not labelled)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(row[:columns] for row in [_GTSRB_COLUMNS, *rows])


def _arrow(pen: ImageDraw.ImageDraw, degrees: float, large: int) -> None:
    outline = np.array([(-0.34, 0.09), (0.02, 0.09), (0.02, 0.24), (0.38, 0), (0.02, -0.24), (0.02, -0.09), (-0.34, -0.09)])  # fmt: skip
    angle = np.radians(degrees)
    turned = outline @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pen.polygon([(large * (0.5 + across), large * (0.5 + down)) for across, down in turned], fill="white")


def _bump(x: Floats, y: Floats, wide: float, high: float) -> Floats:
    bump: Floats = np.exp(-(((x / wide) ** 2 + (y / high) ** 2) ** 2))
    return bump


def _eight_bits(values: Floats) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
