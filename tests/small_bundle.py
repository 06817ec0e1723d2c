"""A small bundle written by hand, without edgecnn's help: its files, its manifest, its folder and its zip."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.images import encode_png
from edgecnn.manifest import MANIFEST

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 1), dtype=np.uint8)
ARRAYS: dict[str, Any] = {
    "pixels": PIXELS,
    "logits_float64": np.arange(6.0).reshape(2, 3),
    "logits_float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "recorded_net": np.arange(6, dtype=np.float32).reshape(2, 3) + 1,
}
NET = b"the artifact " * 100


def npz(arrays: dict[str, Any]) -> bytes:
    """Encode arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def contents(**changes: Any) -> dict[str, bytes]:
    """Return the files of a small bundle; `changes` replace arrays of its goldens, or drop them where None."""
    arrays = {name: array for name, array in {**ARRAYS, **changes}.items() if array is not None}
    return {
        "net.onnx": NET,
        "labels.txt": b"ant\nbee\ncat\n",
        "goldens/000.png": encode_png(PIXELS[0]),
        "goldens/001.png": encode_png(PIXELS[1]),
        "goldens/arrays.npz": npz(arrays),
    }


def record(data: bytes) -> dict[str, Any]:
    """Describe a file as a manifest does."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def describe(files: dict[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a small bundle as plain JSON values, written out by hand."""
    logits = {"shape": [None, 3], "dtype": "float32"}
    return {
        "schema_version": 1,
        "edgecnn": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "name": "small",
        "labels": ["ant", "bee", "cat"],
        "preprocess": {
            "height": 4,
            "width": 5,
            "channels": 1,
            "fit": "stretch",
            "background": 255,
            "scale": 1.0,
            "zero_point": 0,
        },
        "inputs": [{"name": "image", "shape": [None, 4, 5, 1], "dtype": "uint8"}],
        "outputs": [{"name": "logits", **logits}, {"name": "probabilities", **logits}],
        "artifacts": {"net": {"format": "onnx", "precision": "fp32", "target": "any", "path": "net.onnx"}},
        "default_artifact": "net",
        "goldens": {"images": ["goldens/000.png", "goldens/001.png"], "labels": [0, 2], "arrays": "goldens/arrays.npz"},
        "tolerance": {
            "noise_multiple": 10.0,
            "recorded_share": 0.5,
            "recorded_share_here": 0.05,
            "max_drop": 0.01,
            "confidence": 0.95,
        },
        "provenance": {"data": "digits", "test_sha256": "0", "split": "", "seed": 0, "host": {}, "training": {}},
        "evidence": {},
        "files": {name: record(data) for name, data in files.items()},
    }


def write(folder: Path, files: dict[str, bytes] | None = None, manifest: Any = None) -> Path:
    """Write a small bundle's folder without edgecnn's help."""
    files = contents() if files is None else files
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps(describe(files) if manifest is None else manifest))
    return folder


def pack(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip of these entries."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def entries(prefix: str = "", **manifest: Any) -> dict[str, bytes]:
    """Return the zip entries of a small bundle; `manifest` replaces fields of its manifest."""
    files = contents()
    described = {**describe(files), **manifest}
    return {prefix + name: data for name, data in {MANIFEST: json.dumps(described).encode(), **files}.items()}
