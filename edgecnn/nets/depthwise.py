"""`depthwise`: depthwise separable convolutions with a width multiplier, after MobileNet (Howard et al. 2017)."""

from __future__ import annotations

from edgecnn.layers import Conv, Depthwise, Layer, Pool

_FILTERS = (64, 128, 128, 256, 256, 512, 512)  # MobileNet's, without its five repeats and its last doubling
_HALVED = (1, 3, 5)  # the blocks of those that halve the planes
_SMALLEST = 4  # pixels a side: planes are not halved below


def depthwise_layers(side: int, width: float = 0.25) -> tuple[Layer, ...]:
    """List a convolution and seven depthwise separable blocks, every number of filters times `width`.

    Images of 48 pixels and more are halved by the first convolution; planes below 8 pixels are not halved further.
    """
    stride = 2 if side >= 48 else 1
    layers: list[Layer] = [Conv(filters=_scaled(32, width), stride=stride)]
    side = (side - 1) // stride + 1
    for index, filters in enumerate(_FILTERS):
        stride = 2 if index in _HALVED and side >= 2 * _SMALLEST else 1
        side = (side - 1) // stride + 1
        layers += [Depthwise(stride=stride), Conv(filters=_scaled(filters, width), kernel=1)]
    return (*layers, Pool(pooling="average", kernel="all"))


def _scaled(filters: int, width: float) -> int:
    """Multiply and round to a multiple of 8, which int8 kernels like, at least 8."""
    return max(8, round(filters * width / 8) * 8)
