"""One table a model: every backend that runs here, in float and in int8, against torch; both of parity's questions.

The models are two nets trained on Fashion-MNIST, exported with int8 for any CPU, and a text classifier from elsewhere,
quantized for any CPU, on made lines of text. Backends that take a long time per image get the first images only; each row
states how many. RUNS and BUNDLES name folders of runs and of bundles that are there already, DATA and MODELS where to
look for what is in `../shared` else, MODELS_WANTED some of the models, EDGECNN_WEB and EDGECNN_SYSROOT what the browser's
and the emulated backends need. What is not there is skipped, with the reason.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_quantization import NETS, text_model
from common import print_machine
from fashion import bundle_of, bundles_folder, first

from edgecnn import registry
from edgecnn.errors import EdgecnnError
from edgecnn.parity import ParityReport, judge, record
from edgecnn.parity.compare import bundle_samples
from edgecnn.parity.judge import Cell
from edgecnn.parity.samples import Samples, fed_samples
from edgecnn.parity.steadiness import Steadiness
from edgecnn.parity.subject import Subject
from edgecnn.quantization.run import QuantizeOptions, quantize_model
from edgecnn.quantization.source import read_source
from edgecnn.spec import BackendRef

# Backend, device, and how many images of a net's and of the text classifier's it gets.
SIDES = (
    ("onnxruntime", "cpu", 10_000, 2_000),
    ("openvino", "cpu", 10_000, 2_000),
    ("onnxruntime-web", "node", 1_000, 128),
    ("onnxruntime-web", "chromium", 1_000, 128),
    ("emulated", "haswell", 96, 16),
    ("emulated", "nehalem", 96, 16),
    ("emulated", "arm64", 96, 16),
    ("emulated", "arm64-dotprod", 96, 16),
    ("reference", "cpu", 64, 8),
)
HEADER = ["backend", "file", "images", "computation", "error", "SQNR dB", "same top-1", "decisions", "lost, gained", "steady"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model in float and int8: what parity is of, both files by the name a candidate has them by, and the images."""

    name: str
    subject: Subject
    reference: BackendRef | None
    files: dict[str, str | None]
    samples: Callable[[int], Samples]
    text: bool = False


def main() -> None:
    """Print the tables."""
    print_machine()
    wanted = os.environ.get("MODELS_WANTED", "resnet8,edge_s,text").split(",")
    with bundles_folder() as folder:
        for name in wanted:
            case = text_case(folder) if name == "text" else net_case(name, folder)
            if case is None:
                print(f"\n{name}: skipped, its model or data are not there; set DATA and MODELS")
            else:
                print_matrix(case)


def net_case(name: str, folder: Path) -> Case | None:
    """Take a trained net's bundle, with torch as the reference."""
    found = bundle_of(name, folder) if name in NETS else None
    if found is None:
        return None
    bundle, images = found
    return Case(
        name=name,
        subject=Subject.of_bundle(bundle),
        reference=BackendRef(backend="torch"),
        files={"fp32": "fp32", "int8": "int8"},
        samples=lambda count: bundle_samples(bundle, first(images, count)),
    )


def text_case(folder: Path) -> Case | None:
    """Take the text classifier, whose graph in float64 is the reference; every other made line is upside down."""
    found = text_model(folder / "text")
    if found is None:
        return None
    path, calibration, test = found
    int8 = folder / "text.int8.onnx"
    if not int8.exists():
        model, _ = quantize_model(read_source(path), calibration, test, QuantizeOptions(target="any", qat_epochs=0))
        onnx.save(model, int8)
    labelled = replace(test, labels=np.arange(test.count) % 2)
    return Case(
        name="text",
        subject=Subject.of_model(path),
        reference=None,
        files={"fp32": None, "int8": str(int8)},
        samples=lambda count: fed_samples(
            labelled.subset(np.arange(min(count, labelled.count))), "made lines of text", 2
        ),
        text=True,
    )


def print_matrix(case: Case) -> None:
    """Check a model on all backends, those with the same images together, and print its table."""
    groups: dict[int, list[tuple[str, str]]] = {}
    skipped = []
    for backend, device, images, texts in SIDES:
        obstacle = obstacle_to(backend, device)
        if obstacle:
            skipped.append(f"{backend}@{device} skipped: {obstacle}")
        else:
            groups.setdefault(texts if case.text else images, []).append((backend, device))
    rows, reference = [], ""
    for count, places in groups.items():
        refs = [
            BackendRef(backend=backend, artifact=artifact, device=device)
            for backend, device in places
            for artifact in case.files.values()
        ]
        start = time.perf_counter()
        report = judge(record(case.subject, case.reference, refs, case.samples(count)))
        print(f"{case.name}, {count} images: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        reference = reference or said_of(report)
        rows += [row(ref, cell, case) for ref, cell in zip(refs, report.cells, strict=True)]
    print(f"\n{case.name}: {reference}")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    print("\n".join(rows))
    print("\n".join(skipped))


def obstacle_to(backend: str, device: str) -> str | None:
    """Say why a backend cannot be used here, None where it can."""
    try:
        found: Any = registry.get(registry.BACKENDS, backend)
        if device in found.devices():
            return None
        missing: dict[str, str] = found.missing() if hasattr(found, "missing") else {}
        return missing.get(device, "it is not on this machine")
    except EdgecnnError as error:
        return str(error)


def said_of(report: ParityReport) -> str:
    """Say what the first and largest report compared with, and how right that is."""
    decisions = next((cell.decisions for cell in report.cells if cell.decisions), None)
    right = f", right on {decisions.reference_accuracy.value:.2%} of {decisions.n:,}" if decisions else ""
    return f"reference {report.reference}{right}; {report.cells[0].computation.truth}"


def row(ref: BackendRef, cell: Cell, case: Case) -> str:
    """Write a line of the table; the error is in units of torch float32's own, or a share of int8's own."""
    computation, decisions = cell.computation, cell.decisions
    file = next(name for name, artifact in case.files.items() if artifact == ref.artifact)
    place = ref.backend if ref.device == "cpu" else f"{ref.backend}@{ref.device}"
    if computation.distance is None:
        return f"| {place} | {file} | {computation.n} | {computation.verdict.value}: {computation.reason} |" + " |" * 6
    error = "" if computation.share is None else f"{computation.share:.2%}"
    error = error if computation.multiple is None else f"{computation.multiple:.2f} times"
    sqnr = computation.distance.sqnr_db
    agreement = "" if cell.agreement is None else f"{cell.agreement.share:.2%}"
    counted = "" if decisions is None else f"{decisions.lost}, {decisions.gained}"
    fields = [
        place, file, f"{decisions.n if decisions else computation.n:,}", computation.verdict.value, error,
        "exact" if sqnr is None else f"{sqnr:.1f}", agreement,
        "" if decisions is None else decisions.verdict.value, counted, steady(cell.steadiness),
    ]  # fmt: skip
    return f"| {' | '.join(fields)} |"


def steady(found: Sequence[Steadiness]) -> str:
    """Sum up what the further runs gave: the worst of them, by name where it is not equal to the bit."""
    measured = [one for one in found if one.n]
    if all(one.bit_equal for one in measured):
        return "to the bit"
    return ", ".join(off(measured))


def off(measured: Sequence[Steadiness]) -> Iterator[str]:
    """Name the further runs that are not equal to the bit, and how far they are off."""
    for one in measured:
        if not one.bit_equal:
            yield f"{one.what} {one.verdict.value}" + (f" {one.multiple:.2g}" if one.multiple is not None else "")


if __name__ == "__main__":
    main()
