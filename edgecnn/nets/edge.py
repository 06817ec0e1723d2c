"""`edge`, the default: three stages of residual 3x3 convolutions, whose parameters do not grow with the image."""

from __future__ import annotations

from typing import Literal

from edgecnn.layers import Conv, Dropout, Layer, Pool, Residual

Size = Literal["n", "s", "m"]

_WIDTHS: dict[Size, tuple[int, int, int]] = {"n": (16, 24, 32), "s": (16, 28, 48), "m": (16, 40, 64)}
_BLOCKS: dict[Size, tuple[int, int, int]] = {"n": (1, 1, 1), "s": (1, 1, 1), "m": (1, 2, 1)}
_PLANE = 24  # pixels a side at which the first stage works, at least
_SMALLEST = 4  # pixels a side: planes are not halved below


def edge_layers(
    side: int, size: Size = "s", width: float = 1.0, depth: int | None = None, dropout: float = 0.0
) -> tuple[Layer, ...]:
    """List the layers for images of `side` pixels.

    A stem brings larger images down to planes of 24 to 47 pixels. Each stage is a 3x3 convolution and `depth`
    residual ones, whose shortcut goes around convolution, norm and activation together: that fuses into one int8
    kernel and an addition. Max pooling halves the planes between stages.
    """
    widths = [max(4, round(filters * width / 4) * 4) for filters in _WIDTHS[size]]
    layers: list[Layer] = [Conv(filters=widths[0], stride=2 if side >= 2 * _PLANE else 1)]
    side = (side + 1) // 2 if side >= 2 * _PLANE else side
    while side >= 2 * _PLANE:
        layers.append(Conv(filters=widths[0], stride=2))
        side = (side + 1) // 2
    for index, filters in enumerate(widths):
        if index:
            if side >= 2 * _SMALLEST:
                layers.append(Pool())
                side //= 2
            layers.append(Conv(filters=filters))
        blocks = _BLOCKS[size][index] if depth is None else depth
        layers += [Residual(layers=(Conv(filters=filters),))] * blocks
    return (*layers, Pool(pooling="average", kernel="all"), *([Dropout(rate=dropout)] if dropout else []))
