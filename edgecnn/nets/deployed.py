"""A network as it is deployed: uint8 pixels in, logits and probabilities out."""

from __future__ import annotations

import torch
from torch import nn

from edgecnn.spec import Preprocess


class Deployed(nn.Module):
    """Puts the normalisation before a network and the softmax behind it, so that both are in the exported graph.

    Takes uint8 images (N, H, W, C), or float ones in pixel units while training, and gives logits and
    probabilities (N, classes).
    """

    def __init__(self, net: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.zero_point = float(preprocess.zero_point)
        self.scale = preprocess.scale

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute logits and probabilities."""
        logits = self.logits(image)
        return logits, torch.softmax(logits, dim=-1)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Compute logits alone, which is what a loss wants."""
        dtype = next(self.net.parameters()).dtype
        x = (image.to(dtype) - self.zero_point) * self.scale
        logits: torch.Tensor = self.net(x.permute(0, 3, 1, 2))
        return logits
