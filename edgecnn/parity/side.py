"""One side of a parity check while it runs: opened, fed a batch at a time, and held to what it must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from edgecnn import host
from edgecnn.backends.base import Array, CheckedSession, SessionOptions, Tensors
from edgecnn.errors import BackendError, BundleError, CheckpointError, DataError
from edgecnn.host import Host
from edgecnn.parity.computation import find_fault
from edgecnn.parity.recording import EXPORTED, SideArrays, SideRecord
from edgecnn.parity.running import join, run_batch
from edgecnn.parity.subject import LARGEST_ANSWER, Subject
from edgecnn.spec import Artifact

LARGEST = 1 << 28  # values of all answers of one side
AS_REFERENCE = " as reference"  # ends the name of a reference that is a candidate too
_FAILURES = (BackendError, BundleError, CheckpointError)


@dataclass
class Side:
    """One side: `session` answers, `parts` are what came out so far, `error` is why it failed.

    `file` is what it runs, None for the model's own graph in float64. `required` is the reference, whose failure is an error.
    """

    ref: str
    artifact: str
    precision: str
    device: str
    runtime: str
    open: Callable[[SessionOptions], CheckedSession]
    file: Artifact | None = None
    required: bool = False
    recorded_here: bool = False
    session: CheckedSession | None = None
    parts: list[Tensors] = field(default_factory=list)
    error: str | None = None
    arrays: SideArrays = field(default_factory=SideArrays)
    recorded_from: str = EXPORTED
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether it computes in less than float32."""
        return self.precision not in ("fp32", "fp64")

    @property
    def running(self) -> CheckedSession:
        """Its session.

        Raises:
            BackendError: it was not opened.
        """
        if self.session is None:
            raise BackendError(f"{self.ref} was not opened")
        return self.session

    def attempt(self, work: Callable[..., None], *arguments: object) -> None:
        """Do something that may fail, unless something did before: of a candidate that is its answer.

        Raises:
            EdgecnnError: it is the reference.
        """
        if self.error is not None:
            return
        try:
            work(*arguments)
        except _FAILURES as error:
            if self.required:
                raise type(error)(f"{self.ref.removesuffix(AS_REFERENCE)}, the reference: {error}") from error
            self.error = str(error)
            self.parts = []

    def start(self, subject: Subject, stack: ExitStack) -> None:
        """Open it until the stack is closed, and hold it to the subject's inputs and outputs.

        A bundle's reference is held to what it gives, for a checkpoint may give more than the manifest states.

        Raises:
            BackendError: it does not load, or has other inputs or outputs.
        """
        session = self.open(SessionOptions())
        stack.enter_context(session)
        if not self.required or (subject.bundle is None and self.file is not None):
            subject.check(session)
        self.session = session

    def feed(self, feeds: Tensors, n: int, subject: Subject) -> None:
        """Run a batch of the `n` samples and keep what comes out.

        Raises:
            BackendError: it failed, or the answer is missing.
            DataError: the answers of all samples would be too large to keep.
        """
        outputs = run_batch(self.running, feeds)
        answer = outputs.get(subject.answer)
        if answer is None:
            raise BackendError(f"output {subject.answer!r} is missing; it has {', '.join(sorted(outputs))}")
        values = answer.size // len(answer)
        if values > LARGEST_ANSWER or sum(array.size // len(array) for array in outputs.values()) * n > LARGEST:
            raise DataError(
                f"{subject.name}: gives {values} values a sample, too many to keep for {n} samples; give fewer samples, "
                f"and an answer of at most {LARGEST_ANSWER} values"
            )
        self.parts.append({name: np.array(array) for name, array in outputs.items()})

    def finish(self, subject: Subject, n: int) -> None:
        """Join what came out, the answer as rows (n, values).

        Raises:
            BackendError: it is the reference, and its answers are unfit for comparison; a candidate's the judge will tell.
        """
        outputs = join(self.parts)
        self.parts = []
        outputs[subject.answer] = outputs[subject.answer].reshape(n, -1)
        fault = fault_of(outputs, subject.bundle is not None)
        if fault and self.required:
            raise BackendError(fault)
        self.arrays = SideArrays(answers=outputs)

    def record(self) -> SideRecord:
        """Say what ran where; a session on another machine brings that machine's fingerprint."""
        there: Host | None = getattr(self.session.inner, "host", None) if self.session else None
        return SideRecord(
            ref=self.ref,
            artifact=self.artifact,
            precision=self.precision,
            quantized=self.quantized,
            sha256=self.file.sha256 if self.file else None,
            device=self.device,
            runtime=self.runtime if there is None else _runtime_of(there),
            threads=host.usable_threads() if there is None else there.usable_threads,
            recorded_here=self.recorded_here,
            error=self.error,
            recorded_from=self.recorded_from,
            unsteady=self.failed,
        )


def _runtime_of(machine: Host) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items() if "onnxruntime" in name)
    return f"{versions or 'an unknown runtime'} on {machine.cpu}"


def fault_of(outputs: Mapping[str, Array], softmaxed: bool) -> str | None:
    """Say what makes outputs unfit for comparison; in a bundle's, `probabilities` are the softmax of `logits`."""
    if softmaxed:
        return find_fault(outputs)
    return next((fault for name, array in outputs.items() if (fault := find_fault({name: array}))), None)
