"""`compact`: convolutions at each of a list of widths, halving the image between them; for those who set both."""

from __future__ import annotations

from collections.abc import Sequence

from edgecnn.layers import Conv, Dropout, Layer, ModelConfig, Pool


def compact_layers(widths: Sequence[int], depth: int = 2, dropout: float = 0.1) -> tuple[Layer, ...]:
    """List `depth` 3x3 convolutions at each width, max pooling between widths and average pooling at the end."""
    layers: list[Layer] = []
    for index, filters in enumerate(widths):
        layers += [Pool()] * bool(index) + [Conv(filters=filters)] * depth
    return (*layers, Pool(pooling="average", kernel="all"), Dropout(rate=dropout))


def default_widths(side: int) -> tuple[int, ...]:
    """Choose widths by image size: one more halving for each doubling, ending at about 4x4 pixels."""
    widths = (16, 32, 48, 64, 96)
    return widths[: max(1, min(len(widths), side.bit_length() - 2))]


def compact_config(widths: Sequence[int], depth: int = 2, dropout: float = 0.1) -> ModelConfig:
    """Make the configuration of such a net without looking at the images."""
    return ModelConfig(net="compact", layers=compact_layers(widths, depth, dropout))
