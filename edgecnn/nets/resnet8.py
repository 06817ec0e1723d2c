"""`resnet8`: three residual stages, as in the image classification benchmark of MLPerf Tiny (Banbury et al. 2021)."""

from __future__ import annotations

from edgecnn.layers import Conv, Layer, Pool, Residual


def resnet8_layers(width: float = 1.0) -> tuple[Layer, ...]:
    """List a 3x3 convolution of 16 filters and stages of 16, 32 and 64, each times `width`."""
    widths = [max(4, round(filters * width)) for filters in (16, 32, 64)]
    stages = [_stage(filters, 2 if index else 1) for index, filters in enumerate(widths)]
    return (Conv(filters=widths[0]), *stages, Pool(pooling="average", kernel="all"))


def _stage(filters: int, stride: int) -> Residual:
    inner = (Conv(filters=filters, stride=stride), Conv(filters=filters, activation="none"))
    return Residual(layers=inner, activation="relu")
