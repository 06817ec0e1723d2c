"""What a run folder, a bundle or an ONNX file holds, as plain data for `inspect`, and what a net learned to see."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn import registry
from edgecnn.backends.base import open_session
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError, UsageError
from edgecnn.layers import Row, trace
from edgecnn.manifest import MANIFEST
from edgecnn.metrics import Accuracy
from edgecnn.predict import artifact_for, printable
from edgecnn.report.text import percent, size
from edgecnn.runs import CHECKPOINT, CONFIG, RunConfig, read_run
from edgecnn.spec import Artifact, BackendRef, TensorSpec

if TYPE_CHECKING:
    from edgecnn.training.checkpoint import Checkpoint


def inspect_any(path: Path) -> dict[str, Any]:
    """Describe whatever lies there: an ONNX file, a bundle or its zip, or a run folder.

    Raises:
        UsageError: it is none of these, or what was measured of it cannot be read.
    """
    if path.suffix == ".onnx":
        look = inspect_onnx
    elif _is_bundle(path):
        look = inspect_bundle
    elif _is_run(path):
        look = inspect_run
    else:
        raise UsageError(f"{path}: neither a run folder, nor a bundle, nor an .onnx file")
    try:
        return look(path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}: what was measured of it cannot be read ({type(error).__name__}: {error})") from error


def inspect_run(path: Path) -> dict[str, Any]:
    """Describe a run folder; `layers` holds its network's rows."""
    config, metrics = read_run(path)
    return {
        "kind": "run",
        "data": config.data,
        "split": config.split,
        "labels": config.labels,
        "input": f"{config.preprocess.width}x{config.preprocess.height}x{config.preprocess.channels}, {config.preprocess.fit}",
        "net": config.model.net,
        "parameters": metrics.parameters,
        "MACs": metrics.macs,
        "test accuracy": percent(metrics.test_accuracy),
        "validation accuracy": percent(metrics.val_accuracy),
        "training": f"{metrics.seconds:.1f} s, epoch {metrics.best_epoch} of {len(metrics.history)} kept, seed {config.recipe['seed']}",
        "layers": _layers(path, config),
    }


def _layers(path: Path, config: RunConfig) -> list[Row]:
    """List the layers from what was configured, or, where a function made the net, by running it in torch."""
    side = config.preprocess
    if config.model.function is None:
        return trace(config.model.layers, (side.channels, side.height, side.width), len(config.labels))
    checkpoint = read_checkpoint(path)
    from edgecnn.nets.table import measured_rows  # torch, which read_checkpoint has made sure of

    return measured_rows(checkpoint.build(), side)


def inspect_features(path: Path, image: Path, out: Path) -> dict[str, Any]:
    """Write the page of what the net makes of an image, and give what it says in numbers.

    Raises:
        UsageError: the page would replace the image, or there are no torch weights at `path`.
    """
    from edgecnn import images
    from edgecnn.files import write_atomic
    from edgecnn.report.features import features_page

    if out.exists() and out.samefile(image):
        raise UsageError(f"{out}: the page would replace the image; give -o another name")
    checkpoint = read_checkpoint(path)
    from edgecnn.nets.features import look  # torch, which read_checkpoint has made sure of

    pixels = images.load(image, checkpoint.preprocess)
    features = look(checkpoint.build(), checkpoint.preprocess, pixels)
    write_atomic(out, features_page(features, pixels, checkpoint.labels, path.resolve().name, image.name).encode())
    answers = sorted(zip(features.probabilities.tolist(), checkpoint.labels, strict=True), key=lambda pair: -pair[0])
    return {
        "image": printable(image),
        "answer": answers[0][1],
        "probabilities": {label: probability for probability, label in answers},
        "page": printable(out),
    }


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the torch checkpoint of a run folder or a bundle.

    Raises:
        UsageError: `path` is neither.
        MissingPackageError: torch is not installed.
    """
    bundle = _is_bundle(path)
    if not (bundle or _is_run(path)):
        raise UsageError(f"{path}: --features needs torch weights: give a run folder or a bundle")
    torch = registry.get(registry.BACKENDS, "torch")  # says what to install where torch is missing
    from edgecnn.training.checkpoint import load_checkpoint, parse_checkpoint

    if not bundle:
        return load_checkpoint(path)
    opened = Bundle.open(path)  # a zip is unpacked for as long as this lives
    artifact = artifact_for(opened, BackendRef(backend="torch"), torch)
    return parse_checkpoint(artifact.read_bytes(), str(artifact.path))


def _is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file() or path.suffix == ".zip"


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() or (path / CHECKPOINT).is_file()


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Describe a bundle after comparing every file with its hash.

    Raises:
        BundleError: it is not a bundle, or damaged.
    """
    import msgspec

    bundle = Bundle.open(path)
    bundle.verify()
    manifest = bundle.manifest
    found: dict[str, Any] = {
        "kind": f"bundle, schema {manifest.schema_version}, by edgecnn {manifest.edgecnn}, {manifest.created}",
        "labels": manifest.labels,
        "input": " ".join(_written(spec) for spec in manifest.inputs),
        "outputs": ", ".join(_written(spec) for spec in manifest.outputs),
        "normalisation": f"{manifest.preprocess.scale:.6g} * (pixel - {manifest.preprocess.zero_point}), in the graph",
        "data": f"{manifest.provenance.data}: {manifest.provenance.split}",
    }
    for name, record in manifest.artifacts.items():
        default = ", default" if name == manifest.default_artifact else ""
        bytes_ = size(manifest.files[record.path].size)
        found[f"artifact {name}"] = f"{record.format} {record.precision} for {record.target}, {bytes_}{default}"
        fusion = record.details.get("fusion")
        if fusion:
            found[f"  {name} fused"] = (
                f"{sum(layer['int8'] for layer in fusion['layers'])} layers in int8, "
                f"{sum(not layer['int8'] for layer in fusion['layers'])} in float"
            )
    found["goldens"] = len(manifest.goldens.images)
    evidence = manifest.evidence
    if "test_accuracy" in evidence:
        found["test accuracy"] = percent(msgspec.convert(evidence["test_accuracy"], Accuracy))
    if "parity" in evidence:
        found["parity at export"] = evidence["parity"]["verdict"]
        for cell in evidence["parity"]["cells"]:
            decisions = cell["decisions"]
            found[f"  {cell['candidate']}"] = f"computation {cell['computation']['verdict']}" + (
                f", decisions {decisions['verdict']}: {decisions['reason']}" if decisions else ""
            )
    for name, row in evidence.get("latency", {}).items():
        found[f"  latency {name}"] = (
            f"{row['p50_us']:.1f} us at export, {row['ratio_to_first']['median']:.2f} of the first"
        )
    found["forced"] = evidence.get("forced") or "no"
    found["files"] = f"{len(manifest.files)}, every hash as recorded"
    return found


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Describe any ONNX file: its signature always, its operators and weights where onnx is installed."""
    found: dict[str, Any] = {"kind": "ONNX file", "size": size(path.stat().st_size)}
    artifact = Artifact(name=path.stem, format="onnx", path=path)
    try:
        with open_session(BackendRef(backend="onnxruntime"), artifact) as session:
            found["inputs"] = [_written(spec) for spec in session.inputs]
            found["outputs"] = [_written(spec) for spec in session.outputs]
            properties = getattr(session.inner, "metadata", {})
    except BackendError as error:
        raise BackendError(f"{error}; is it a whole ONNX model?") from None
    if find_spec("onnx") is not None:
        found |= _graph(path)
    else:
        found["operators"] = "not counted: needs the package onnx"
    return found | {f"metadata {name}": value for name, value in properties.items()}


def _graph(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    constants = [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    weights = [*model.graph.initializer, *constants]
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
        "weights": sum(_count(tensor) for tensor in weights),
        "operators": dict(operators.most_common()),
        "quantized": "yes (QDQ)" if operators["DequantizeLinear"] else "yes" if operators["QLinearConv"] else "no",
    }


def _count(tensor: Any) -> int:
    count = 1
    for size_ in tensor.dims:
        count *= size_
    return count


def _written(spec: TensorSpec) -> str:
    shape = ", ".join("N" if side is None else str(side) for side in spec.shape)
    return f"{spec.name} {spec.dtype} ({shape})"
