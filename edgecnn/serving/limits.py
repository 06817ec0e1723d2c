"""What one server takes at most: bytes, requests, seconds, connections. What is over a limit is refused, not waited for."""

from __future__ import annotations

from dataclasses import dataclass

from edgecnn.errors import EdgecnnError, UsageError

DEFAULT_BATCH = 8


@dataclass(frozen=True)
class Limits:
    """All limits of a server; sizes in bytes, times in seconds.

    `body`: one request's body, after decompression; `bodies`: all bodies held at one time; `values`: numbers in one answer. `queue`: requests that are
    being decoded, waiting or computed. `max_batch`: rows that one run of the model takes together, None for DEFAULT_BATCH
    or one where that would change answers; `max_delay`: how long a run waits for them. `connections`: at most so many are open; where one more comes, the one that has been
    idle for longest is closed. `header`: from a request's first byte to the end of its header; `idle`: between two
    requests; `receive`: a body; `answer`: from there to the answer; `stop`: for the requests in flight at the end.
    """

    body: int = 16 << 20
    bodies: int = 256 << 20
    values: int = 1 << 20
    queue: int = 256
    max_batch: int | None = None
    max_delay: float = 0.0
    connections: int = 1000
    header: float = 10.0
    idle: float = 75.0
    receive: float = 30.0
    answer: float = 30.0
    stop: float = 10.0

    def __post_init__(self) -> None:
        """Refuse limits with which no request could be answered."""
        counts = (self.body, self.queue, self.max_batch or 1, self.connections, self.values)
        times = (self.header, self.idle, self.receive, self.answer, self.stop)
        if min(counts) < 1 or min(times) <= 0 or self.max_delay < 0:
            raise UsageError("a server's limits must be positive")
        if self.bodies < self.body:
            raise UsageError(f"one body may have {self.body} bytes, and all together {self.bodies}; raise the latter")


class RefusedError(EdgecnnError):
    """A request that is not answered: the HTTP status, and the reason as the client is told it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
