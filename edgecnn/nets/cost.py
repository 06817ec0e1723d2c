"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgecnn.spec import Frozen, Preprocess


class Cost(Frozen, frozen=True):
    """`parameters` that are trained; `macs`, multiply-accumulates of convolutions and linear layers for one image."""

    parameters: int
    macs: int


def measure_cost(net: nn.Module, preprocess: Preprocess) -> Cost:
    """Count by running one empty image through the network with hooks on the layers that multiply."""
    macs = 0

    def count(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output[0].numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            macs += output[0].numel() * module.in_features

    handles = [module.register_forward_hook(count) for module in net.modules()]
    training = net.training
    net.eval()
    first = next(net.parameters())
    with torch.inference_mode():
        net(
            torch.zeros(
                1, preprocess.channels, preprocess.height, preprocess.width, dtype=first.dtype, device=first.device
            )
        )
    net.train(training)
    for handle in handles:
        handle.remove()
    return Cost(parameters=sum(parameter.numel() for parameter in net.parameters()), macs=macs)
