"""The conformance suite against a backend of several inputs, good, and with one promise broken at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.errors import BackendError, ContractError, EdgecnnError
from edgecnn.spec import Artifact, TensorSpec
from edgecnn.testing import check_backend, make_feeds


def spec(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype)


class Adder:
    """Adds two inputs of one shape, the second twice, and counts bytes of a third; breaks one promise where told to."""

    name = "adder"
    formats = ("onnx",)

    def __init__(self, fault: str = "", batch: int | None = None) -> None:
        self.fault, self.batch = fault, batch
        self.concurrent = fault != "states nothing of threads"
        self.open = 0
        self.left: list[int] = []

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> AdderSession:
        artifact.read_bytes()
        if self.fault == "more than one thread" and options.threads != 1:
            raise BackendError("one thread only")
        if self.fault == "one session at a time" and self.open:
            raise BackendError("the device is busy")
        if options.dtype == "float64" and self.fault == "refuses float64":  # which it may
            raise BackendError("no float64 here")
        self.open += 1
        return AdderSession(self, options)


class AdderSession:
    device = "cpu"

    def __init__(self, backend: Adder, options: SessionOptions) -> None:
        batch, self.backend, self.options = backend.batch, backend, options
        self.inputs = (spec("a", batch, 4, None), spec("b", batch, 4, None), spec("c", batch, 3, dtype="uint8"))
        self.outputs = (spec("y", batch, 4, None), spec("z", batch, 1))
        if backend.fault == "a name twice":
            self.outputs = (*self.outputs, self.outputs[1])
        if backend.fault == "a batch in one output only":
            self.outputs = (self.outputs[0], spec("z", 3, 1))
        self.runs, self.closed = 0, False
        self.given: Mapping[str, Array] = {}
        self.free = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        fault = self.backend.fault
        if self.closed:
            raise RuntimeError("closed")
        self.runs += 1
        if fault in ("one place for all threads", "states nothing of threads"):
            self.given = feeds
            time.sleep(0.001)
            feeds = self.given
        if fault == "one thread at a time":
            if not self.free.acquire(blocking=False):
                raise RuntimeError("somebody else runs it")
            time.sleep(0.001)
            self.free.release()
        a, b, c = (feeds[name] for name in "abc")
        if fault == "inputs by their order":
            a, b = (array for name, array in feeds.items() if name != "c")
        if fault == "writes to its inputs" and c.flags.writeable:
            c[:] = c // 2
        if fault == "only writable inputs":
            c[:] = c
        if fault == "ignores strides" and not b.flags.c_contiguous:
            b = np.roll(b, 1)
        counts = c.view(np.int8) if fault == "signed bytes" else c
        z = counts.astype(np.float32).sum(axis=1, keepdims=True)
        y = a + 2 * b
        if fault == "answers change" and self.runs % 3 == 0:
            y = y + 0.1
        if fault == "threads change the answer" and self.options.threads == 2:
            y = y * 1.01
        if fault == "float64 changes the answer" and self.options.dtype == "float64":
            y = y * 1.01
        if fault == "shared between sessions" and self.backend.open > 1:
            y = y + 1
        return {"z": z, "y": y} if fault == "outputs in another order" else {"y": y, "z": z}

    def __enter__(self) -> AdderSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        self.backend.open -= 1
        if self.backend.fault == "leaves files open":
            self.backend.left.append(os.open(os.devnull, os.O_RDONLY))


FAULTS = {
    "more than one thread": "one thread only",
    "one session at a time": "busy",
    "a name twice": "each its own",
    "a batch in one output only": "in all outputs or in none",
    "inputs by their order": "whatever order its inputs are given in",
    "writes to its inputs": "'c'|is the same when it is run again",
    "only writable inputs": "read-only",
    "ignores strides": "not contiguous",
    "answers change": "the same when it is run again",
    "threads change the answer": "two threads",
    "float64 changes the answer": "float64",
    "one place for all threads": "while another thread runs the session",
    "one thread at a time": "several threads may run one session at once: .*somebody else runs it",
    "shared between sessions": "from a second session",
    "outputs in another order": "in the order stated",
    "leaves files open": "open files left behind",
}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"anything")
    return Artifact(name="fp32", format="onnx", path=path)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("fault", ["", "refuses float64", "states nothing of threads"])
def test_a_good_backend_of_several_inputs_passes(fault: str, batch: int | None, artifact: Artifact) -> None:
    """Three inputs, two outputs, a size that may vary and a batch that may not: all of it can be held to the contract."""
    backend = Adder(fault, batch)
    check_backend(backend, artifact)
    assert backend.open == 0


@pytest.mark.parametrize(("fault", "told"), FAULTS.items())
def test_each_broken_promise_is_told(fault: str, told: str, artifact: Artifact) -> None:
    """A backend that breaks one promise is caught, in one line that says which."""
    backend = Adder(fault)
    try:
        with pytest.raises(EdgecnnError, match=told) as caught:
            check_backend(backend, artifact)
    finally:
        for file in backend.left:
            os.close(file)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ContractError) or told in ("one thread only", "busy")


def test_bytes_are_drawn_from_their_whole_range() -> None:
    """Feeds of uint8 hold what a signed byte does not, of int8 none below zero, and free sizes are filled in."""
    feeds = make_feeds(
        (spec("u", None, 64, dtype="uint8"), spec("i", None, 64, dtype="int8"), spec("f", None, None)), 2
    )
    assert feeds["u"].max() > 127
    assert feeds["i"].min() >= 0
    assert {name: array.shape for name, array in feeds.items()} == {"u": (2, 64), "i": (2, 64), "f": (2, 32)}
