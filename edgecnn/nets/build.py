"""From a ModelConfig to a network."""

from __future__ import annotations

from torch import nn

from edgecnn.errors import UsageError
from edgecnn.nets.compact import Compact
from edgecnn.spec import ModelConfig, Preprocess


def build_net(config: ModelConfig, preprocess: Preprocess, classes: int) -> nn.Module:
    """Build the network for images of this size.

    Raises:
        UsageError: the configuration does not fit the images.
    """
    if not config.widths or min(config.widths) < 1 or config.depth < 1 or not 0 <= config.dropout < 1:
        raise UsageError(f"the net needs widths and a depth of at least 1 and a dropout below 1, not {config}")
    least = 2 ** (len(config.widths) - 1)
    if min(preprocess.height, preprocess.width) < least:
        raise UsageError(
            f"images of {preprocess.width}x{preprocess.height} are too small for {len(config.widths)} widths, which halve "
            f"them {len(config.widths) - 1} times: use --size {least} or more, or fewer widths"
        )
    return Compact(config, preprocess.height, preprocess.width, preprocess.channels, classes)


def default_config(preprocess: Preprocess) -> ModelConfig:
    """Choose widths by image size: one more halving for each doubling, ending at about 4x4 pixels."""
    side = min(preprocess.height, preprocess.width)
    widths = (16, 32, 48, 64, 96)
    return ModelConfig(widths=widths[: max(1, min(len(widths), side.bit_length() - 2))])
