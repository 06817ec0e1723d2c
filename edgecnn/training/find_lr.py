"""`--lr auto`: a learning rate from a short run over rising ones (Smith 2017)."""

from __future__ import annotations

import copy
import math

import msgspec
import torch
from torch import nn

from edgecnn.data import Dataset
from edgecnn.errors import TrainingError
from edgecnn.nets import Deployed
from edgecnn.training.loop import Training
from edgecnn.training.recipe import Recipe

_STEPS = 80
_RANGE = {"adam": (1e-5, 0.3), "sgd": (1e-3, 10.0)}
_BELOW = 3.0  # the peak of a schedule is taken this far below the rate at which the loss was least
_DIVERGED = 2.0  # times the least loss: higher rates would tell nothing


def find_lr(net: nn.Module, dataset: Dataset, recipe: Recipe, device: str, teacher: Deployed | None = None) -> float:
    """Return the peak learning rate to train with; the network and torch's generator are left as they were.

    A copy of the network takes steps at rates that rise geometrically; its loss falls, then climbs.

    Raises:
        TrainingError: the loss never falls.
    """
    lowest, highest = _RANGE[recipe.optimizer]
    state = torch.get_rng_state()
    trial = msgspec.structs.replace(recipe.resolve(len(dataset.train)), epochs=1, ema=0.0, lr=1.0)
    training = Training(copy.deepcopy(net), dataset, trial, device, teacher=teacher)
    losses, rates = [], []
    for step in range(_STEPS):
        rate = lowest * (highest / lowest) ** (step / (_STEPS - 1))
        value = training.trial_step(step, rate)
        losses.append(value)
        rates.append(rate)
        if not math.isfinite(value) or value > _DIVERGED * max(losses[0], 1e-9):
            break
    torch.set_rng_state(state)
    smooth = _smoothed([loss for loss in losses if math.isfinite(loss)])
    if len(smooth) < 3 or min(smooth) >= smooth[0]:
        raise TrainingError("--lr auto: the loss does not fall at any rate; check the labels, or give a rate")
    best = rates[smooth.index(min(smooth))] / _BELOW
    return float(f"{best:.2g}")


def _smoothed(losses: list[float], keep: float = 0.8) -> list[float]:
    """Average exponentially, corrected for the start."""
    total, smooth = 0.0, []
    for index, loss in enumerate(losses, 1):
        total = keep * total + (1 - keep) * loss
        smooth.append(total / (1 - keep**index))
    return smooth
