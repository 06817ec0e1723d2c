"""The front's latencies measured again, all at one time: those of the trials are from different moments of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from edgecnn import host
from edgecnn.backends.base import Array, Session, SessionOptions, Tensors, open_session
from edgecnn.bench.latency import measure_latency
from edgecnn.bench.trust import judge_trust
from edgecnn.search.result import Together
from edgecnn.spec import Artifact, BackendRef, TensorSpec


@contextmanager
def open_files(files: Mapping[int, Path]) -> Iterator[dict[int, Session]]:
    """Load each trial's int8 file on one thread; once loaded, the files may go.

    Raises:
        BackendError: one of them cannot be loaded.
    """
    with ExitStack() as stack:
        yield {
            number: stack.enter_context(
                open_session(
                    BackendRef(backend="onnxruntime"),
                    Artifact(name="int8", format="onnx", path=path, precision="int8"),
                    SessionOptions(threads=1),
                )
            )
            for number, path in files.items()
        }


def measure_together(sessions: Mapping[int, Session], seconds: float) -> tuple[dict[int, Together], tuple[str, ...]]:
    """Time `seconds` of calls for each trial's session, in short rounds that take turns: so they compare.

    Each sees one image of noise of its own size: what an image shows makes no difference to a network's time.

    Returns:
        The latencies by trial, and the reasons not to trust them; none is trust.
    """
    if not sessions:
        return {}, ()
    fed = {str(number): _Fed.with_noise(session) for number, session in sessions.items()}
    machine, busy, before = host.fingerprint(), host.busy_cores(), host.load()
    found = measure_latency(fed, {"": np.zeros(1)}, seconds)
    reasons = judge_trust(machine, before, host.load(), found.values(), busy).reasons
    return {
        int(name): Together(latency_us=one.p50_us, spread=one.round_spread, calls=one.n) for name, one in found.items()
    }, reasons


@dataclass(frozen=True)
class _Fed:
    """A session that is run on its own image, whatever it is given: nets of different sizes in one measurement."""

    session: Session
    feeds: Mapping[str, Array]

    @classmethod
    def with_noise(cls, session: Session) -> _Fed:
        rng = np.random.default_rng(0)
        return cls(session, {one.name: rng.integers(0, 256, (1, *one.shape[1:]), np.uint8) for one in session.inputs})  # type: ignore[arg-type]  # only the batch has no size

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs

    @property
    def device(self) -> str:
        return self.session.device

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        return self.session.run(self.feeds)

    def __enter__(self) -> _Fed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Leave the session to whoever opened it."""
