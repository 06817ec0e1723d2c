"""What a run folder, a bundle or an ONNX file holds, as plain data for `inspect`."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgecnn.backends.base import open_session
from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError
from edgecnn.metrics import Accuracy
from edgecnn.report.text import percent, size
from edgecnn.runs import read_run
from edgecnn.spec import Artifact, BackendRef, TensorSpec


def inspect_run(path: Path) -> dict[str, Any]:
    """Describe a run folder."""
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
    }


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
                f"{fusion['fused_convolutions']} convolutions in int8, {fusion['float_convolutions']} in float"
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
