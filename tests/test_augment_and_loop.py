"""Augmentation, recipe and loop on tiny data: what moves, what is counted, which weights are kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from edgecnn.data import Dataset, LabelledImages
from edgecnn.data.dataset import Item
from edgecnn.errors import TrainingError
from edgecnn.nets import Deployed, build_net
from edgecnn.nets.compact import compact_config
from edgecnn.spec import Preprocess
from edgecnn.training import augment, loop
from edgecnn.training.augment import augment_light
from edgecnn.training.loop import Epoch, Trained, _optimizer, fit, predict_logits
from edgecnn.training.recipe import Recipe


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 4, side: int = 10, channels: int = 1) -> torch.Tensor:
    pixels = np.random.default_rng(6).integers(0, 256, (count, side, side, channels))
    return torch.from_numpy(pixels.astype(np.float32))


def _fix_chance(monkeypatch: pytest.MonkeyPatch, angle: float, zoom: float, right: float, down: float) -> None:
    """Make every draw the same: each value is from -1 to 1, as a share of the largest move."""
    row = (torch.tensor([angle, zoom, right, down]) + 1) / 2
    monkeypatch.setattr(torch, "rand", lambda count, four, generator: row.repeat(count, 1))


def test_without_a_move_the_images_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move of nothing gives the images back."""
    _fix_chance(monkeypatch, 0, 0, 0, 0)
    images = _images(channels=3)
    assert torch.allclose(augment_light(images, _generator()), images, atol=1e-3)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_the_largest_shift_is_a_tenth_of_the_side(right: int, down: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ten pixels the largest shift is one whole pixel, and what comes in repeats the edge."""
    _fix_chance(monkeypatch, 0, 0, right, down)
    images = _images()
    moved = augment_light(images, _generator())
    padded = np.pad(images.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    expected = padded[:, 1 + down : 11 + down, 1 + right : 11 + right]
    assert np.allclose(moved.numpy(), expected, atol=1e-2)


def test_turns_and_scales_are_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest turn and change of scale is what scipy's affine transform gives with the same matrix."""
    _fix_chance(monkeypatch, 1, -1, 0, 0)
    images = _images(count=1, side=16)
    moved = augment_light(images, _generator())[0, :, :, 0].numpy()
    zoom, turn = 0.9, math.radians(10)
    matrix = zoom * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    centre = np.array([7.5, 7.5])
    expected = ndimage.affine_transform(
        images[0, :, :, 0].numpy(), matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    assert np.allclose(moved[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-2)


def test_flat_images_stay_flat() -> None:
    """A picture of one grey keeps it everywhere: nothing black comes in from outside."""
    images = torch.full((20, 9, 9, 3), 200.0)
    assert torch.allclose(augment_light(images, _generator()), images, atol=1e-3)


def test_each_image_moves_its_own_way_and_stays_in_range() -> None:
    """Equal images of a batch come out different, no brighter and no darker than they were."""
    images = _images(count=1).repeat(8, 1, 1, 1)
    moved = augment_light(images, _generator())
    assert moved.shape == images.shape
    assert all(not torch.equal(moved[0], moved[index]) for index in range(1, 8))
    assert float(moved.min()) >= float(images.min()) - 1e-3
    assert float(moved.max()) <= float(images.max()) + 1e-3


def test_chance_comes_from_the_generator_alone() -> None:
    """The same seed moves alike, another one differently, and torch's global state is not drawn from."""
    images = _images()
    state = torch.get_rng_state()
    one = augment_light(images, _generator(1))
    assert torch.equal(one, augment_light(images, _generator(1)))
    assert not torch.equal(one, augment_light(images, _generator(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_moves_stay_within_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many images the matrices turn by at most ten degrees, scale by a tenth and shift by a tenth of the side."""
    seen: list[torch.Tensor] = []
    real = torch.nn.functional.affine_grid

    def spy(theta: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
        seen.append(theta)
        return real(theta, size, align_corners=align_corners)

    monkeypatch.setattr(augment.functional, "affine_grid", spy)
    augment_light(_images(count=2000, side=3), _generator())
    theta = seen[0].double().numpy()
    zoom = np.sqrt(np.linalg.det(theta[:, :, :2]))
    turn = np.degrees(np.arctan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert 0.9 <= zoom.min() < 0.91 < 1.09 < zoom.max() <= 1.1 + 1e-6
    assert -10 <= turn.min() < -9.8 < 9.8 < turn.max() <= 10 + 1e-4
    assert 0.19 < np.abs(theta[:, :, 2]).max() <= 0.2 + 1e-6  # of a side that is two long


@pytest.mark.parametrize(
    ("images", "epochs", "batch"),
    [(10, 80, 10), (1078, 80, 32), (3999, 80, 32), (4000, 80, 128), (6000, 53, 128), (60_000, 8, 128)],
)
def test_the_recipe_follows_the_number_of_images(images: int, epochs: int, batch: int) -> None:
    """Few images get small batches and many epochs, many the reverse, and no batch exceeds the set."""
    found = Recipe().resolve(images)
    assert (found.epochs, found.batch_size) == (epochs, batch)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.004), ("sgd", 0.2)])
def test_what_the_recipe_states_is_kept(optimizer: str, lr: float) -> None:
    """Resolving fills in what is None and leaves everything else, and doing it twice changes nothing."""
    assert Recipe(optimizer="adam" if optimizer == "adam" else "sgd").resolve(100).lr == lr
    stated = Recipe(
        epochs=3, batch_size=7, optimizer="sgd", lr=0.5, weight_decay=0.1, label_smoothing=0.2, augment="none", seed=9
    )
    assert stated.resolve(100) == stated
    once = Recipe().resolve(500)
    assert once.resolve(500) == once


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train on one thread: for images this small, a second one only waits."""
    monkeypatch.setattr(loop, "usable_threads", lambda: 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _split(count: int, seed: int, side: int, classes: int) -> LabelledImages:
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    pixels = rng.integers(0, 60, (count, side, side, 1))
    pixels += 60 * labels[:, None, None, None]  # brightness tells the class
    items = tuple(Item(f"{seed}-{index}", int(label), pixels[index]) for index, label in enumerate(labels))
    return LabelledImages(pixels.astype(np.uint8), labels, items)


def _dataset(train: int = 48, side: int = 6, classes: int = 3) -> Dataset:
    return Dataset(
        source="greys",
        labels=tuple("abcdefgh"[:classes]),
        preprocess=Preprocess(height=side, width=side, channels=1, scale=0.02, zero_point=60),
        train=_split(train, 1, side, classes),
        val=_split(24, 2, side, classes),
        test=_split(24, 3, side, classes),
        split="by hand",
    )


def _net(dataset: Dataset, seed: int = 0, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    return build_net(compact_config((6,), depth=1, dropout=dropout), dataset.preprocess, len(dataset.labels))


def _weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


SHORT = Recipe(epochs=4, batch_size=16, seed=5)


def _fit(dataset: Dataset, recipe: Recipe = SHORT, seed: int = 0) -> tuple[Trained, list[dict[str, torch.Tensor]]]:
    states: list[dict[str, torch.Tensor]] = []
    trained = fit(_net(dataset, seed), dataset, recipe, on_epoch=lambda epoch, net: states.append(_weights(net)))
    return trained, states


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_simple_task_is_learnt(optimizer: str) -> None:
    """Both optimizers learn to tell three greys apart, on images not trained on."""
    dataset = _dataset(train=96)
    recipe = Recipe(epochs=25, batch_size=16, optimizer="adam" if optimizer == "adam" else "sgd", augment="none")
    trained, _ = _fit(dataset, recipe)
    answers = predict_logits(Deployed(trained.net, dataset.preprocess), dataset.test).argmax(axis=1)
    assert (answers == dataset.test.labels).mean() > 0.9
    assert trained.history[-1].loss < trained.history[0].loss


def test_the_best_weights_are_kept() -> None:
    """The weights that come back are those of the last epoch marked best, which had the best accuracy, then loss."""
    trained, states = _fit(_dataset(), Recipe(epochs=8, batch_size=16, lr=0.05))
    ranks = [(epoch.val_accuracy, -epoch.val_loss) for epoch in trained.history]
    best = max(range(len(ranks)), key=lambda index: ranks[index])
    assert _equal(_weights(trained.net), states[best])
    for index, epoch in enumerate(trained.history):
        assert epoch.best == all(ranks[index] > earlier for earlier in ranks[:index])


def test_the_last_weights_are_not_kept_where_they_are_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the second epoch is good, its weights come back and not the last ones."""
    dataset, calls = _dataset(), [0]
    right = np.eye(3, dtype=np.float32)[dataset.val.labels]

    def logits(model: Deployed, images: LabelledImages) -> np.ndarray:
        calls[0] += 1
        return right if calls[0] == 2 else -right

    monkeypatch.setattr(loop, "predict_logits", logits)
    trained, states = _fit(dataset)
    assert [epoch.best for epoch in trained.history] == [True, True, False, False]
    assert _equal(_weights(trained.net), states[1])
    assert not _equal(states[1], states[3])


def test_the_history_is_counted_and_measured() -> None:
    """Epochs are numbered from one, and the best one's loss and accuracy are those of the weights that come back."""
    dataset = _dataset()
    trained, states = _fit(dataset)
    assert [epoch.number for epoch in trained.history] == [1, 2, 3, 4]
    assert len(states) == 4
    logits = predict_logits(Deployed(trained.net, dataset.preprocess), dataset.val)
    best = max(trained.history, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    shifted = logits - logits.max(axis=1, keepdims=True)
    likely = shifted[np.arange(24), dataset.val.labels] - np.log(np.exp(shifted).sum(axis=1))
    assert best.val_loss == pytest.approx(-likely.mean(), rel=1e-5)
    assert best.val_accuracy == (logits.argmax(axis=1) == dataset.val.labels).mean()


def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the steps taken the rate starts at a 25th of its peak, reaches it after a quarter, and ends 10,000 times lower."""
    used: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW) -> None:
        used.append(self.param_groups[0]["lr"])
        real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    _fit(_dataset(), Recipe(epochs=4, batch_size=16, lr=0.01))
    assert len(used) == 4 * 3
    assert used[0] == pytest.approx(0.01 / 25)
    assert used.index(max(used)) == 2
    assert max(used) == pytest.approx(0.01)
    assert used[-1] == pytest.approx(0.01 / 25 / 10_000)
    assert used[2:] == sorted(used[2:], reverse=True)


def test_training_again_gives_the_same_weights() -> None:
    """The same seed gives the same weights to the last bit, another seed other ones."""
    dataset = _dataset()
    one, other = _fit(dataset)[0], _fit(dataset)[0]
    assert _equal(_weights(one.net), _weights(other.net))
    assert [epoch.loss for epoch in one.history] == [epoch.loss for epoch in other.history]
    third = _fit(dataset, Recipe(epochs=4, batch_size=16, seed=6))[0]
    assert not _equal(_weights(one.net), _weights(third.net))


def test_the_test_split_is_never_looked_at() -> None:
    """Training with a test split of other images and labels gives the same weights."""
    dataset = _dataset()
    other = copy.copy(dataset)
    object.__setattr__(other, "test", _split(24, 99, 6, 2))
    assert _equal(_weights(_fit(dataset)[0].net), _weights(_fit(other)[0].net))


def test_training_leaves_the_data_as_they_were() -> None:
    """No pixel and no label is changed by training on it."""
    dataset = _dataset()
    before = [part.sha256() for part in (dataset.train, dataset.val, dataset.test)]
    _fit(dataset)
    assert [part.sha256() for part in (dataset.train, dataset.val, dataset.test)] == before


def test_the_net_comes_back_ready_to_answer() -> None:
    """The trained net is in evaluation mode: it answers alike each time, and its logits do not depend on the batch."""
    dataset = _dataset()
    trained, _ = _fit(dataset)
    assert not trained.net.training
    model = Deployed(trained.net, dataset.preprocess)
    whole = predict_logits(model, dataset.test)
    assert whole.shape == (24, 3)
    assert np.allclose(whole, predict_logits(model, dataset.test, batch_size=5), atol=1e-5)


def test_logits_are_computed_in_evaluation_mode() -> None:
    """A net left in training mode answers without dropout and without moving its batch norms' statistics."""
    dataset = _dataset()
    model = Deployed(_net(dataset, dropout=0.9), dataset.preprocess).train()
    before = _weights(model)
    assert np.array_equal(predict_logits(model, dataset.test), predict_logits(model, dataset.test))
    assert _equal(_weights(model), before)


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0.02), ("sgd", 0.0005)])
def test_decay_spares_norms_and_biases(optimizer: str, decay: float) -> None:
    """Only kernels and matrices decay; every parameter is in exactly one group."""
    net = _net(_dataset())
    recipe = Recipe(optimizer="adam" if optimizer == "adam" else "sgd").resolve(48)
    groups = _optimizer(net, recipe).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        expected = decay if name in ("stages.0.0.weight", "head.weight") else 0.0
        assert decays[id(parameter)] == pytest.approx(expected), name


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    """A rate far too high ends with an error that names the rate, and no weights come back as trained."""
    with pytest.raises(TrainingError, match="smaller --lr"):
        _fit(_dataset(), Recipe(epochs=6, batch_size=16, lr=1e25))


def test_weights_broken_by_the_last_step_are_not_the_best() -> None:
    """A net that the only step has broken, so that no later loss could tell, is an error and not the best epoch."""
    kept: list[Epoch] = []
    dataset = _dataset(train=16)
    with pytest.raises(TrainingError):
        fit(
            _net(dataset),
            dataset,
            Recipe(epochs=1, batch_size=16, lr=1e30, augment="none"),
            on_epoch=lambda epoch, net: kept.append(epoch),
        )
    assert kept == []


def test_a_last_batch_of_one_image_is_trained_on() -> None:
    """Images of the least size, where the last batch holds one of them, do not stop batch norm."""
    dataset = _dataset(train=17, side=4, classes=2)
    net = build_net(compact_config((4, 4, 4), depth=1), dataset.preprocess, 2)
    trained = fit(net, dataset, Recipe(epochs=3, batch_size=16))
    assert len(trained.history) == 3


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 8])
def test_any_small_number_of_steps_can_be_trained(epochs: int) -> None:
    """A set of one batch trains for any number of epochs: the schedule has no length that it cannot divide."""
    dataset = _dataset(train=12)
    trained = fit(_net(dataset), dataset, Recipe(epochs=epochs))
    assert [epoch.number for epoch in trained.history] == list(range(1, epochs + 1))
    assert all(epoch.lr > 0 for epoch in trained.history)
