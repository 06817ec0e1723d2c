"""`lenet`: convolution, pooling, fully connected, dropout: the textbook (LeCun et al. 1998), with ReLU and max pooling."""

from __future__ import annotations

from edgecnn.layers import Conv, Dropout, Layer, Linear, Pool


def lenet_layers(dropout: float = 0.25) -> tuple[Layer, ...]:
    """List LeNet-5's layers, but that both convolutions keep the size, where its second does not: 4x4 images fit too."""
    return (
        Conv(filters=6, kernel=5, norm=False),
        Pool(),
        Conv(filters=16, kernel=5, norm=False),
        Pool(),
        Linear(units=120),
        Dropout(rate=dropout),
        Linear(units=84),
    )
