"""Localize a difference: from a report to the first block at fault of each float or quantized ONNX candidate."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgecnn.errors import EdgecnnError
from edgecnn.parity.judge import Cell, ParityReport
from edgecnn.parity.samples import Samples, spread
from edgecnn.parity.subject import Subject, load_model
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import BackendRef

if TYPE_CHECKING:
    from edgecnn.parity.localize import Localization, Side

_IMAGES = 16


def locate(
    subject: Subject,
    reference: BackendRef | None,
    samples: Samples,
    report: ParityReport,
    say: Callable[[str], None] = lambda text: None,
) -> list[Localization]:
    """Look into every candidate, for a fault may pass both questions; what cannot be looked into is said.

    The reference is a bundle's checkpoint or the reference's ONNX file, in float64, and an ONNX model's own graph.
    """
    from edgecnn.parity.localize import localize
    from edgecnn.parity.localize.cut import open_with

    found: list[Localization] = []
    for cell in report.cells:
        ref = BackendRef.parse(cell.candidate)
        try:
            artifact = subject.artifact(ref)
            if artifact.format != "onnx":
                say(f"edgecnn: {cell.candidate} cannot be localized: it is no ONNX file")
                continue
            feeds = next(samples.batches(_IMAGES, spread(samples.record.n, _IMAGES, samples.batch)))
            side = _side(subject, reference)
            found.append(
                localize(
                    side,
                    load_model(artifact),
                    feeds,
                    open_with(ref),
                    tolerance=report.tolerance,
                    name=cell.candidate,
                    failed=_failed(cell),
                )
            )
        except EdgecnnError as error:
            say(f"edgecnn: {cell.candidate} cannot be localized: {error}")
    return found


def _failed(cell: Cell) -> bool:
    verdicts = (cell.computation.verdict, *(one.verdict for one in cell.steadiness))
    return Verdict.FAIL in verdicts or (cell.decisions is not None and cell.decisions.verdict is Verdict.FAIL)


def _side(subject: Subject, reference: BackendRef | None) -> Side:
    from edgecnn.parity.localize import OnnxSide

    if subject.bundle is not None and find_spec("torch") is not None:
        name = next(
            (name for name, one in subject.bundle.manifest.artifacts.items() if one.format == "safetensors"), None
        )
        if name is not None:
            from edgecnn.nets import Deployed
            from edgecnn.parity.localize.torch_side import TorchSide
            from edgecnn.training.checkpoint import parse_checkpoint

            artifact = subject.bundle.artifact(name)
            checkpoint = parse_checkpoint(artifact.read_bytes(), str(artifact.path))
            return TorchSide(Deployed(checkpoint.build(), checkpoint.preprocess))
    ref = reference if reference is not None and reference.backend != "torch" else BackendRef(backend="onnxruntime")
    return OnnxSide(load_model(subject.artifact(ref)), f"{subject.artifact(ref).name} in float64")
