"""Which sides a parity check has: the candidates, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecnn import registry
from edgecnn.backends.base import Array, CheckedSession, Tensors, open_session
from edgecnn.bundle import Bundle
from edgecnn.host import Host
from edgecnn.parity.recording import TORCH_FLOAT32
from edgecnn.parity.samples import Samples
from edgecnn.parity.side import AS_REFERENCE, Side
from edgecnn.parity.subject import Subject
from edgecnn.parity.truth import Exact
from edgecnn.spec import BackendRef, TensorSpec

GOLDENS, FLOAT64 = "goldens", "float64"
RECORDED_BY = ("onnxruntime", "cpu")  # what gave the answers recorded in the goldens


def plan_side(subject: Subject, ref: BackendRef, name: str, here: Host) -> Side:
    """Plan one side.

    Raises:
        UsageError: its artifact is not there.
        RegistryError: its backend is unknown, broken or not installed.
    """
    artifact = subject.artifact(ref)
    backend = registry.get(registry.BACKENDS, ref.backend)
    recorded_here = (
        subject.bundle is not None
        and subject.is_own(artifact)
        and (ref.backend, ref.device) == RECORDED_BY
        and _exported_here(subject.bundle, here)
    )
    return Side(
        ref=name,
        artifact=artifact.name,
        precision=artifact.precision,
        device=ref.device,
        runtime=_runtime(ref.backend, getattr(backend, "requires", {})),
        open=lambda options: open_session(ref, artifact, options, backend),
        file=artifact,
        recorded_here=recorded_here,
    )


def _runtime(name: str, requires: Mapping[str, str]) -> str:
    """Name the package that runs, with its version."""
    from importlib import metadata

    for module in requires:
        for package in (module, f"{module}-gpu", f"{module}-openvino"):
            try:
                return f"{package} {metadata.version(package)}"
            except metadata.PackageNotFoundError:
                continue
    return name


def _exported_here(bundle: Bundle, here: Host) -> bool:
    """Say whether this machine has the CPU and runtime of the exporting one, so that int8 must answer the same."""
    there = bundle.manifest.provenance.host
    same_cpu = (there.get("cpu"), tuple(there.get("features", ()))) == (here.cpu, here.features)
    recorded = there.get("packages")
    if not isinstance(recorded, dict):
        return False
    runtimes = ("onnxruntime", "onnxruntime-gpu")
    return same_cpu and all(recorded.get(name) == here.packages.get(name) for name in runtimes)


def plan_reference(
    subject: Subject,
    reference: BackendRef | None,
    exact: Exact | None,
    samples: Samples,
    taken: Sequence[str],
    here: Host,
) -> Side | None:
    """Plan the side that all others are paired with; None where that is the goldens, or the truth of a few samples."""
    if reference is not None:
        name = str(reference)
        side = plan_side(subject, reference, f"{name}{AS_REFERENCE}" if name in taken else name, here)
        side.required = True
        return side
    if exact is None or samples.record.labels is None or exact.unit != TORCH_FLOAT32:
        return None
    # Decisions are paired on every labelled sample, so that all need an answer, not only those of the truth.
    return Side(
        ref=FLOAT64,
        artifact="model",
        precision="fp64",
        device="cpu",
        runtime=exact.origin,
        open=lambda options: CheckedSession(_Graph(exact, subject)),
        required=True,
    )


class _Graph:
    """An exact graph as a session that gives the answer in float64."""

    device = "cpu"

    def __init__(self, exact: Exact, subject: Subject) -> None:
        self._exact, self._answer = exact, subject.answer
        self.inputs = subject.inputs
        self.outputs = (TensorSpec(name=subject.answer, shape=(None, None), dtype="float64"),)

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        return {self._answer: self._exact.answer(dict(feeds), "float64").astype(np.float64)}

    def __enter__(self) -> _Graph:
        return self

    def __exit__(self, *_: object) -> None:
        return None
