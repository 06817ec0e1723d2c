"""The batcher by itself, with models made of arithmetic: what runs together, what is left out, what each gets back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgecnn.errors import BackendError
from edgecnn.serving.batching import Batcher, Outcome, Work, first_unsteady

Array = npt.NDArray[Any]


def double(rows: Array) -> dict[str, Array]:
    return {"out": rows.astype(np.float32) * 2}


class Recorder:
    """A model that notes how many rows each run had, and holds the first run until it is let go."""

    def __init__(self, model: Callable[[Array], dict[str, Array]] = double) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.model = model

    def __call__(self, rows: Array) -> dict[str, Array]:
        assert self.go.wait(20)
        self.sizes.append(len(rows))
        return self.model(rows)


def drive(batcher: Batcher, work: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine with the batcher's thread beside it."""

    async def main() -> None:
        batcher.start()
        try:
            await asyncio.wait_for(work(), 20)
        finally:
            batcher.close(20)
        assert not batcher.alive

    asyncio.run(main())


def put(batcher: Batcher, rows: Array, done: Callable[[], None] = lambda: None) -> asyncio.Future[Outcome]:
    work = Work(asyncio.get_running_loop().create_future(), done, rows)
    batcher.put(work)
    return work.answer


def test_what_waits_is_run_together_up_to_the_largest() -> None:
    """While the first runs nine rows wait: they run as the order and the largest batch of four allow, each its own back."""
    model, told, closed = Recorder(), [], []
    batcher = Batcher(model, 4, 0.0, lambda rows, waited, took: told.append((rows, len(waited))))

    async def work() -> None:
        first = put(batcher, np.zeros((1, 2)))
        while batcher.depth():
            await asyncio.sleep(0.001)
        parts = [np.full((size, 2), size + 10 * number) for number, size in enumerate((1, 2, 3, 1, 2))]
        answers = [put(batcher, part, lambda: closed.append(1)) for part in parts]
        model.go.set()
        await first
        for part, answer in zip(parts, answers, strict=True):
            outcome = await answer
            assert np.array_equal(outcome.outputs["out"], part * 2)
            assert outcome.waited >= 0
            assert outcome.computed >= 0

    drive(batcher, work)
    assert model.sizes == [1, 3, 4, 2]
    assert told == [(1, 1), (3, 2), (4, 2), (2, 1)]
    assert len(closed) == 5


def test_a_request_larger_than_a_batch_is_run_in_pieces() -> None:
    """Ten rows with a largest batch of four run as four, four and two, and come back as one."""
    model = Recorder()
    model.go.set()
    batcher = Batcher(model, 4, 0.0, lambda *told: None)
    rows = np.arange(20).reshape(10, 2)

    async def work() -> None:
        outcome = await put(batcher, rows)
        assert np.array_equal(outcome.outputs["out"], rows * 2)
        assert outcome.rows == 10

    drive(batcher, work)
    assert model.sizes == [4, 4, 2]


def test_a_run_waits_for_others_as_long_as_it_may() -> None:
    """With a delay a lone request waits for a second one that comes later, and both run together."""
    model = Recorder()
    model.go.set()
    batcher = Batcher(model, 2, 10.0, lambda *told: None)

    async def work() -> None:
        first = put(batcher, np.zeros((1, 2)))
        await asyncio.sleep(0.05)
        assert not first.done()
        await asyncio.gather(first, put(batcher, np.ones((1, 2))))

    drive(batcher, work)
    assert model.sizes == [2]


def test_what_nobody_waits_for_is_not_computed() -> None:
    """A request that was given up while it waited is left out of the run, and its place is given back all the same."""
    model, closed = Recorder(), []
    batcher = Batcher(model, 4, 0.0, lambda *told: None)

    async def work() -> None:
        first = put(batcher, np.zeros((1, 2)))
        while batcher.depth():
            await asyncio.sleep(0.001)
        given_up = put(batcher, np.ones((2, 2)), lambda: closed.append("given up"))
        kept = put(batcher, np.full((1, 2), 7))
        given_up.cancel()
        model.go.set()
        await first
        assert np.array_equal((await kept).outputs["out"], np.full((1, 2), 14))

    drive(batcher, work)
    assert model.sizes == [1, 1]
    assert closed == ["given up"]


def test_a_failing_run_fails_its_own_requests_and_no_other() -> None:
    """An error of one run is raised where its answers are awaited; the thread goes on with the next."""

    def model(rows: Array) -> dict[str, Array]:
        if rows.max() > 1:
            raise BackendError("too bright")
        return double(rows)

    batcher = Batcher(model, 1, 0.0, lambda *told: None)

    async def work() -> None:
        bad, good = put(batcher, np.full((1, 2), 9)), put(batcher, np.ones((1, 2)))
        with pytest.raises(BackendError, match="too bright"):
            await bad
        assert np.array_equal((await good).outputs["out"], np.full((1, 2), 2))

    drive(batcher, work)


def test_what_waits_at_the_end_is_answered() -> None:
    """Closing lets the thread answer what was put before it."""
    model = Recorder()
    batcher = Batcher(model, 2, 0.0, lambda *told: None)

    async def main() -> list[Outcome]:
        batcher.start()
        answers = [put(batcher, np.full((1, 2), number)) for number in range(7)]
        model.go.set()
        await asyncio.get_running_loop().run_in_executor(None, batcher.close, 20)
        return await asyncio.wait_for(asyncio.gather(*answers), 20)

    for number, outcome in enumerate(asyncio.run(main())):
        assert np.array_equal(outcome.outputs["out"], np.full((1, 2), 2 * number))


def test_batches_that_change_answers_are_found() -> None:
    """A model whose last bit depends on the batch from five rows on is found at five, and a steady one never."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8)

    def unsteady(rows: Array) -> dict[str, Array]:
        answers = double(rows)["out"]
        return {"out": np.nextafter(answers, np.float32(np.inf)) if len(rows) >= 5 else answers}

    assert first_unsteady(unsteady, pixels, 8) == 5
    assert first_unsteady(unsteady, pixels, 4) is None
    assert first_unsteady(double, pixels, 8) is None
