"""The recipe, the schedule, the loss, the average of the weights and the batches, each against numbers from elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from greys import dataset, split
from scipy import special, stats
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.training.augment import Augment
from edgecnn.training.average import Average, decay_of
from edgecnn.training.batches import Batches
from edgecnn.training.loss import class_weights, summed_loss
from edgecnn.training.processes import ALONE, Processes
from edgecnn.training.recipe import Recipe, is_mirrored
from edgecnn.training.schedule import rate


@pytest.mark.parametrize(
    ("images", "epochs", "batch"),
    [(10, 80, 10), (1078, 80, 32), (3999, 80, 32), (4000, 80, 128), (6000, 53, 128), (60_000, 8, 128)],
)
def test_the_recipe_follows_the_number_of_images(images: int, epochs: int, batch: int) -> None:
    """Few images get small batches and many epochs, many the reverse, and no batch exceeds the set."""
    found = Recipe().resolve(images)
    assert (found.epochs, found.batch_size) == (epochs, batch)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.004), ("sgd", 0.2)])
def test_what_the_recipe_states_is_kept(optimizer: Literal["adam", "sgd"], lr: float) -> None:
    """Resolving fills in what is None and leaves everything else, and doing it twice changes nothing."""
    assert Recipe(optimizer=optimizer).resolve(100).lr == lr
    stated = Recipe(
        epochs=3, batch_size=7, optimizer="sgd", schedule="cosine", warmup=0.0, lr=0.5, weight_decay=0.0,
        label_smoothing=0.2, augment=Augment(turn=0), ema=0.5, seed=9,
    )  # fmt: skip
    assert stated.resolve(100) == stated
    once = Recipe().resolve(500)
    assert once.resolve(500) == once


@pytest.mark.parametrize(
    ("labels", "channels", "expected"),
    [
        (("cat", "dog"), 3, True),
        (("cat", "dog"), 1, False),
        (("0", "1", "12"), 3, False),
        (("-1", "10"), 3, False),
        (("a", "b"), 3, False),
        (("cat", "b"), 3, False),
    ],
)
def test_only_colour_photographs_of_named_things_are_mirrored(
    labels: tuple[str, ...], channels: Literal[1, 3], expected: bool
) -> None:
    """Numbers, single letters and grey images may mean something else in a mirror."""
    data = dataset()
    preprocess = type(data.preprocess)(height=6, width=6, channels=channels)
    assert is_mirrored(dataclasses.replace(data, labels=labels, preprocess=preprocess)) is expected


@pytest.mark.parametrize("steps", [20, 37, 100])
@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5])
def test_the_schedule_is_one_cycle(steps: int, warmup: float) -> None:
    """Every step's rate is that of torch's OneCycleLR with the same shares."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=warmup)
    for step in range(steps):
        assert rate(step, steps, warmup) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.25, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 200])
def test_the_schedule_has_no_length_it_cannot_divide(steps: int, warmup: float) -> None:
    """For any number of steps the rates are positive, rise, then fall; without a warm-up the first is the peak."""
    rates = [rate(step, steps, warmup) for step in range(steps)]
    peak = rates.index(max(rates))
    assert all(0 < value <= 1 for value in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup == 0:
        assert rates[0] == 1
    if steps == 200:
        assert peak == max(0, round(warmup * steps) - 1)
        assert rates[-1] == pytest.approx(1 / 250_000, rel=1e-6)


def test_rare_classes_weigh_more_and_the_mean_stays_one() -> None:
    """A class's weight goes with the inverse of its count, as scikit-learn's `balanced`; one without images has a number."""
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [10, 30, 60])
    weights = class_weights(torch.from_numpy(labels), 3)
    assert np.allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)
    assert torch.isfinite(class_weights(torch.from_numpy(labels), 4)).all()


def _cross_entropy(
    logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], smoothing: float
) -> npt.NDArray[np.float64]:
    targets = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
    return -(targets * special.log_softmax(logits, axis=1)).sum(axis=1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_formula(mixed: bool, weighted: bool, taught: bool) -> None:
    """The sum is smoothed cross-entropy, mixed and weighted, and KL divergence to the teacher, as scipy computes them."""
    rng = np.random.default_rng(1)
    logits, teacher = rng.normal(0, 3, (6, 4)), rng.normal(0, 3, (6, 4))
    labels, partner = rng.integers(0, 4, 6), rng.integers(0, 4, 6)
    mix = rng.uniform(0.1, 0.9, 6) if mixed else np.ones(6)
    weights = np.array([0.5, 1, 2, 3]) if weighted else np.ones(4)
    recipe = Recipe(label_smoothing=0.1, teacher_weight=0.6, teacher_temperature=3.0)
    expected = mix * weights[labels] * _cross_entropy(logits, labels, 0.1)
    expected += (1 - mix) * weights[partner] * _cross_entropy(logits, partner, 0.1)
    if taught:
        one, other = special.softmax(teacher / 3, axis=1), special.softmax(logits / 3, axis=1)
        expected = 0.4 * expected + 0.6 * 9 * stats.entropy(one, other, axis=1)
    found = summed_loss(
        torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(partner), torch.from_numpy(mix),
        torch.from_numpy(weights) if weighted else None, torch.from_numpy(teacher) if taught else None, recipe,
    )  # fmt: skip
    assert float(found) == pytest.approx(expected.sum(), rel=1e-10)


def test_a_net_that_answers_as_its_teacher_has_nothing_to_follow() -> None:
    """Where the teacher alone counts, the loss of the same logits is nothing, and its gradient too."""
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    recipe, labels = Recipe(teacher_weight=1.0), torch.zeros(5, dtype=torch.int64)
    loss = summed_loss(logits, labels, labels, torch.ones(5), None, logits.detach(), recipe)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


def test_the_average_is_the_recursion() -> None:
    """Weights and batch norm statistics follow the recursion, short at first; the net itself is not touched."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).double()
    average = Average(net, 0.8)
    expected = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    rng = np.random.default_rng(0)
    for step in range(60):
        for tensor in (*net.parameters(), net[1].running_mean, net[1].running_var):  # type: ignore[has-type]
            assert isinstance(tensor, torch.Tensor)
            tensor.data.copy_(torch.from_numpy(rng.normal(size=tuple(tensor.shape))))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        average.update(step)
        keep = min(0.8, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name])
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value.numpy()
    for name, value in average.net.state_dict().items():
        assert np.allclose(value, expected[name], rtol=1e-12), name
    assert not average.net.training


@pytest.mark.parametrize(
    ("share", "steps", "expected"), [(0, 100, 0), (0.02, 1000, 0.95), (0.02, 40, 0), (0.5, 4, 0.5)]
)
def test_the_decay_averages_over_a_share_of_the_steps(share: float, steps: int, expected: float) -> None:
    """The decay of an average over n steps is 1 - 1/n; where n is less than one, there is none."""
    assert decay_of(share, steps) == pytest.approx(expected)
    assert Average(nn.Linear(1, 1), 0.0).decay == 0


def test_without_a_decay_the_average_is_the_net() -> None:
    """No copy is made where nothing is averaged, and an update changes nothing."""
    net = nn.Linear(2, 2)
    average = Average(net, 0.0)
    before = net.weight.detach().clone()
    average.update(0)
    assert average.net is net
    assert torch.equal(net.weight, before)


def _order(batches: list[Batches], epoch: int, start: int = 0) -> list[npt.NDArray[np.int64]]:
    """Give the images of each batch, all processes' parts put together; each image is told by its pixels."""
    parts = [list(one.epoch(epoch, start)) for one in batches]
    assert len({len(part) for part in parts}) == 1
    whole = []
    for same in zip(*parts, strict=True):
        assert len({batch.index for batch in same}) == 1
        assert [batch.where.start for batch in same[1:]] == [batch.where.stop for batch in same[:-1]]
        assert same[0].where.start == 0
        assert all(batch.where.start % 2 == 0 for batch in same)
        assert same[-1].where.stop == same[0].total == len(same[0].labels_of_all)
        images = np.concatenate([batch.pixels.numpy().reshape(len(batch.labels), -1) for batch in same])
        labels = np.concatenate([batch.labels.numpy() for batch in same])
        assert np.array_equal(labels, same[0].labels_of_all)
        whole.append(np.column_stack([labels, images]).astype(np.int64))
    return whole


@pytest.mark.parametrize(("count", "size"), [(48, 16), (50, 16), (49, 16), (33, 32), (7, 6), (61, 6)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_image_is_in_one_batch_of_an_epoch(processes: int, count: int, size: int) -> None:
    """Each image comes once an epoch, in another order each time; processes partition every batch at even numbers."""
    images = split(count, 1)
    recipe = Recipe(batch_size=size, seed=3)
    many = [Batches(images, recipe, Processes(rank, processes)) for rank in range(processes)]
    listed = np.column_stack([images.labels, images.pixels.reshape(count, -1)]).astype(np.int64)
    rows = {tuple(row) for row in listed.tolist()}
    assert len(rows) == count
    first, second = _order(many, 1), _order(many, 2)
    for epoch in (first, second):
        found = [tuple(row) for row in np.concatenate(epoch).tolist()]
        assert len(found) == count
        assert set(found) == rows
        assert max(map(len, epoch)) - min(map(len, epoch)) <= 1
        assert min(map(len, epoch)) > 1
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    alone = _order([Batches(images, recipe, ALONE)], 1)
    assert all(np.array_equal(one, other) for one, other in zip(first, alone, strict=True))
    other = _order([Batches(images, Recipe(batch_size=size, seed=4), ALONE)], 1)
    assert not np.array_equal(np.concatenate(alone), np.concatenate(other))


def test_an_epoch_can_be_gone_on_with() -> None:
    """From any batch on, an epoch gives the same batches as from its beginning."""
    batches = Batches(split(50, 1), Recipe(batch_size=8), ALONE)
    whole = _order([batches], 4)
    for start in range(len(whole) + 1):
        rest = _order([batches], 4, start)
        assert len(rest) == len(whole) - start
        assert all(np.array_equal(one, other) for one, other in zip(rest, whole[start:], strict=True))
    assert [batch.index for batch in batches.epoch(4, 3)] == list(range(3, batches.count))


def test_the_balanced_sampler_draws_classes_alike() -> None:
    """Of counts 5, 50 and 245 the sampler draws each class equally often, within what chance allows."""
    labels = np.repeat([0, 1, 2], [5, 50, 245])
    batches = Batches(split(300, 1, side=4, labels=labels.tolist()), Recipe(batch_size=100, balance="sampler"), ALONE)
    drawn = torch.cat([batch.labels for epoch in range(1, 11) for batch in batches.epoch(epoch)]).numpy()
    assert len(drawn) == 3000
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-3
    plain = Batches(split(300, 1, side=4, labels=labels.tolist()), Recipe(batch_size=100), ALONE)
    assert np.bincount(torch.cat([batch.labels for batch in plain.epoch(1)])).tolist() == [5, 50, 245]


@pytest.mark.parametrize(("count", "size", "processes"), [(10, 2, 2), (48, 4, 3), (6, 6, 4)])
def test_batches_too_small_for_the_processes_are_said(count: int, size: int, processes: int) -> None:
    """Where a process would get no image of a batch, that is one line with a size that would do."""
    with pytest.raises(UsageError, match=rf"too small for {processes} processes: use --batch-size {4 * processes} or"):
        Batches(split(count, 1), Recipe(batch_size=size), Processes(0, processes))
    Batches(split(50, 1), Recipe(batch_size=4 * processes), Processes(0, processes))
