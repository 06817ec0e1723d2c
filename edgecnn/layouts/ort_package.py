"""A folder that ONNX Runtime's own ModelPackage API opens, from 1.32 on: one component, a variant an artifact.

Source: ONNX Runtime's `model_package` library, schema 1.0, and its `executor_info["ort"]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgecnn.backends.onnxruntime import FULL_RANGE_TARGETS
from edgecnn.bundle import Bundle
from edgecnn.layouts.triton import model_name
from edgecnn.manifest import MANIFEST, ArtifactRecord
from edgecnn.spec import to_json

COMPONENT = "classifier"
EVIDENCE = "edgecnn-manifest.json"
_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "gpu", {"device_id": "0", "use_tf32": "0"}),
    "tensorrt": ("TensorrtExecutionProvider", "gpu", {"device_id": "0"}),
}


def write_ort_package(bundle: Bundle, out: Path) -> list[str]:
    """Write a portable package; ONNX Runtime takes the first variant that fits, so the default artifact comes first."""
    manifest = bundle.manifest
    default = manifest.default_artifact
    order = [default, *(name for name in manifest.artifacts if name != default)]
    variants: dict[str, Any] = {}
    told = []
    for name in order:
        record = manifest.artifacts[name]
        if record.format != "onnx":
            told.append(f"{name}: left out, {record.format} is no model of ONNX Runtime")
            continue
        variant = model_name(name)
        (out / variant).mkdir()
        (out / variant / "model.onnx").write_bytes(bundle.read(record.path))
        variants[variant] = _variant(bundle, record, variant)
        told.append(f"{name}: {variant}/model.onnx")
    shape = {
        "schema_version": "1.0",
        "package_name": manifest.name,
        "package_version": manifest.created,
        "layout": "portable",
        "components": {COMPONENT: {"component_name": COMPONENT, "variants": variants}},
        "additional_metadata": {
            "labels": list(manifest.labels),
            "preprocess": msgspec.to_builtins(manifest.preprocess),
            "edgecnn": {"version": manifest.edgecnn, "manifest": EVIDENCE},
        },
    }
    (out / "manifest.json").write_bytes(to_json(shape))
    (out / EVIDENCE).write_bytes((bundle.root / MANIFEST).read_bytes())
    return [*told, _opened(out)]


def _variant(bundle: Bundle, record: ArtifactRecord, name: str) -> dict[str, Any]:
    provider, device, options = _PROVIDERS.get(record.target, ("CPUExecutionProvider", "cpu", {}))
    session = {"session.intra_op.allow_spinning": "0"}
    if record.target in FULL_RANGE_TARGETS:
        session["session.x64quantprecision"] = "1"  # right where there is no VNNI, and nothing where there is
    if device == "gpu":
        session["session.disable_cpu_ep_fallback"] = "1"
    ort: dict[str, Any] = {"model_file": "model.onnx", "session_options": session}
    if options:
        ort["provider_options"] = options
    return {
        "variant_directory": name,
        "ep": provider,
        "device": device,
        "executor_info": {"ort": ort},
        "additional_metadata": {
            "precision": record.precision,
            "target": record.target,
            "sha256": bundle.manifest.files[record.path].sha256,
        },
    }


def _opened(out: Path) -> str:
    """Open it with ONNX Runtime where that is new enough, and say which."""
    try:
        from edgecnn.backends.onnxruntime import import_onnxruntime

        ort = import_onnxruntime()
        context = ort.ModelPackageContext(str(out))
    except (AttributeError, ModuleNotFoundError, ImportError):
        return "not opened here: that takes ONNX Runtime 1.32 or newer"
    names = ", ".join(context.get_variant_names(COMPONENT))
    return f"ONNX Runtime {ort.__version__} opens it: {COMPONENT} with {names}"
