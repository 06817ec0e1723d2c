"""One request's way through the server: admitted, prepared in a thread, run with others, answered in time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from aiohttp import web

from edgecnn.backends.base import Array, Tensors
from edgecnn.bundle import Bundle
from edgecnn.decoding import prepare
from edgecnn.errors import ContractError, UsageError
from edgecnn.host import usable_threads
from edgecnn.predict import Predictor
from edgecnn.serving.admission import Admission, Ticket, read_body
from edgecnn.serving.batching import Batcher, Outcome, Work, first_unsteady
from edgecnn.serving.limits import DEFAULT_BATCH, Limits, RefusedError
from edgecnn.serving.metrics import Metrics

Made = TypeVar("Made")


class Service:
    """A loaded model and all that one server counts.

    `notice` is one line for stderr, or None.

    Raises:
        UsageError: the model has several inputs, or a batch was asked for that changes answers.
    """

    def __init__(self, bundle: Bundle, predictor: Predictor, limits: Limits) -> None:
        if len(predictor.session.inputs) != 1:
            raise UsageError(f"{bundle.where}: a model of several inputs cannot be served")
        self.bundle, self.predictor, self.limits = bundle, predictor, limits
        self.stopping = False
        self.notice: str | None = None
        self._input = predictor.session.inputs[0]
        goldens = bundle.goldens()
        self.max_batch = self._steady_batch(goldens.pixels)
        prepare(goldens.encoded[0], bundle.manifest.preprocess)  # so that Pillow is loaded before somebody waits for it
        self.metrics = Metrics(bundle.manifest.name, str(predictor.ref))
        self.admission = Admission(limits)
        self.batcher = Batcher(self._run, self.max_batch, limits.max_delay, self._ran)
        self._threads = ThreadPoolExecutor(usable_threads(), "decode")
        self.metrics.watch("edgecnn_queue_requests", "Requests in flight.", lambda: self.admission.inside)
        self.metrics.watch("edgecnn_waiting_requests", "Requests that wait for the model.", self.batcher.depth)
        self.metrics.watch("edgecnn_body_bytes", "Bytes of bodies in memory.", lambda: self.admission.held)

    async def start(self, app: web.Application) -> None:
        """Start the threads."""
        asyncio.get_running_loop().set_default_executor(self._threads)
        self.batcher.start()

    async def stop(self, app: web.Application) -> None:
        """End the threads and release the model, which a run that never ends keeps."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.batcher.close(self.limits.stop)
        if not self.batcher.alive:
            self.predictor.__exit__(None, None, None)

    def ready(self) -> bool:
        """Say whether a request would be answered: the model's thread is there and does not hang."""
        since = self.batcher.running_since
        hangs = since is not None and time.perf_counter() - since > self.limits.answer
        return self.batcher.alive and not hangs and not self.stopping

    async def answer(
        self, request: web.Request, make: Callable[[bytes], tuple[Array, Made]], inline: int = 0
    ) -> tuple[Made, Outcome]:
        """Take a request through: its body, from it by `make` rows (N, H, W, C) and what else is made, and the model's answer.

        `make` is called in a thread, or at once for bodies of at most `inline` bytes.

        Raises:
            RefusedError: as `read_body` says; the queue is full (503), or the answer takes too long (504).
            EdgecnnError: what `make` raised, or the model.
        """
        start = time.perf_counter()
        ticket = Ticket(self.admission)
        try:
            body = await read_body(request, ticket)
            ticket.enter()
        except BaseException:
            ticket.close()
            raise
        self.metrics.stage("receive")(time.perf_counter() - start)
        return await self._through(ticket, functools.partial(make, body), len(body) <= inline)

    async def _through(
        self, ticket: Ticket, make: Callable[[], tuple[Array, Made]], inline: bool
    ) -> tuple[Made, Outcome]:
        """Prepare and run; from here on the ticket is closed when no thread holds the work any more, whoever gave it up."""
        loop = asyncio.get_running_loop()
        work = Work(loop.create_future(), ticket.close)
        made: list[Made] = []

        def failed(error: Exception) -> None:
            ticket.close()
            if not work.answer.done():
                work.answer.set_exception(error)

        def prepare() -> None:
            try:
                if not work.answer.done():
                    work.rows, extra = make()
                    made.append(extra)
            except Exception as error:  # raised where the answer is awaited
                loop.call_soon_threadsafe(failed, error)
            else:
                self.batcher.put(work)

        if inline:
            prepare()
        else:
            self._threads.submit(prepare)
        timer = loop.call_later(self.limits.answer, _expire, work.answer, self.limits.answer)
        try:
            outcome = await work.answer
        finally:
            timer.cancel()
        return made[0], outcome

    def _run(self, rows: Array) -> Tensors:
        outputs = self.predictor.session.run({self._input.name: rows})
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise ContractError(f"{self.predictor.ref}: outputs that are not finite; do not use this artifact here")
        return outputs

    def _ran(self, rows: int, waited: list[float], took: float) -> None:
        """Count a run; it is told of on the event loop's thread."""
        sums = self.metrics.sums
        sums.runs += 1
        sums.rows += rows
        sums.requests += len(waited)
        sums.waited_ns += int(1e9 * sum(waited))
        sums.computed_ns += int(1e9 * took)
        sums.last_ms = int(1000 * time.time())
        self.metrics.batch_rows.observe(rows)
        self.metrics.stage("compute")(took)
        for seconds in waited:
            self.metrics.stage("wait")(seconds)

    def _steady_batch(self, pixels: Array) -> int:
        """Choose how many rows run together: as asked for, and only if no answer changes by it."""
        asked = self.limits.max_batch
        if self._input.shape[0] is not None:
            if asked not in (None, 1):
                raise UsageError(
                    f"{self.predictor.ref} takes {self._input.shape[0]} image a run: --max-batch is 1 here"
                )
            return 1
        unsteady = first_unsteady(self._run, pixels, asked or DEFAULT_BATCH)
        if unsteady is None:
            return asked or DEFAULT_BATCH
        said = f"{self.predictor.ref}: {unsteady} images run together get other answers than each by itself here"
        if asked:
            raise UsageError(f"{said}; give --max-batch {unsteady - 1}")
        self.notice = f"{said}, so each is run by itself"
        return 1


def _expire(answer: asyncio.Future[Outcome], seconds: float) -> None:
    if not answer.done():
        answer.set_exception(RefusedError(504, f"no answer within {seconds:g} seconds"))
