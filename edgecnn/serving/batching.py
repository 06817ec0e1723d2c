"""One thread that runs the model: requests that wait together are run together, and each gets its own rows back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np

from edgecnn.backends.base import Array, Tensors

Run = Callable[[Array], Tensors]


@dataclass(frozen=True)
class Outcome:
    """A request's outputs, its rows of each; and how many seconds it waited and the run took of which it was part."""

    outputs: Tensors
    waited: float
    computed: float
    rows: int  # of the whole run


@dataclass(eq=False)
class Work:
    """A request's rows, uint8 (N, H, W, C), and the answer to come; `done` is called once, when nothing holds it any more."""

    answer: asyncio.Future[Outcome]
    done: Callable[[], None]
    rows: Array | None = None
    since: float = 0.0


@dataclass
class Batcher:
    """Takes work from any thread and answers it on the event loop's.

    At most `max_batch` rows are run together; a run waits `max_delay` seconds for them, so with 0 it takes what is
    there. `ran` is told on the loop of each run: its rows and requests, and their seconds of waiting and computing.
    """

    run: Run
    max_batch: int
    max_delay: float
    ran: Callable[[int, list[float], float], None]
    running_since: float | None = None  # the start of the run that is going on
    _waiting: SimpleQueue[Work | None] = field(default_factory=SimpleQueue)
    _next: Work | None = None  # taken from the queue, and too large for the batch that was being gathered
    _thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        """Hand work over, from any thread; how much may wait is for the caller to bound."""
        work.since = time.perf_counter()
        self._waiting.put(work)

    def close(self, seconds: float) -> None:
        """Answer what waits and end the thread, or leave it behind when it takes longer."""
        self._waiting.put(None)
        if self._thread:
            self._thread.join(seconds)

    def depth(self) -> int:
        """Tell how many requests wait."""
        return self._waiting.qsize()

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def _work(self) -> None:
        while work := self._next or self._waiting.get():
            self._next = None
            self._answer(list(self._gather(work)))

    def _gather(self, first: Work) -> Iterator[Work]:
        """Give the first and what fits beside it."""
        rows, until = _size(first), time.perf_counter() + self.max_delay
        yield first
        while rows < self.max_batch:
            try:
                wait = until - time.perf_counter() if self.max_delay else 0.0
                work = self._waiting.get(timeout=wait) if wait > 0 else self._waiting.get_nowait()
            except Empty:
                return
            if work is None:  # the end: for the loop above to see
                self._waiting.put(None)
                return
            rows += _size(work)
            if rows > self.max_batch:
                self._next = work
                return
            yield work

    def _answer(self, batch: list[Work]) -> None:
        """Run a batch and send every answer to the loop; work that nobody waits for any more is left out."""
        start = self.running_since = time.perf_counter()
        wanted = [work for work in batch if not work.answer.done()]
        result: Tensors | BaseException
        try:
            result = self._compute(wanted)
        except Exception as error:  # one request's failure must not end the thread that answers all
            result = error
        took, self.running_since = time.perf_counter() - start, None
        try:
            batch[0].answer.get_loop().call_soon_threadsafe(self._deliver, batch, wanted, result, start, took)
        except RuntimeError:  # the loop is closed: nobody is left to answer
            return

    def _compute(self, wanted: list[Work]) -> Tensors:
        parts = [work.rows for work in wanted if work.rows is not None]
        if not parts:
            return {}
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(rows) <= self.max_batch:
            return self.run(rows)
        runs = []
        for start in range(0, len(rows), self.max_batch):
            if all(work.answer.done() for work in wanted):  # given up meanwhile: the others need not wait for the rest
                raise TimeoutError("nobody waits for this run any more")
            runs.append(self.run(rows[start : start + self.max_batch]))
        return {name: np.concatenate([outputs[name] for outputs in runs]) for name in runs[0]}

    def _deliver(
        self, batch: list[Work], wanted: list[Work], result: Tensors | BaseException, start: float, took: float
    ) -> None:
        offset, total = 0, sum(map(_size, wanted))
        for work in wanted:
            size = _size(work)
            if work.answer.done():  # given up while it was computed
                pass
            elif isinstance(result, BaseException):
                work.answer.set_exception(result)
            else:
                own = {name: array[offset : offset + size] for name, array in result.items()}
                work.answer.set_result(Outcome(own, start - work.since, took, total))
            offset += size
        for work in batch:
            work.done()
        if wanted and not isinstance(result, BaseException):
            self.ran(offset, [start - work.since for work in wanted], took)


def first_unsteady(run: Run, pixels: Array, largest: int) -> int | None:
    """Return the smallest batch, from 2 to `largest` rows, whose answers are not those of single rows bit for bit.

    A runtime may choose other kernels for other batches, and those may sum in another order. Which it chooses depends
    on the shape alone, so one run of each shape shows it.

    Args:
        run: the model.
        pixels: real images, uint8 (N, H, W, C).
        largest: the largest batch to try.
    """
    single = [run(pixels[index : index + 1]) for index in range(len(pixels))]
    for size in range(2, largest + 1):
        order = np.arange(size) % len(pixels)
        together = run(pixels[order])
        for name, array in together.items():
            alone = np.concatenate([single[index][name] for index in order])
            if array.shape != alone.shape or array.tobytes() != alone.tobytes():
                return size
    return None


def _size(work: Work) -> int:
    return 0 if work.rows is None else len(work.rows)
