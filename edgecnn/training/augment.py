"""Light augmentation: small shifts, turns and changes of scale, by one interpolation a batch."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

SHIFT = 0.1  # of the side
TURN = math.radians(10)
SCALE = 0.1


def augment_light(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each image of a float batch (N, H, W, C) a little; what comes in from outside repeats the edge."""
    count = len(images)
    uniform = torch.rand(count, 4, generator=generator).mul_(2).sub_(1)
    angle, zoom = uniform[:, 0] * TURN, 1 + uniform[:, 1] * SCALE
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([cosine, -sine, uniform[:, 2] * 2 * SHIFT, sine, cosine, uniform[:, 3] * 2 * SHIFT], dim=1)
    planes = images.permute(0, 3, 1, 2)
    grid = functional.affine_grid(rows.view(count, 2, 3).to(images.device), list(planes.shape), align_corners=False)
    moved = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1)
