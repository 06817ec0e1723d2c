"""`--lr auto`: the rate it finds trains, and looking for it changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from greys import dataset, equal, net, one_thread, weights  # noqa: F401 -- the fixture is for every test here

from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.errors import TrainingError
from edgecnn.training import find_lr as module
from edgecnn.training.augment import LEVELS
from edgecnn.training.find_lr import find_lr
from edgecnn.training.loop import Training, fit
from edgecnn.training.recipe import Recipe


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Return a part of the digits."""
    data = open_data("digits", DataOptions())
    few = np.arange(0, len(data.train), 3)
    preprocess = type(data.preprocess)(height=8, width=8, channels=1, scale=1 / 95, zero_point=78)
    return dataclasses.replace(data, train=data.train.subset(few), preprocess=preprocess)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_rate_found_trains(optimizer: Literal["adam", "sgd"], digits: Dataset) -> None:
    """Digits are learnt at the rate found, better than at a hundredth of it, and it is not at the end of the range."""
    recipe = Recipe(epochs=8, batch_size=32, optimizer=optimizer, augment=LEVELS["none"])
    lr = find_lr(net(digits, widths=(8, 16)), digits, recipe, "cpu")
    lowest, highest = module._RANGE[optimizer]
    assert 10 * lowest < lr < highest
    accuracies = [
        max(row.val_accuracy for row in fit(net(digits, widths=(8, 16)), digits, changed).history)
        for changed in (at(recipe, lr), at(recipe, lr / 100))
    ]
    assert accuracies[0] > 0.7
    assert accuracies[0] > accuracies[1]


def at(recipe: Recipe, lr: float) -> Recipe:
    """Give the recipe with another rate."""
    return msgspec.structs.replace(recipe, lr=lr)


def test_looking_for_a_rate_changes_nothing() -> None:
    """Net, its mode and torch's generator are as they were, and the same question has the same answer."""
    data = dataset()
    made = net(data)
    before, mode, state = weights(made), made.training, torch.get_rng_state()
    recipe = Recipe(epochs=2, batch_size=16)
    found = find_lr(made, data, recipe, "cpu")
    assert equal(weights(made), before)
    assert made.training is mode
    assert torch.equal(torch.get_rng_state(), state)
    assert find_lr(made, data, recipe, "cpu") == found
    assert float(f"{found:.2g}") == found


@pytest.mark.parametrize("losses", [[1.0, 1.1, 1.2, 1.3, 3.0], [float("inf")], [float("nan")], [1.0, float("inf")]])
def test_a_loss_that_never_falls_is_said(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no rate lowers the loss there is none to be found, and that is one line."""
    given = iter(losses)
    monkeypatch.setattr(Training, "trial_step", lambda self, number, lr: next(given))
    data = dataset()
    with pytest.raises(TrainingError, match="--lr auto: the loss does not fall at any rate"):
        find_lr(net(data), data, Recipe(), "cpu")


def test_the_rate_is_taken_below_the_least_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss that is least, smoothed, at a known step, the rate is a third of that step's; a divergence ends it."""
    tried: list[float] = []

    def step(self: Training, number: int, lr: float) -> float:
        tried.append(lr)
        return 2 - 0.02 * number if number < 50 else 1 + 0.5 * (number - 49)

    monkeypatch.setattr(Training, "trial_step", step)
    data = dataset()
    found = find_lr(net(data), data, Recipe(), "cpu")
    assert len(tried) < 60
    assert tried[0] == pytest.approx(1e-5)
    assert np.allclose(np.diff(np.log(tried)), np.log(0.3 / 1e-5) / 79)
    assert found == pytest.approx(tried[49] / 3, rel=0.3)


def test_losses_are_smoothed_by_an_average_that_adds_up() -> None:
    """The average is the exponential one with weights that add up to one, from the first value on."""
    values = np.random.default_rng(0).normal(size=20)
    for index, found in enumerate(module._smoothed(values.tolist())):
        share = 0.8 ** np.arange(index, -1, -1)
        assert found == pytest.approx(np.average(values[: index + 1], weights=share))
