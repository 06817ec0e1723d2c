"""From a run folder to a bundle: export, quantize, record goldens, check parity, and only then put it in place."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn import __version__, host, registry, signing
from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.bench.latency import measure_latency, ratio
from edgecnn.bundle import Bundle, BundleWriter, create_bundle
from edgecnn.data import Dataset, LabelledImages
from edgecnn.device.decoders import decoders
from edgecnn.errors import CheckpointError, ExportError, UsageError, VerdictError
from edgecnn.exporter import Exported, Exporter, ExportRequest, Labelled
from edgecnn.images import Pixels
from edgecnn.manifest import SCHEMA_VERSION, ArtifactRecord, GoldensRecord, Manifest, Provenance
from edgecnn.parity import ParityReport, Verdict, compare, default_refs
from edgecnn.parity.compare import run_all
from edgecnn.runs import CHECKPOINT, Metrics, RunConfig
from edgecnn.spec import Artifact, BackendRef, Frozen, Preprocess, Target, TensorSpec, Tolerance

GOLDEN_IMAGES = 32
CALIBRATION_IMAGES = 256
VALIDATION_IMAGES = 4096
TUNING_IMAGES = 8192
CLEARLY_FASTER = 0.95  # of the first artifact's latency, to take its place as the default
_LATENCY_SECONDS = 1.0


class ExportOptions(Frozen, frozen=True):
    """What to export: by which exporters, for which target, and whether to `force` what parity refuses."""

    exporters: tuple[str, ...] = ("onnx", "onnx-int8")
    target: Target = "any"
    opset: int | None = None
    max_drop: float = 0.01
    force: bool = False


def export_bundle(
    run: Path,
    config: RunConfig,
    metrics: Metrics,
    dataset: Dataset,
    out: Path,
    options: ExportOptions,
    say: Callable[[str], None] = lambda text: None,
    key: Path | None = None,
) -> tuple[Manifest, ParityReport]:
    """Write a bundle to `out` and return its manifest and the parity report that let it pass.

    A FAIL writes nothing, unless forced. An INCONCLUSIVE verdict, which is what too few test images give, is
    written with the bundle, and the artifact in question does not become the default. With a private `key` the bundle is
    signed.

    Raises:
        UsageError: the key cannot be used.
        ExportError: an exporter did not produce what was asked for.
        VerdictError: parity failed.
    """
    private = signing.read_private(key) if key is not None else None
    preprocess = msgspec.structs.replace(
        dataset.preprocess, scale=config.preprocess.scale, zero_point=config.preprocess.zero_point
    )
    calibration = _calibration(dataset, config.data_options.seed)
    validation, train = _tuning(dataset, config.data_options.seed)
    with create_bundle(out) as writer:
        exported = _export_all(run, writer, options, calibration, validation, train, say)
        say("recording goldens")
        goldens = _write_goldens(writer, exported, dataset, preprocess)
        manifest = _manifest(config, metrics, preprocess, exported, goldens, writer, out.name, options)
        bundle = writer.finish(manifest)
        say(f"checking parity on {len(dataset.test)} test images")
        reference, candidates = default_refs(bundle)
        report = compare(bundle, reference, candidates, dataset.test, manifest.tolerance)
        if report.verdict is Verdict.FAIL and not options.force:
            raise VerdictError(
                f"parity failed, so no bundle was written: {'; '.join(failures(report))} (--force writes it)"
            )
        say("measuring latency")
        latency = _latency(bundle, candidates, goldens)
        manifest = msgspec.structs.replace(
            manifest,
            default_artifact=_default(report, latency),
            evidence={
                "parity": msgspec.to_builtins(report),
                "latency": latency,
                "test_accuracy": msgspec.to_builtins(metrics.test_accuracy),
                "forced": [*_refused(exported), *failures(report)] if options.force else [],
            },
        )
        writer.finish(manifest, private)
    return manifest, report


def failures(report: ParityReport) -> list[str]:
    """List what failed in a parity report, one sentence each."""
    decoding = report.decoding
    found = [f"decoding: {decoding.reason}"] if decoding is not None and decoding.verdict is Verdict.FAIL else []
    for cell in report.cells:
        for question, answer in (("computation", cell.computation), ("decisions", cell.decisions)):
            if answer is not None and answer.verdict is Verdict.FAIL:
                found.append(f"{cell.candidate} {question}: {answer.reason}")
        found += [
            f"{cell.candidate} {one.what}: {one.reason}" for one in cell.steadiness if one.verdict is Verdict.FAIL
        ]
    return found


def _refused(exported: dict[str, Exported]) -> list[str]:
    """List why exporters would have refused their artifacts, had they not been forced."""
    return [f"{name} {reason}" for name, one in exported.items() for reason in one.details.get("forced", [])]


def _calibration(dataset: Dataset, seed: int) -> Pixels:
    """Choose training images, never test images, evenly at random."""
    count = min(CALIBRATION_IMAGES, len(dataset.train))
    chosen = np.random.default_rng(seed).choice(len(dataset.train), count, replace=False)
    return dataset.train.take(np.sort(chosen))


def _tuning(dataset: Dataset, seed: int) -> tuple[Labelled, Labelled]:
    """Choose images to judge remedies by and, apart from those, images to train under rounding on: never test images.

    Where validation images are few, half of the training images judge too: what a net loses by rounding shows on images
    it was trained on as well, and a handful of images would show nothing.
    """
    rng = np.random.default_rng(seed)
    order, known = rng.permutation(len(dataset.train)), rng.permutation(len(dataset.val))[:VALIDATION_IMAGES]
    count = min(VALIDATION_IMAGES - len(known), len(dataset.train) // 2)
    judged = [_taken(dataset.val, known), _taken(dataset.train, order[:count])]
    pixels, labels = zip(*judged, strict=True)
    return (np.concatenate(pixels), np.concatenate(labels)), _taken(dataset.train, order[count:][:TUNING_IMAGES])


def _taken(images: LabelledImages, indices: npt.NDArray[np.int64]) -> Labelled:
    chosen = np.sort(indices)
    return images.take(chosen), images.labels[chosen]


def _export_all(
    run: Path,
    writer: BundleWriter,
    options: ExportOptions,
    calibration: Pixels,
    validation: Labelled,
    train: Labelled,
    say: Callable[[str], None],
) -> dict[str, Exported]:
    """Run the exporters in order, each seeing what those before it wrote; the checkpoint goes in as it is."""
    try:
        checkpoint = writer.root / writer.add(CHECKPOINT, (run / CHECKPOINT).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{run / CHECKPOINT}: cannot be read ({error.strerror}); train again") from None
    exported: dict[str, Exported] = {}
    for name in options.exporters:
        exporter: Exporter = registry.get(registry.EXPORTERS, name)
        missing = [need for need in exporter.needs if need not in exported]
        if missing:
            raise UsageError(f"exporter {name} needs the artifact {missing[0]}, which no exporter before it writes")
        say(f"exporting {exporter.artifact}")
        request = ExportRequest(
            checkpoint=checkpoint,
            folder=writer.root,
            calibration=calibration,
            target=options.target,
            opset=options.opset,
            written={artifact: one.path for artifact, one in exported.items()},
            validation=validation,
            train=train,
            tolerance=Tolerance(max_drop=options.max_drop),
            force=options.force,
            say=say,
        )
        exported[exporter.artifact] = exporter.export(request)
    if not exported:
        raise UsageError("nothing to export: name at least one exporter")
    exported["checkpoint"] = Exported(path=checkpoint, format="safetensors", precision="fp32", target="any", details={})
    return exported


def _write_goldens(
    writer: BundleWriter, exported: dict[str, Exported], dataset: Dataset, preprocess: Preprocess
) -> GoldensRecord:
    """Store encoded images, pixels, and the logits of torch in both precisions and of every other artifact."""
    chosen = _spread(dataset.test.labels, GOLDEN_IMAGES)
    names = []
    for number, index in enumerate(chosen):
        data, suffix = dataset.test.encoded(index)
        names.append(writer.add(f"goldens/{number:03d}{suffix}", data))
    pixels = dataset.test.take(np.array(chosen, dtype=np.int64))
    arrays: dict[str, Any] = {"pixels": pixels}
    for dtype in ("float64", "float32"):
        options = SessionOptions(dtype="float64" if dtype == "float64" else "float32")
        arrays[f"logits_{dtype}"] = _logits(exported["checkpoint"], "torch", pixels, options)
    for name, one in exported.items():
        if one.format == "onnx":
            arrays[f"recorded_{name}"] = _logits(one, "onnxruntime", pixels, SessionOptions())
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ExportError("the goldens' logits are not finite: the checkpoint or an artifact is broken")
    file = writer.root / "goldens" / "arrays.npz"
    np.savez_compressed(file, **arrays)
    labels = tuple(int(label) for label in dataset.test.labels[chosen])
    return GoldensRecord(images=tuple(names), labels=labels, arrays="goldens/arrays.npz")


def _spread(labels: Any, count: int) -> list[int]:
    """Choose indices class by class in turn, so that as many classes as possible are among the goldens."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return sorted(np.lexsort((labels, rank))[:count].tolist())


def _logits(one: Exported, backend: str, pixels: Pixels, options: SessionOptions) -> Any:
    artifact = Artifact(name=one.path.stem, format=one.format, path=one.path, target=one.target)
    with open_session(BackendRef(backend=backend), artifact, options) as session:
        return run_all(session, pixels)["logits"]


def _manifest(
    config: RunConfig,
    metrics: Metrics,
    preprocess: Preprocess,
    exported: dict[str, Exported],
    goldens: GoldensRecord,
    writer: BundleWriter,
    name: str,
    options: ExportOptions,
) -> Manifest:
    classes = len(config.labels)
    writer.add("labels.txt", "".join(f"{label}\n" for label in config.labels).encode())
    return Manifest(
        schema_version=SCHEMA_VERSION,
        edgecnn=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        name=name,
        labels=config.labels,
        preprocess=preprocess,
        inputs=(TensorSpec(name="image", shape=(None, *preprocess.shape), dtype="uint8"),),
        outputs=tuple(
            TensorSpec(name=output, shape=(None, classes), dtype="float32") for output in ("logits", "probabilities")
        ),
        artifacts={
            artifact: ArtifactRecord(
                format=one.format,
                precision=one.precision,
                target=one.target,
                path=one.path.relative_to(writer.root).as_posix(),
                details=one.details,
            )
            for artifact, one in exported.items()
        },
        default_artifact=next(iter(exported)),
        goldens=goldens,
        tolerance=Tolerance(max_drop=options.max_drop),
        provenance=Provenance(
            data=config.data,
            test_sha256=config.test_sha256,
            split=config.split,
            seed=int(config.recipe["seed"]),
            host={**msgspec.to_builtins(host.fingerprint()), "decoders": decoders()},
            training={
                "data_options": msgspec.to_builtins(config.data_options),
                "model": msgspec.to_builtins(config.model),
                "recipe": config.recipe,
                "parameters": metrics.parameters,
                "macs": metrics.macs,
                "seconds": metrics.seconds,
            },
        ),
        evidence={},
        files=writer.files(),
    )


def _latency(bundle: Bundle, refs: Sequence[BackendRef], goldens: GoldensRecord) -> dict[str, Any]:
    """Measure the candidates at batch 1 and one thread, interleaved, against the first."""
    feeds = {bundle.manifest.inputs[0].name: bundle.goldens().pixels[:1]}
    options = SessionOptions(threads=1)
    with ExitStack() as stack:
        sessions = {
            str(ref): stack.enter_context(open_session(ref, bundle.artifact(ref.artifact), options)) for ref in refs
        }
        latencies = measure_latency(sessions, feeds, _LATENCY_SECONDS)
    first = latencies[str(refs[0])]
    return {
        ref.artifact or str(ref): {
            "p50_us": latencies[str(ref)].p50_us,
            "n": latencies[str(ref)].n,
            "ratio_to_first": msgspec.to_builtins(ratio(latencies[str(ref)], first)),
        }
        for ref in refs
    }


def _default(report: ParityReport, latency: dict[str, Any]) -> str:
    """Choose the fastest artifact that passed every question; the first one where none is clearly faster."""
    first = report.cells[0].artifact
    passed = [
        cell.artifact
        for cell in report.cells
        if cell.computation.verdict is Verdict.PASS
        and cell.decisions is not None
        and cell.decisions.verdict is Verdict.PASS
    ]
    if first not in passed and passed:
        return passed[0]
    ratios = {name: latency[name]["ratio_to_first"] for name in passed}
    faster = [name for name in passed if ratios[name]["high"] < 1 and ratios[name]["median"] < CLEARLY_FASTER]
    return min(faster, key=lambda name: ratios[name]["median"], default=first)
