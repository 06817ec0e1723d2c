"""Run reference and candidates of a bundle over the same images and ask every question of each: record, then judge."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from edgecnn.bundle import Bundle
from edgecnn.data.dataset import LabelledImages
from edgecnn.parity.judge import Cell, Decoding, ParityReport, judge
from edgecnn.parity.record import record
from edgecnn.parity.running import run_all
from edgecnn.parity.samples import Samples, golden_samples, labelled_samples
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef, Tolerance

__all__ = ["Cell", "Decoding", "ParityReport", "bundle_samples", "compare", "default_refs", "run_all"]


def default_refs(bundle: Bundle) -> tuple[BackendRef | None, list[BackendRef]]:
    """Choose torch as the reference where it is installed (None: the goldens), and every ONNX artifact as candidates."""
    formats = {name: record.format for name, record in bundle.manifest.artifacts.items()}
    has_torch = find_spec("torch") is not None and find_spec("safetensors") is not None
    reference = BackendRef(backend="torch") if has_torch and "safetensors" in formats.values() else None
    candidates = [BackendRef(backend="onnxruntime", artifact=name) for name, kind in formats.items() if kind == "onnx"]
    return reference, candidates


def compare(
    bundle: Bundle,
    reference: BackendRef | None,
    candidates: Sequence[BackendRef],
    data: LabelledImages | None = None,
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Ask every question of every candidate; without labelled `data` decisions are not measured.

    A candidate that fails to load or to run is a FAIL with its reason, and the others go on. A reference that
    fails is an error: there is then nothing to compare with.

    Raises:
        UsageError: no candidates.
        DataError: the labelled images are none, or not of the bundle's labels.
        EdgecnnError: the reference could not be loaded or run.
    """
    samples = bundle_samples(bundle, data)
    return judge(record(Subject.of_bundle(bundle), reference, candidates, samples, tolerance))


def bundle_samples(bundle: Bundle, data: LabelledImages | None) -> Samples:
    """Feed a bundle labelled images, or its goldens where there are none.

    Raises:
        DataError: the labelled images are none, or not of the bundle's labels.
    """
    name = bundle.manifest.inputs[0].name
    if data is not None:
        return labelled_samples(data, name, len(bundle.manifest.labels))
    goldens = bundle.goldens()
    return golden_samples(goldens.pixels, goldens.names, name)
