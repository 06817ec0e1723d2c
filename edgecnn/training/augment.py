"""Augmentation: chance is drawn for a whole batch first, then applied, so that processes can share a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch.nn import functional

from edgecnn.errors import UsageError
from edgecnn.spec import Frozen


class Augment(Frozen, frozen=True):
    """The parts of augmentation, each the largest change that is drawn; 0 or False leaves a part out.

    `shift` and `cutout` are shares of the side, `turn` is in degrees, `zoom` a share of the scale, `light` a share of
    the contrast and of the brightness. `mirror` swaps left and right in every other image. `cutout` greys a square
    (DeVries and Taylor 2017). `mixup` is the parameter of its beta distribution (Zhang et al. 2018).
    """

    shift: float = 0.1
    turn: float = 10.0
    zoom: float = 0.1
    mirror: bool = False
    light: float = 0.0
    cutout: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        """Refuse changes after which nothing of an image would be left."""
        limits = {"shift": 0.5, "turn": 180, "zoom": 0.9, "light": 1, "cutout": 1, "mixup": 10}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} lies from 0 to {limit}, not {getattr(self, name)}")


LEVELS: dict[str, Augment] = {
    "none": Augment(shift=0, turn=0, zoom=0),
    "light": Augment(),
    "strong": Augment(shift=0.12, turn=15, zoom=0.15, light=0.3, cutout=0.3, mixup=0.2),
}


def parse_augment(text: str, mirrored: bool) -> Augment:
    """Read `LEVEL[,PART[=VALUE]][,no-PART]...`, for example `light,mirror,turn=5,no-zoom`.

    `mirrored` is whether this kind of data is mirrored where the text does not say.

    Raises:
        UsageError: an unknown level or part, or a value out of range.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    level = words.pop(0) if words and words[0] in LEVELS else "light"
    found = msgspec.to_builtins(LEVELS[level])
    if level != "none":
        found["mirror"] = mirrored
    for word in words:
        name, equals, value = word.partition("=")
        off = name.startswith("no-")
        part = name.removeprefix("no-")
        if word in LEVELS:
            raise UsageError(f"--augment {text}: there is one level, and it comes first; {word!r} cannot stand here")
        if part not in found or (off and equals):
            raise UsageError(f"--augment {text}: {word!r} is neither {', '.join(LEVELS)} nor one of {', '.join(found)}")
        try:
            found[part] = _value(part, off, value if equals else None)
        except ValueError:
            needs = "no number" if part == "mirror" else f"a number, for example {part}=0.2"
            raise UsageError(f"--augment {text}: {word!r} needs {needs}") from None
    try:
        return Augment(**found)
    except ValueError as error:
        raise UsageError(f"--augment {text}: {error}") from None


def _value(part: str, off: bool, value: str | None) -> float | bool:
    if part == "mirror":
        if value is not None:
            raise ValueError
        return not off
    if off:
        return 0.0
    return getattr(LEVELS["strong"], part) if value is None else float(value)


def describe_augment(augment: Augment) -> str:
    """Say in one line what is drawn."""
    parts = [
        f"{name}" if value is True else f"{name} {value:g}"
        for name, value in msgspec.to_builtins(augment).items()
        if value
    ]
    return ", ".join(parts) or "none"


@dataclass(frozen=True)
class Draws:
    """What was drawn for each image: `moves` (n, 4), `mirror` (n,), `lights` (n, 2), `holes` (n, 2), `mix` (n,).

    Moves and lights are shares, -1 to 1, of the largest change; holes are where a square's centre lies; `mix` is how
    much of an image stays itself, the same for both of a pair.
    """

    moves: torch.Tensor
    mirror: torch.Tensor
    lights: torch.Tensor
    holes: torch.Tensor
    mix: torch.Tensor

    def of(self, where: slice) -> Draws:
        """Take what was drawn for some images of the batch."""
        parts = (self.moves, self.mirror, self.lights, self.holes, self.mix)
        return Draws(*(part[where] for part in parts))


def draw(count: int, parts: Augment, generator: torch.Generator) -> Draws:
    """Draw for every image of a batch; leaving one part out does not change what is drawn for another."""
    uniform = torch.rand(count, 9, generator=generator)
    signed = uniform * 2 - 1
    mix = torch.ones(count)
    if parts.mixup:
        chance = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        mix = torch.from_numpy(chance.beta(parts.mixup, parts.mixup, (count + 1) // 2)).float().repeat_interleave(2)
        if count % 2:
            mix[count - 1] = 1.0  # the last has no partner
    return Draws(signed[:, :4], uniform[:, 4] < 0.5, signed[:, 5:7], uniform[:, 7:9], mix[:count])


def augment(images: torch.Tensor, draws: Draws, parts: Augment, grey: float) -> torch.Tensor:
    """Change each image of a float batch (N, C, H, W) in pixel units as drawn; `grey` fills what is cut out."""
    if parts.shift or parts.turn or parts.zoom or parts.mirror:
        images = _moved(images, draws, parts)
    if parts.light:
        contrast = (1 + draws.lights[:, :1] * parts.light).to(images.device)[:, :, None, None]
        brightness = (draws.lights[:, 1:] * parts.light * 128).to(images.device)[:, :, None, None]
        images = ((images - 128) * contrast + 128 + brightness).clamp_(0, 255)
    if parts.cutout:
        images = _cut(images, draws, parts.cutout, grey)
    if parts.mixup:
        share = draws.mix.to(images.device)[:, None, None, None]
        images = share * images + (1 - share) * images[partners(len(images)).to(images.device)]
    return images


def partners(count: int) -> torch.Tensor:
    """Give the index of each image's partner in mixup: its neighbour, so that halves of a batch hold whole pairs."""
    indices = torch.arange(count)
    return torch.where((indices ^ 1) < count, indices ^ 1, indices)


def _moved(images: torch.Tensor, draws: Draws, parts: Augment) -> torch.Tensor:
    """Shift, turn, scale and mirror by one interpolation; what comes in from outside repeats the edge."""
    angle = draws.moves[:, 0] * math.radians(parts.turn)
    zoom = 1 + draws.moves[:, 1] * parts.zoom
    side = 1 - 2 * (draws.mirror & parts.mirror).to(zoom.dtype)
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    shifts = draws.moves[:, 2:4] * parts.shift * 2  # across and down, in units of half a side
    if not (parts.turn or parts.zoom):  # whole pixels, or every image would be blurred for nothing
        half = torch.tensor([images.shape[3], images.shape[2]]) / 2
        shifts = torch.round(shifts * half) / half
    aspect = images.shape[2] / images.shape[3]  # the grid is 2 by 2, whatever the image's sides
    rows = torch.stack([cosine * side, -sine * aspect, shifts[:, 0], sine * side / aspect, cosine, shifts[:, 1]], dim=1)
    grid = functional.affine_grid(
        rows.view(-1, 2, 3).to(images.device, images.dtype), list(images.shape), align_corners=False
    )
    mode = "bilinear" if parts.turn or parts.zoom else "nearest"
    return functional.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def _cut(images: torch.Tensor, draws: Draws, share: float, grey: float) -> torch.Tensor:
    """Grey a square whose centre may lie anywhere, so that it may hang over the edge."""
    masks = []
    for axis, side in enumerate(images.shape[2:]):
        centre = draws.holes[:, axis : axis + 1] * side
        pixels = torch.arange(side)[None, :] + 0.5
        masks.append((pixels - centre).abs() < share * side / 2)
    mask = (masks[0][:, :, None] & masks[1][:, None, :])[:, None].to(images.device)
    return images.masked_fill(mask, grey)
