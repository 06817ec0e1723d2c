"""The weights averaged over the last steps, which wander less than those of any one step (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """An exponential moving average of a network's weights and batch norm statistics; `decay` 0 is the network itself."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval() if decay > 0 else net
        self.decay = decay
        self.source = net
        self.pairs = list(zip(_floats(self.net), _floats(net), strict=True))

    def update(self, step: int) -> None:
        """Take in the network after a step, from 0; early on the average is shorter, so that it holds no fresh weights."""
        if self.net is self.source:
            return
        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([mine for mine, _ in self.pairs], [theirs for _, theirs in self.pairs], 1 - keep)


def decay_of(share: float, steps: int) -> float:
    """Give the decay that averages over about `share` of all steps."""
    return max(0.0, 1 - 1 / (share * steps)) if share else 0.0


def _floats(net: nn.Module) -> list[torch.Tensor]:
    tensors = [*net.parameters(), *net.buffers()]
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
