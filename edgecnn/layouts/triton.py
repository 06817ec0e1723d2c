"""A model repository for NVIDIA's Triton, and the manifest with which KServe runs Triton on it.

Sources: Triton's model_config.proto and "Model Repository" page; KServe's serving.kserve.io/v1beta1.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from edgecnn.bundle import Bundle
from edgecnn.manifest import MANIFEST
from edgecnn.spec import TensorSpec

REPOSITORY = "model_repository"
_TYPES = {
    "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
}  # fmt: skip
_BATCH = 32  # images that Triton may put together; it asks for no more than one run can take
_DELAY_US = 500
_PRECISION = {"int8": "INT8", "fp16": "FP16", "fp32": "FP32"}


def write_triton(bundle: Bundle, out: Path) -> list[str]:
    """Write each ONNX artifact as a model of its own; the default one bears the bundle's name."""
    told = []
    name = model_name(bundle.manifest.name)
    for artifact, record in bundle.manifest.artifacts.items():
        if record.format != "onnx":
            told.append(f"{artifact}: left out, {record.format} is not for Triton's ONNX Runtime")
            continue
        own = name if artifact == bundle.manifest.default_artifact else f"{name}-{model_name(artifact)}"
        folder = out / REPOSITORY / own
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(bundle.read(record.path))
        (folder / "config.pbtxt").write_text(config(bundle, artifact, own), encoding="utf-8")
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in bundle.manifest.labels), encoding="utf-8")
        told.append(f"{artifact}: {REPOSITORY}/{own}/1/model.onnx")
    (out / "kserve.yaml").write_text(kserve(name), encoding="utf-8")
    (out / MANIFEST).write_bytes((bundle.root / MANIFEST).read_bytes())
    told.append("kserve.yaml: put the repository where your cluster can read it, and that place into storageUri")
    return told


def config(bundle: Bundle, artifact: str, name: str) -> str:
    """Write a model's config.pbtxt: a protobuf text of Triton's ModelConfig."""
    manifest, record = bundle.manifest, bundle.manifest.artifacts[artifact]
    free = all(spec.shape[:1] == (None,) for spec in (*manifest.inputs, *manifest.outputs))
    lines = [
        f"name: {_text(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {_BATCH if free else 0}",
        *(_tensor("input", spec, free) for spec in manifest.inputs),
        *(_tensor("output", spec, free) for spec in manifest.outputs),
        f"instance_group [ {{ kind: {'KIND_GPU' if record.target in ('cuda', 'tensorrt') else 'KIND_CPU'}, count: 1 }} ]",
    ]
    if free:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}")
    if record.target == "tensorrt":
        parameter = f'parameters {{ key: "precision_mode", value: "{_PRECISION.get(record.precision, "FP32")}" }}'
        lines.append(
            f'optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ name: "tensorrt", {parameter} }} ] }} }}'
        )
    return "\n".join(lines) + "\n"


def kserve(name: str) -> str:
    """Write the InferenceService that runs Triton on the repository; the place to read it from is yours to fill in."""
    service = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "model"
    if not service[0].isalpha():  # a DNS label of RFC 1035
        service = f"m-{service}"
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service[:63].rstrip("-")}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      runtime: kserve-tritonserver
      protocolVersion: v2
      # The folder {REPOSITORY}/ beside this file, where your cluster reads it from.
      storageUri: pvc://models/{REPOSITORY}
      resources:
        requests:
          cpu: "1"
          memory: 512Mi
        limits:
          cpu: "2"
          memory: 2Gi
"""


def model_name(text: str) -> str:
    """Make a name of letters, digits, dots, dashes and underscores, which every server takes in a path and a URL."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def _tensor(kind: str, spec: TensorSpec, free: bool) -> str:
    """Write one input or output; where the first dimension is the batch, Triton leaves it out."""
    dims = ", ".join("-1" if size is None else str(size) for size in (spec.shape[1:] if free else spec.shape))
    labels = ', label_filename: "labels.txt"' if kind == "output" else ""
    return f"{kind} [ {{ name: {_text(spec.name)}, data_type: {_TYPES[spec.dtype]}, dims: [ {dims} ]{labels} }} ]"


def _text(value: str) -> str:
    """Quote a string as protobuf's text format does: JSON's escapes are among its own."""
    return json.dumps(value, ensure_ascii=False)
