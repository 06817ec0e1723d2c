"""`lenet`: convolution, pooling, fully connected, dropout: the textbook (LeCun et al. 1998), with ReLU and max pooling."""

from __future__ import annotations

from edgecnn.layers import Conv, Dropout, Layer, Linear, Pool


def lenet_layers(dropout: float = 0.25) -> tuple[Layer, ...]:
    """List LeNet-5's layers; its first convolution keeps the size, as it did for 28x28 images padded to 32x32."""
    return (
        Conv(filters=6, kernel=5, norm=False),
        Pool(),
        Conv(filters=16, kernel=5, norm=False),
        Pool(),
        Linear(units=120),
        Dropout(rate=dropout),
        Linear(units=84),
    )
