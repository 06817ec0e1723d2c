"""What a network makes of one image: its first filters, its feature maps, and which places its answer comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from edgecnn.errors import CheckpointError, UsageError
from edgecnn.images import Pixels
from edgecnn.nets.deployed import Deployed
from edgecnn.spec import Preprocess

Floats = npt.NDArray[np.float32]

MOST_LAYERS = 12
_NOTHING = "the net has no convolution for images, so it has no filters or feature maps to look at"
_NORMS = (_BatchNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
_ACTIVATIONS = (
    nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Threshold,
)  # fmt: skip


@dataclass(frozen=True)
class FeatureLayer:
    """One layer's feature maps, float32 (channels, height, width), after convolution, norm and activation.

    `number` counts the net's layers from 1, `name` is the module that gave the maps, `steps` what was done, in words;
    `first` says that the net's first convolution made them, so that map k is what kernel k found.
    """

    number: int
    name: str
    steps: tuple[str, ...]
    maps: Floats
    first: bool = False


@dataclass(frozen=True)
class Saliency:
    """Which places speak for the label `index`, from 0 to 1, where 1 is the strongest place, or all 0 if none does.

    `cells` is float32 (h, w) at the size of the layer, `map` (height, width) at that of the image.
    """

    index: int
    cells: Floats
    map: Floats


@dataclass(frozen=True)
class Features:
    """What a network makes of one image, in the order in which it happens.

    `kernels` of the first convolution, float32 (out, in, height, width); `layers` those shown of `layer_count`;
    `logits` and `probabilities` float64 (classes,); `saliency` for the answer and, if there is one, the runner-up.
    """

    kernels: Floats
    layers: tuple[FeatureLayer, ...]
    layer_count: int
    logits: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    saliency: tuple[Saliency, ...]


def look(net: nn.Module, preprocess: Preprocess, image: Pixels) -> Features:
    """Show one uint8 image (height, width, channels) to a classification network and keep what it makes of it.

    Works through hooks on any module that takes normalised images (N, C, H, W) and gives logits (N, classes): only
    functions called without a module, such as `functional.relu`, stay unseen. A layer is what an activation gives,
    or a convolution with its norm where no activation follows. The network is left as it was found.

    Raises:
        UsageError: it has no convolution, or no gradient reaches its last one.
        CheckpointError: its answer is not finite.
    """
    if not any(isinstance(module, nn.Conv2d) for module in net.modules()):
        raise UsageError(_NOTHING)
    batch = torch.from_numpy(np.array(image))[None].to(next(net.parameters()).device)
    run = partial(Deployed(net, preprocess).logits, batch)
    with _evaluating(net), torch.inference_mode(False):
        watch = _Watch()
        with torch.no_grad(), _listening(net, watch.hear):
            logits = run()[0].double()
        if watch.conv is None:
            raise UsageError(_NOTHING)
        if not torch.isfinite(logits).all():
            raise CheckpointError("the net's answer to this image is not finite: train again")
        layers = watch.spatial()
        likeliest = torch.argsort(logits, descending=True, stable=True)[:2].tolist()
        saliency = _grad_cam(run, layers[-1], likeliest, (preprocess.height, preprocess.width))
    return Features(
        kernels=_array(watch.conv.weight),
        layers=tuple(_freeze(layers[place], place + 1, watch.conv) for place in _spread(len(layers), MOST_LAYERS)),
        layer_count=len(layers),
        logits=logits.cpu().numpy(),
        probabilities=torch.softmax(logits, dim=0).cpu().numpy(),
        saliency=saliency,
    )


@dataclass(eq=False)  # one layer is not another because it looks the same
class _Seen:
    """A layer in the making; `output` is the tensor that flows on, by which the next step is recognised."""

    conv: nn.Module | None
    module: nn.Module
    call: int
    name: str
    steps: list[str]
    output: torch.Tensor
    maps: torch.Tensor
    version: int = 0
    open: bool = True

    def goes_into(self, given: object, output: torch.Tensor) -> bool:
        """Say whether what a step was given is this layer's output, and nothing was added to it on the way."""
        own = 1 if output is given else 0  # a step that works in place changes what it was given itself
        return self.open and self.output is given and self.output._version - own == self.version


@dataclass
class _Watch:
    """Hears each module's call while an image passes, and makes layers of convolutions, norms and activations."""

    layers: list[_Seen] = field(default_factory=list)
    conv: nn.Conv2d | None = None
    _calls: Counter[nn.Module] = field(default_factory=Counter)

    def hear(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Take note of one call; the maps are copied, because what follows may work in place."""
        self._calls[module] += 1
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            return
        if isinstance(module, nn.Conv2d):
            self.conv = self.conv or module
            self._add(_Seen(module, module, 0, name, [_describe(module)], output, output))
        elif isinstance(module, (*_NORMS, *_ACTIVATIONS)):
            owner = next((layer for layer in self.layers if layer.goes_into(inputs[0], output)), None)
            if owner is None and isinstance(module, _NORMS):
                return
            self._add(self._step(owner, name, module, output))

    def spatial(self) -> list[_Seen]:
        """List the layers that have more than one place, in the order in which they were done; or all, if none has."""
        return [layer for layer in self.layers if layer.maps[0].numel() > 1] or self.layers

    def _step(self, owner: _Seen | None, name: str, module: nn.Module, output: torch.Tensor) -> _Seen:
        if owner is not None:
            self.layers.remove(owner)
            steps, conv = [*owner.steps, _describe(module)], owner.conv
        else:  # of a sum, say: the convolutions of its shape that nothing has closed are its terms
            terms = [layer for layer in self.layers if layer.open and layer.output.shape == output.shape]
            self.layers = [layer for layer in self.layers if layer not in terms]
            steps, conv = [*(["sum of branches"] if terms else []), _describe(module)], None
        return _Seen(conv, module, 0, name, steps, output, output, open=isinstance(module, _NORMS))

    def _add(self, layer: _Seen) -> None:
        layer.call = self._calls[layer.module]
        layer.version = layer.output._version
        layer.maps = layer.output[0].detach().clone()
        self.layers.append(layer)


def _grad_cam(
    run: Callable[[], torch.Tensor], layer: _Seen, classes: Sequence[int], size: tuple[int, int]
) -> tuple[Saliency, ...]:
    """Weigh the layer's maps by the mean gradient of a class's logit and add up what is positive.

    Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2. The logit is cut off from all before the layer, so
    that nothing done in place, earlier or later, can reach the maps that are differentiated by.
    """
    calls, maps = 0, torch.empty(0)

    def cut(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal calls, maps
        calls += 1
        if calls != layer.call:
            return None
        maps = output.detach().clone().requires_grad_()
        return maps.clone()

    handle = layer.module.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = run()[0]
    finally:
        handle.remove()
    if not logits.requires_grad:
        raise UsageError(f"no gradient of the net's answer reaches {layer.name}, so nothing says where it comes from")
    found = []
    for index in classes:
        gradient = torch.autograd.grad(logits[index], maps, retain_graph=True, materialize_grads=True)[0]
        found.append(_saliency(index, maps.detach()[0], gradient[0], size))
    return tuple(found)


def _saliency(index: int, maps: torch.Tensor, gradient: torch.Tensor, size: tuple[int, int]) -> Saliency:
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    cells = torch.relu((weights * maps).sum(dim=0))
    if cells.max() > 0:
        cells = cells / cells.max()
    image = functional.interpolate(cells[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return Saliency(index=index, cells=_array(cells), map=_array(image))


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into its own."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _listening(net: nn.Module, hear: Callable[..., None]) -> Iterator[None]:
    """Have `hear` called with a module's name, itself, its inputs and its output, after each call of each module."""
    handles = [module.register_forward_hook(partial(hear, name)) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _describe(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        kind = "depthwise convolution" if module.groups == module.in_channels > 1 else "convolution"
        return f"{module.kernel_size[0]}x{module.kernel_size[1]} {kind}"
    return "batch norm" if isinstance(module, _BatchNorm) else type(module).__name__


def _spread(count: int, most: int) -> list[int]:
    """Choose places from 0 to below `count`: the first, the last, and evenly spread ones between them."""
    return list(range(count)) if count <= most else [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _freeze(layer: _Seen, number: int, first: nn.Conv2d) -> FeatureLayer:
    return FeatureLayer(number, layer.name, tuple(layer.steps), _array(layer.maps), layer.conv is first)


def _array(tensor: torch.Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy().copy()
    return array
