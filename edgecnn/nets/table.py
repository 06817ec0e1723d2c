"""The layers of any torch network as they run: what each gives, what it costs, and how much of the image it sees."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.layers import Row
from edgecnn.spec import Preprocess

_IMAGES = 8  # random ones; max pooling lets only some pixels of each through
_DIM = 1e-3  # their largest value: far below where a ReLU6 or a sigmoid saturates


def measured_rows(net: nn.Module, preprocess: Preprocess) -> list[Row]:
    """List the layers, modules without parts of their own, in the order in which they run, one row for each call.

    Parameters are counted where they are used first, multiply-accumulates for convolutions and linear layers. The
    receptive field is measured: how wide the pixels lie that have a gradient at two values in the middle. Near the
    size of the image it comes out smaller than it is, cut off by the border; for values without a place, None.

    Raises:
        UsageError: the network cannot be run or differentiated in float64.
    """
    probe = _averaging(net).double().eval()
    names = {module: name for name, module in probe.named_modules()}
    shape = (_IMAGES, preprocess.channels, preprocess.height, preprocess.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * _DIM
    images.requires_grad_()
    calls: list[tuple[nn.Module, tuple[int, ...], torch.Tensor | None]] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            calls.append((module, tuple(output.shape[1:]), _middle(output)))

    for module in names:
        if _is_layer(module):
            module.register_forward_hook(note)
    try:
        with torch.enable_grad():
            probe(images)
            fields = [_field(middle, images) for _, _, middle in calls]
    except Exception as error:  # their code may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(f"the layers cannot be listed, for the net does not run in float64 ({text})") from error
    counted: set[int] = set()
    rows = []
    for (module, size, _), field in zip(calls, fields, strict=True):
        fresh = [one for one in module.parameters() if id(one) not in counted]
        counted |= {id(one) for one in fresh}
        name = f"{names[module]} {type(module).__name__}".strip()
        rows.append(
            Row(name=name, shape=size, parameters=sum(map(torch.numel, fresh)), macs=_macs(module, size), field=field)
        )
    return rows


def _is_layer(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None) is not None
    return own or (next(module.children(), None) is None and not isinstance(module, nn.Identity | nn.Dropout))


def _averaging(net: nn.Module) -> nn.Module:
    """Copy the network with positive weights that sum to one, so that no path to a pixel is blocked or cancels out."""
    probe = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in probe.named_parameters():
            if weight.ndim > 1:
                drawn = torch.rand(weight.shape, generator=generator) + 0.5
                weight.copy_(drawn / drawn[0].sum())
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, value in probe.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.fill_(0.0 if name.endswith("mean") else 1.0)
    return probe


def _middle(output: torch.Tensor) -> torch.Tensor | None:
    """Add up the values at the middle of the planes: rounded down in half of the images, up in the others."""
    if output.ndim != 4:
        return None
    height, width = output.shape[2:]
    half = _IMAGES // 2
    early = output[:half, :, (height - 1) // 2, (width - 1) // 2].sum()
    return early + output[half:, :, height // 2, width // 2].sum()


def _field(middle: torch.Tensor | None, images: torch.Tensor) -> int | None:
    """Measure the longer side of the box of pixels with a gradient; None where the box is as large as the image."""
    if middle is None or not middle.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(middle, images, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    half = _IMAGES // 2
    seen = (gradient != 0).any(1)
    side = max(_extent(part.any(0).any(axis)) for part in (seen[:half], seen[half:]) for axis in (0, 1))
    return side if side < max(images.shape[2:]) else None


def _extent(line: torch.Tensor) -> int:
    places = line.nonzero()
    return int(places.max() - places.min()) + 1 if len(places) else 0


def _macs(module: nn.Module, size: tuple[int, ...]) -> int:
    if isinstance(module, nn.Conv2d):
        return math.prod(size) * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    return math.prod(size) * module.in_features if isinstance(module, nn.Linear) else 0
