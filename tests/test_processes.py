"""Several processes train one network together: the same sums, the same statistics, the same weights, and one voice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from greys import dataset, net, one_thread  # noqa: F401 -- the fixture is for every test here
from torch import nn

from edgecnn import cli
from edgecnn.errors import LostProcessError, TrainingError, UsageError
from edgecnn.training import processes as module
from edgecnn.training.augment import Augment
from edgecnn.training.loop import Trained, Training
from edgecnn.training.processes import ALONE, Processes, SharedNorm, join_processes, share_norms
from edgecnn.training.recipe import Recipe


class Together:
    """Adds tensors up over threads that stand for processes."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=30)
        self.given: list[torch.Tensor | None] = [None] * count

    def sum(self, rank: int, values: torch.Tensor) -> torch.Tensor:
        self.given[rank] = values.detach().clone()
        self.barrier.wait()
        total = torch.stack([part for part in self.given if part is not None]).sum(0)
        self.barrier.wait()
        return values.detach().copy_(total)


def in_threads(count: int, work: Callable[[Processes], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run the work once for each process, in threads, and return what they came to."""
    together, found = Together(count), [None] * count
    monkeypatch.setattr(Processes, "sum", lambda self, values: together.sum(self.rank, values))

    def one(rank: int) -> None:
        try:
            found[rank] = work(Processes(rank, count))
        except BaseException:
            together.barrier.abort()
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 10, 31, 32])
def test_shares_partition_and_keep_pairs(total: int, count: int) -> None:
    """The parts follow each other, begin at even numbers, cover everything, and differ by at most one pair."""
    parts = [Processes(rank, count).share(total) for rank in range(count)]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(total))
    assert all(part.start % 2 == 0 for part in parts if part.start < total)
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 3


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sizes", [(4, 4), (6, 1), (3, 4, 2)])
def test_shared_norms_are_torchs_of_the_whole_batch(
    sizes: tuple[int, ...], affine: bool, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients and running statistics over uneven parts are those of one batch norm, in float64, over steps."""
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randn(sum(sizes), 3, 4, 5, dtype=torch.float64, generator=rng) * 2 + 7 for _ in range(3)]
    pulls = torch.randn(sum(sizes), 3, 4, 5, dtype=torch.float64, generator=rng)
    expected = normalised(nn.BatchNorm2d(3, momentum=momentum, affine=affine), batches, pulls)
    edges = np.cumsum([0, *sizes])

    def work(processes: Processes) -> tuple[Any, ...]:
        inner = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum, affine=affine))
        share_norms(inner, processes)
        assert isinstance(inner[0], SharedNorm)
        where = slice(edges[processes.rank], edges[processes.rank + 1])
        return normalised(inner[0], [batch[where] for batch in batches], pulls[where])

    found = in_threads(len(sizes), work, monkeypatch)
    for index in range(2):  # outputs, gradients of the input
        assert torch.allclose(torch.cat([one[index] for one in found]), expected[index], rtol=1e-9, atol=1e-10)
    for name, value in expected[2].items():  # of the parameters: the sum of all
        assert torch.allclose(sum(one[2][name] for one in found), value, rtol=1e-9, atol=1e-10), name
    for one in found:
        for name, value in expected[3].items():
            assert torch.allclose(one[3][name], value, rtol=1e-10), name
        assert torch.allclose(one[4], expected[4], rtol=1e-9, atol=1e-10)


def normalised(norm: nn.BatchNorm2d, batches: list[torch.Tensor], pulls: torch.Tensor) -> tuple[Any, ...]:
    """Train on the batches; return the last output and gradients, the buffers, and an answer in evaluation."""
    norm.double().train()
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.5, -2.0]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    for batch in batches:
        norm.zero_grad()
        x = batch.clone().requires_grad_()
        y = norm(x)
        (y * pulls).sum().backward()
    probe = norm.eval()(torch.full((1, 3, 4, 5), 3.0, dtype=torch.float64)).detach()
    gradients = {name: parameter.grad.clone() for name, parameter in norm.named_parameters()}  # type: ignore[union-attr]
    return y.detach(), x.grad, gradients, dict(norm.named_buffers()), probe


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_half_precision_are_float32(memory: torch.memory_format) -> None:
    """Of bfloat16 planes far from zero, mean and variance are those of float64, not what bfloat16 can hold of them."""
    x = (torch.randn(64, 4, 9, 9, generator=torch.Generator().manual_seed(1)) * 3 + 50).bfloat16()
    norm = SharedNorm(4, momentum=1.0)
    norm(x.contiguous(memory_format=memory))
    exact = x.double()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean.double(), exact.mean(dim=(0, 2, 3)), rtol=1e-5)
    assert torch.allclose(norm.running_var.double(), exact.var(dim=(0, 2, 3)), rtol=1e-3)


def test_norms_keep_their_parameters_when_they_are_shared() -> None:
    """The optimizer's parameters, the state's names and the mode stay what they were, in nested modules too."""
    made = net(dataset(), widths=(4, 6)).train()
    before, names = [id(parameter) for parameter in made.parameters()], list(made.state_dict())
    share_norms(made, Processes(0, 2))
    assert [id(parameter) for parameter in made.parameters()] == before
    assert list(made.state_dict()) == names
    norms = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(type(part) is SharedNorm and part.training for part in norms)


@pytest.mark.parametrize("ema", [0.3, 0.0])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_train_as_one(count: int, ema: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With strong augmentation, weights of classes and odd batches, several train to one's weights, but for rounding."""
    parts = Augment(turn=15, light=0.3, cutout=0.3, mixup=0.4)
    data, recipe = dataset(train=45), Recipe(epochs=2, batch_size=15, augment=parts, balance="weights", ema=ema)
    alone = Training(net(data, dropout=0.0), data, recipe).run()
    nets = [net(data, dropout=0.0) for _ in range(count)]
    found: list[Trained] = in_threads(
        count, lambda processes: Training(nets[processes.rank], data, recipe, "cpu", processes).run(), monkeypatch
    )
    for one in found:
        assert [row.val_accuracy for row in one.history] == [row.val_accuracy for row in alone.history]
        assert np.allclose([row.loss for row in one.history], [row.loss for row in alone.history], rtol=1e-4)
        assert np.allclose([row.val_loss for row in one.history], [row.val_loss for row in alone.history], rtol=1e-3)
        for name, value in alone.net.state_dict().items():
            assert torch.allclose(one.net.state_dict()[name], value, rtol=1e-2, atol=1e-4), name
        for name, value in found[0].net.state_dict().items():  # among each other there is no rounding
            assert torch.equal(one.net.state_dict()[name], value), name


def test_all_take_the_value_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that processes might compute differently becomes the first one's everywhere."""
    assert ALONE.of_first(0.25) == 0.25
    assert in_threads(3, lambda processes: processes.of_first(0.5 + processes.rank), monkeypatch) == [0.5] * 3


def test_more_processes_than_devices_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA devices are fewer than processes, that is one line and no crash."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes need 2 CUDA devices, and torch sees 1"):
        join_processes("cuda:0")


def test_processes_that_cannot_join_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun's other variables the error is one line that names it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(TrainingError, match=r"2 processes could not join .*; start them with torchrun") as caught:
            join_processes("cpu")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "\n" not in str(caught.value)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is joined where nothing was started."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes("cuda:3") == (ALONE, "cuda:3")


def test_a_lost_process_is_said_without_torchs_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gloo throws becomes one line, without the place in C++ where it was thrown."""

    def broken(values: torch.Tensor) -> None:
        raise RuntimeError("[/a/b/pair.cc:537] Read error [127.0.0.1]:4: Connection reset by peer. This may\nbe")

    monkeypatch.setattr(module.distributed, "all_reduce", broken)
    with pytest.raises(LostProcessError) as caught:
        Processes(1, 2).sum(torch.zeros(1))
    said = "process 1 of 2 lost another one (Read error [127.0.0.1]:4: Connection reset by peer);"
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("rank", "error", "spoken"),
    [("0", UsageError("x"), True), ("1", UsageError("x"), False), ("1", LostProcessError("x"), True)],
)
def test_the_first_process_speaks_for_all(
    rank: str, error: UsageError, spoken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an error that all processes meet, the first prints its line; of a lost one, whoever is left."""
    waited: list[float] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=waited.append))
    with pytest.raises(cli._Failure) as caught, cli._one_line():
        raise error
    caught.value.show()
    assert capsys.readouterr().err == ("edgecnn: x\n" if spoken else "")
    assert bool(waited) is not spoken
