"""The compact CNN: convolutions with batch norm and ReLU, pooling between widths, dropout, one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from edgecnn.spec import ModelConfig


class Compact(nn.Module):
    """`depth` 3x3 convolutions at each width, max pooling between widths, average pooling at the end.

    Takes normalised float images (N, C, H, W) and gives logits (N, classes). The last pooling has a fixed window
    rather than an adaptive one: the exporter turns adaptive pooling into ReduceMean, which has no int8 kernel.
    """

    def __init__(self, config: ModelConfig, height: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for index, filters in enumerate(config.widths):
            if index:
                stages.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            for _ in range(config.depth):
                stages.append(conv_block(channels, filters))
                channels = filters
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AvgPool2d((height, width))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        features = self.pool(self.stages(x)).flatten(1)
        logits: torch.Tensor = self.head(self.dropout(features))
        return logits


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Make a 3x3 convolution, batch norm and ReLU: what int8 kernels fuse into one."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
