"""Temperature scaling: one number, fitted on the validation images, that makes confidences mean what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.metrics import Array, nll, softmax
from edgecnn.spec import Preprocess

# A net that needs more or less than this is not badly calibrated but broken.
COLDEST, HOTTEST = 0.05, 20.0
_STEPS = 60  # halvings: to the last bits of a float64


def fit_temperature(logits: Array, labels: npt.NDArray[np.integer]) -> float:
    """Find the temperature T for which softmax(logits / T) has the least negative log-likelihood.

    Guo et al. 2017, "On Calibration of Modern Neural Networks". The likelihood is convex in 1 / T, so its slope has
    one root, and bisection on the logarithm of 1 / T cannot miss it; that needs no optimiser from a library.

    Where all answers are right, likelihood alone would have T go to 0 and every confidence to 1. But n images
    cannot show that errors are rarer than about one in n + 2 (Laplace's rule of succession): a T at which the mean
    confidence claims more is not gone down to. T stays within 0.05 to 20, and is 1 where no other is better.

    Raises:
        ValueError: the shapes do not fit, there is nothing, or a logit is not finite or a label out of range.
    """
    before = nll(logits, labels)
    n = len(labels)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    of_truth = float(shifted[np.arange(n), labels].mean())

    def slope(sharpness: float) -> float:
        return float((softmax(sharpness * shifted) * shifted).sum(axis=1).mean()) - of_truth

    def claimed_too_much(sharpness: float) -> float:
        return float(softmax(sharpness * shifted).max(axis=1).mean()) - (n + 1) / (n + 2)

    if slope(1.0) == 0:
        return 1.0
    # A limit below 1 would undo the net's own confidence, which is not what the limit is for.
    limit = max(1.0, _root(claimed_too_much))
    temperature = 1 / min(_root(slope), limit)
    return temperature if nll(logits / temperature, labels) <= before else 1.0


def _root(rising: Callable[[float], float]) -> float:
    """Find where a function that rises crosses 0, within the range of 1 / T; an end of it where it does not."""
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(math.exp(middle)) < 0 else (low, middle)
    return math.exp((low + high) / 2)


def fold_temperature(net: nn.Module, temperature: float, preprocess: Preprocess) -> None:
    """Divide the logits of a network by the temperature, for good, by dividing its last layer's weights and bias.

    So the deployed network is calibrated at no cost, in every format it is exported to. Which layer is the last is
    seen from a pass of noise of the size of `preprocess`: the linear layer whose output is the network's.

    Raises:
        UsageError: the output is not that of a linear layer alone, or the temperature is not a positive number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"a temperature of {temperature} cannot be divided by; it must be positive and finite")
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        first = next(net.parameters())
        noise = torch.randn(2, preprocess.channels, preprocess.height, preprocess.width, generator=torch.Generator().manual_seed(0))  # fmt: skip
        images = noise.to(first)
        before, layer = _last_linear(net, images)
        kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.div_(temperature)
            after = net(images)
        # Weights that another layer shares, or a layer that runs twice, would change more than the scale.
        if not torch.allclose(after * temperature, before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            layer.load_state_dict(kept)
            raise UsageError("the net's last layer is used elsewhere too, so a temperature cannot be folded into it")
    finally:
        for module, training in modes.items():
            module.training = training


def _last_linear(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
    """Run the network and return its output and the linear layer that it comes from."""
    outputs: list[tuple[nn.Linear, torch.Tensor]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            outputs.append((module, output))

    handles = [module.register_forward_hook(note) for module in net.modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            logits: torch.Tensor = net(images)
    finally:
        for handle in handles:
            handle.remove()
    for layer, output in reversed(outputs):
        if output.shape == logits.shape and torch.equal(output, logits):
            return logits, layer
    raise UsageError("the net does not end in a linear layer, so a temperature cannot be folded into it")
