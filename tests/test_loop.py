"""The training loop on tiny data: what is learnt, which weights are kept, what is counted, and what stops it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from greys import dataset, equal, net, one_thread, split, weights  # noqa: F401 -- the fixture is for every test here
from scipy import special

from edgecnn.data import Dataset, LabelledImages
from edgecnn.errors import TrainingError
from edgecnn.nets import Deployed
from edgecnn.training import loop
from edgecnn.training.augment import LEVELS, Augment
from edgecnn.training.loop import Epoch, Trained, Training, fit, make_optimizer, predict_logits
from edgecnn.training.recipe import Recipe

NONE = LEVELS["none"]


SHORT = Recipe(epochs=4, batch_size=16, seed=5)


def _fit(data: Dataset, recipe: Recipe = SHORT, seed: int = 0) -> tuple[Trained, list[dict[str, torch.Tensor]]]:
    states: list[dict[str, torch.Tensor]] = []
    trained = fit(net(data, seed), data, recipe, on_epoch=lambda epoch, averaged: states.append(weights(averaged)))
    return trained, states


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_simple_task_is_learnt(optimizer: Literal["adam", "sgd"]) -> None:
    """Both optimizers learn to tell three greys apart, on images not trained on."""
    data = dataset(train=96)
    recipe = Recipe(epochs=25, batch_size=16, optimizer=optimizer, augment=NONE)
    trained, _ = _fit(data, recipe)
    answers = predict_logits(Deployed(trained.net, data.preprocess), data.test).argmax(axis=1)
    assert (answers == data.test.labels).mean() > 0.9
    assert trained.history[-1].loss < trained.history[0].loss


def test_the_best_weights_are_kept() -> None:
    """The weights that come back are those of the last epoch within a standard error of the best accuracy before it."""
    trained, states = _fit(dataset(), Recipe(epochs=8, batch_size=16, lr=0.05))
    accuracies = [epoch.val_accuracy for epoch in trained.history]
    kept = []
    for index, accuracy in enumerate(accuracies):
        best = max([0.0, *accuracies[:index]])
        error = np.sqrt(best * (1 - best) / 24)
        kept.append(accuracy >= best - error)
    assert [epoch.best for epoch in trained.history] == kept
    assert equal(weights(trained.net), states[max(np.flatnonzero(kept))])


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ((0.5, 0.9, 0.85, 0.8), [True, True, True, False]),  # the error of 0.9 on 24 images is 0.061
        ((0.5, 1.0, 0.99, 1.0), [True, True, False, True]),  # a perfect score has none
        ((0.0, 0.0, 0.3, 0.2), [True, True, True, False]),  # of 0.3, 0.094
    ],
)
def test_later_weights_are_kept_unless_clearly_worse(
    accuracies: tuple[float, ...], kept: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch within one standard error of the best replaces it, whatever its loss; one further off does not."""
    data, seen = dataset(), iter([(float(number), accuracy) for number, accuracy in enumerate(accuracies)])
    assert len(data.val) == 24
    monkeypatch.setattr(Training, "_validate", lambda self: next(seen))
    trained, states = _fit(data, Recipe(epochs=4, batch_size=16))
    assert [epoch.best for epoch in trained.history] == kept
    assert equal(weights(trained.net), states[max(np.flatnonzero(kept))])


def test_the_last_weights_are_not_kept_where_they_are_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the second epoch is good, its weights come back and not the last ones."""
    data, calls = dataset(), [0]
    right = np.eye(3, dtype=np.float32)[data.val.labels]

    def logits(model: Deployed, images: LabelledImages, indices: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return right if calls[0] == 2 else -right

    monkeypatch.setattr(loop, "predict_logits", logits)
    trained, states = _fit(data)
    assert [epoch.best for epoch in trained.history] == [True, True, False, False]
    assert equal(weights(trained.net), states[1])
    assert not equal(states[1], states[3])


def test_the_history_is_counted_and_measured() -> None:
    """Epochs are numbered from one, and the best one's loss and accuracy are those of the weights that come back."""
    data = dataset()
    trained, states = _fit(data)
    assert [epoch.number for epoch in trained.history] == [1, 2, 3, 4]
    assert len(states) == 4
    logits = predict_logits(Deployed(trained.net, data.preprocess), data.val)
    best = [epoch for epoch in trained.history if epoch.best][-1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    likely = shifted[np.arange(24), data.val.labels] - np.log(np.exp(shifted).sum(axis=1))
    assert best.val_loss == pytest.approx(-likely.mean(), rel=1e-5)
    assert best.val_accuracy == (logits.argmax(axis=1) == data.val.labels).mean()


def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the steps taken the rate starts at a 25th of its peak, reaches it after a quarter, and ends 10,000 times lower."""
    used: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW) -> None:
        used.append(self.param_groups[0]["lr"])
        real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    _fit(dataset(), Recipe(epochs=4, batch_size=16, lr=0.01))
    assert len(used) == 4 * 3
    assert used[0] == pytest.approx(0.01 / 25)
    assert used.index(max(used)) == 2
    assert max(used) == pytest.approx(0.01)
    assert used[-1] == pytest.approx(0.01 / 25 / 10_000)
    assert used[2:] == sorted(used[2:], reverse=True)


def test_training_again_gives_the_sameweights() -> None:
    """The same seed gives the same weights to the last bit, another seed other ones."""
    data = dataset()
    one, other = _fit(data)[0], _fit(data)[0]
    assert equal(weights(one.net), weights(other.net))
    assert [epoch.loss for epoch in one.history] == [epoch.loss for epoch in other.history]
    third = _fit(data, Recipe(epochs=4, batch_size=16, seed=6))[0]
    assert not equal(weights(one.net), weights(third.net))


def test_the_test_split_is_never_looked_at() -> None:
    """Training with a test split of other images and labels gives the same weights."""
    data = dataset()
    other = dataclasses.replace(data, test=split(24, 99, 6, 2))
    assert equal(weights(_fit(data)[0].net), weights(_fit(other)[0].net))


def test_training_leaves_the_data_as_they_were() -> None:
    """No pixel and no label is changed by training on it."""
    data = dataset()
    before = [part.sha256() for part in (data.train, data.val, data.test)]
    _fit(data)
    assert [part.sha256() for part in (data.train, data.val, data.test)] == before


def test_the_net_comes_back_ready_to_answer() -> None:
    """The trained net is in evaluation mode: it answers alike each time, and its logits do not depend on the batch."""
    data = dataset()
    trained, _ = _fit(data)
    assert not trained.net.training
    model = Deployed(trained.net, data.preprocess)
    whole = predict_logits(model, data.test)
    assert whole.shape == (24, 3)
    assert np.allclose(whole, predict_logits(model, data.test, batch_size=5), atol=1e-5)


def test_logits_are_computed_in_evaluation_mode() -> None:
    """A net left in training mode answers without dropout and without moving its batch norms' statistics."""
    data = dataset()
    model = Deployed(net(data, dropout=0.9), data.preprocess).train()
    before = weights(model)
    assert np.array_equal(predict_logits(model, data.test), predict_logits(model, data.test))
    assert equal(weights(model), before)


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0.02), ("sgd", 0.0005)])
def test_decay_spares_norms_and_biases(optimizer: Literal["adam", "sgd"], decay: float) -> None:
    """Only kernels and matrices decay; every parameter is in exactly one group."""
    made = net(dataset())
    recipe = Recipe(optimizer=optimizer).resolve(48)
    groups = make_optimizer(made, recipe).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups) == len(list(made.parameters()))
    for name, parameter in made.named_parameters():
        expected = decay if name in ("layers.0.0.weight", "head.weight") else 0.0
        assert decays[id(parameter)] == pytest.approx(expected), name


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    """A rate far too high ends with an error that names the rate, and no weights come back as trained."""
    with pytest.raises(TrainingError, match="smaller --lr"):
        _fit(dataset(), Recipe(epochs=6, batch_size=16, lr=1e25))


def test_weights_broken_by_the_last_step_are_not_the_best() -> None:
    """A net that the only step has broken, so that no later loss could tell, is an error and not the best epoch."""
    kept: list[Epoch] = []
    data = dataset(train=16)
    with pytest.raises(TrainingError):
        fit(
            net(data),
            data,
            Recipe(epochs=1, batch_size=16, lr=1e30, augment=NONE),
            on_epoch=lambda epoch, averaged: kept.append(epoch),
        )
    assert kept == []


def test_a_last_batch_of_one_image_is_trained_on() -> None:
    """Images of the least size, where the last batch holds one of them, do not stop batch norm."""
    data = dataset(train=17, side=4, classes=2)
    trained = fit(net(data, widths=(4, 4, 4)), data, Recipe(epochs=3, batch_size=16))
    assert len(trained.history) == 3


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 8])
def test_any_small_number_of_steps_can_be_trained(epochs: int) -> None:
    """A set of one batch trains for any number of epochs: the schedule has no length that it cannot divide."""
    data = dataset(train=12)
    trained = fit(net(data), data, Recipe(epochs=epochs))
    assert [epoch.number for epoch in trained.history] == list(range(1, epochs + 1))
    assert all(epoch.lr > 0 for epoch in trained.history)


def _ranks(*accuracies: float) -> list[tuple[float, float]]:
    return [(1.0, accuracy) for accuracy in accuracies]


@pytest.mark.parametrize(
    ("patience", "accuracies", "expected"),
    [
        (1, (0.1, 0.2, 0.1, 0.9), 3),
        (2, (0.1, 0.2, 0.1, 0.3, 0.3, 0.3, 0.9), 6),
        (3, (0.5, 0.4, 0.4, 0.4), 4),
        (None, (0.5, 0.4, 0.4, 0.4, 0.4), 5),
    ],
)
def test_patience_ends_the_training(
    patience: int | None, accuracies: tuple[float, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many epochs that were no better than the best, and no fewer, the training stops."""
    data = dataset(train=16)
    seen = iter(_ranks(*accuracies))
    monkeypatch.setattr(Training, "_validate", lambda self: next(seen))
    trained = fit(net(data), data, Recipe(epochs=len(accuracies), batch_size=16, patience=patience))
    assert len(trained.history) == expected


def test_the_averaged_weights_are_judged_and_shipped() -> None:
    """With an average, what is judged and returned is it, between the raw weights of many steps; without, the raw ones."""
    data = dataset()
    training = Training(net(data), data, msgspec.structs.replace(SHORT, ema=0.5))
    trained = training.run()
    assert trained.net is training.average.net is not training.net
    assert not equal(weights(trained.net), weights(training.net))
    raw = Training(net(data), data, msgspec.structs.replace(SHORT, ema=0.0))
    assert raw.run().net is raw.net
    assert [row.loss for row in raw.progress.history] == [row.loss for row in training.progress.history]


def test_the_first_step_is_a_step_by_hand() -> None:
    """Without augmentation and dropout one step of SGD is what torch's functions give on the same batch."""
    data = dataset(train=16)
    recipe = Recipe(
        epochs=1, batch_size=16, optimizer="sgd", lr=0.1, warmup=0.0, weight_decay=0.0, ema=0.0, augment=NONE
    )
    by_hand = net(data, dropout=0.0).train()
    pixels = torch.from_numpy(data.train.pixels).float().permute(0, 3, 1, 2)
    logits = by_hand((pixels - data.preprocess.zero_point) * data.preprocess.scale)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.train.labels), label_smoothing=0.05)
    loss.backward()
    training = Training(net(data, dropout=0.0), data, recipe)
    trained = training.run()
    assert trained.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for one, other in zip(trained.net.parameters(), by_hand.parameters(), strict=True):
        assert other.grad is not None
        # Nesterov's first step goes 1 + momentum times as far.
        assert torch.allclose(one.detach(), other.detach() - 0.1 * 1.9 * other.grad, atol=1e-5)


def test_weighted_classes_count_alike() -> None:
    """With `weights`, ten images of one class and forty of another pull alike: the loss is the mean of the classes' means."""
    labels = [0] * 10 + [1] * 40
    data = dataclasses.replace(dataset(classes=2), train=split(50, 1, labels=labels))
    recipe = Recipe(
        epochs=1,
        batch_size=50,
        lr=1e-12,
        label_smoothing=0.0,
        balance="weights",
        augment=NONE,
        ema=0.0,
        weight_decay=0.0,
    )
    model = Deployed(net(data, dropout=0.0).train(), data.preprocess)
    logits = model.logits(torch.from_numpy(data.train.pixels)).detach().double().numpy()
    losses = -special.log_softmax(logits, axis=1)[np.arange(50), labels]
    expected = (losses[:10].mean() + losses[10:].mean()) / 2
    training = Training(net(data, dropout=0.0), data, recipe)
    (batch,) = training.batches.epoch(1)
    assert training._step(batch) / training._weight_of(batch) == pytest.approx(expected, rel=1e-5)


def test_the_strongest_augmentation_trains() -> None:
    """All parts at once, on batches of odd size, still teach the greys."""
    data = dataset(train=45)
    parts = Augment(shift=0.1, turn=15, zoom=0.1, mirror=True, light=0.1, cutout=0.3, mixup=0.2)
    trained, _ = _fit(data, Recipe(epochs=40, batch_size=15, lr=0.01, augment=parts))
    answers = predict_logits(Deployed(trained.net, data.preprocess), data.test).argmax(axis=1)
    assert (answers == data.test.labels).mean() > 0.8


def test_a_pupil_follows_its_teacher() -> None:
    """A net that hears a teacher of swapped labels more than the labels themselves comes to answer as the teacher does."""
    data = dataset(train=96)
    swapped = dataclasses.replace(
        data, **{name: dataclasses.replace(getattr(data, name), labels=2 - getattr(data, name).labels) for name in ("train", "val")}
    )  # fmt: skip
    recipe = Recipe(epochs=20, batch_size=16, lr=0.01, augment=NONE)
    teacher = Deployed(fit(net(data), swapped, recipe).net.requires_grad_(False), data.preprocess)
    before = weights(teacher)
    followed = predict_logits(teacher, data.test).argmax(axis=1)
    agreement = {}
    for weight in (0.0, 0.9):
        taught = msgspec.structs.replace(recipe, teacher_weight=weight)
        # The pupil is judged by the teacher's labels, or its best epoch would be its first.
        seen = dataclasses.replace(data, val=swapped.val if weight else data.val)
        trained = Training(net(data, seed=1), seen, taught, teacher=teacher).run()
        answers = predict_logits(Deployed(trained.net, data.preprocess), data.test).argmax(axis=1)
        agreement[weight] = float((answers == followed).mean())
    assert agreement[0.9] > 0.9
    assert agreement[0.0] < 0.5
    assert equal(weights(teacher), before)


def test_mixed_precision_trains_on_the_cpu_too() -> None:
    """In bfloat16 the loss is close to that of float32 and the weights stay float32."""
    data = dataset()
    trained, _ = _fit(data, msgspec.structs.replace(SHORT, amp=True))
    plain, _ = _fit(data, SHORT)
    assert all(parameter.dtype == torch.float32 for parameter in trained.net.parameters())
    assert not Training(net(data), data, msgspec.structs.replace(SHORT, amp=True)).scaler.is_enabled()
    losses = [[row.loss for row in one.history] for one in (trained, plain)]
    assert losses[0] != losses[1]
    assert np.allclose(*losses, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, False])
def test_training_on_cuda_agrees_with_the_cpu(amp: bool | None) -> None:
    """On a GPU, in mixed precision or not, the losses are those of the CPU but for rounding, and a net is learnt."""
    data = dataset(train=96)
    recipe = Recipe(epochs=8, batch_size=16, augment=LEVELS["strong"], balance="weights", amp=amp)
    teacher = Deployed(net(data, seed=3).eval(), data.preprocess)
    trained = Training(net(data, dropout=0.0), data, recipe, "cuda:0", teacher=teacher.to("cuda:0"))
    found = trained.run()
    assert trained.scaler.is_enabled() is (amp is None)
    here = Training(net(data, dropout=0.0), data, recipe, teacher=teacher.to("cpu")).run()
    assert np.allclose([row.loss for row in found.history], [row.loss for row in here.history], rtol=0.05)
    assert next(found.net.parameters()).device.type == "cuda"
