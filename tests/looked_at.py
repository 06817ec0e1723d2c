"""A net to look into, an image for it, and the sections of the page about it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecnn.spec import Preprocess

SECTIONS = ("The image and the answer", "1. The first filters", "2. Feature maps", "3. Where it looked")


def side(size: int, channels: int = 1, width: int | None = None) -> Preprocess:
    return Preprocess(
        height=size, width=width or size, channels=3 if channels == 3 else 1, scale=1 / 64, zero_point=100
    )


def image_of(preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, preprocess.shape, dtype=np.uint8)


class Pooled(nn.Module):
    """Convolution, ReLU, the mean of each map, a linear layer: the net of Zhou et al. 2016."""

    def __init__(self, inputs: int, filters: int, classes: int, inplace: bool = True) -> None:
        super().__init__()
        self.odd_name = nn.Conv2d(inputs, filters, 3, padding=1)
        self.step = nn.ReLU(inplace=inplace)
        self.last = nn.Linear(filters, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.step(self.odd_name(x)).mean(dim=(2, 3)))
        return logits
