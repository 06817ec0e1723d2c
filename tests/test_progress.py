"""What a training says where nobody watches a bar: often enough to be seen alive, seldom enough to be read."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from edgecnn.cli import progress
from edgecnn.cli.progress import training_progress
from edgecnn.training.loop import Epoch


def told(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], first: int = 1
) -> list[tuple[int, int]]:
    """Let epochs take so long, on a made-up clock, and return the numbers and seconds left of those that got a line."""
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    total = first - 1 + len(seconds)
    with training_progress(total) as on_epoch:
        for number, one in enumerate(seconds, first):
            clock.now += one
            on_epoch(Epoch(number=number, loss=1, lr=1, val_loss=1, val_accuracy=0.5, seconds=one, best=True))
    captured = capsys.readouterr()
    assert captured.out == ""
    pattern = rf"epoch (\d+)/{total}  loss 1\.0000  validation 50\.00%  (\d+) s left"
    found = [re.fullmatch(pattern, line) for line in captured.err.splitlines()]
    return [(int(match[1]), int(match[2])) for match in found if match is not None]


def test_long_epochs_get_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an epoch takes two seconds or more, each says how it went and how long is left."""
    assert told([2.0] * 30, monkeypatch, capsys) == [(number, 60 - 2 * number) for number in range(1, 31)]


def test_short_epochs_get_every_tenth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where epochs take no time, there are ten lines, the last epoch's among them; of seven epochs, each."""
    assert [number for number, _ in told([0.01] * 80, monkeypatch, capsys)] == list(range(8, 81, 8))
    assert [number for number, _ in told([0.01] * 7, monkeypatch, capsys)] == list(range(1, 8))
    assert told([0.01] * 25, monkeypatch, capsys)[-1] == (25, 0)


def test_nothing_is_silent_for_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Epochs of 0.7 seconds get a line at least every third time, and one that suddenly takes long gets its own."""
    numbers = [number for number, _ in told([0.7] * 100, monkeypatch, capsys)]
    assert max(after - before for before, after in zip([0, *numbers], numbers, strict=False)) == 3
    assert set(range(10, 101, 10)) <= set(numbers)
    assert [number for number, _ in told([0.01] * 14 + [30] + [0.01] * 85, monkeypatch, capsys)][:3] == [10, 15, 20]


def test_time_left_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a training goes on, the epochs before count neither as done nor as time."""
    assert told([3.0] * 4, monkeypatch, capsys, first=97) == [(97, 9), (98, 6), (99, 3), (100, 0)]
