"""From a network's configuration to the torch module."""

from __future__ import annotations

from torch import nn

from edgecnn.layers import ModelConfig, trace
from edgecnn.nets.function import build_from_function
from edgecnn.nets.layered import Layered
from edgecnn.spec import Preprocess


def build_net(config: ModelConfig, preprocess: Preprocess, classes: int) -> nn.Module:
    """Build the network for images of this size, with fresh weights from torch's own generator.

    Raises:
        UsageError: the configuration does not fit the images.
    """
    if config.function is not None:
        return build_from_function(config.function, preprocess, classes)
    image = (preprocess.channels, preprocess.height, preprocess.width)
    trace(config.layers, image, classes)  # what does not fit, or is too large, is refused before it is allocated
    return Layered(config.layers, image, classes)
