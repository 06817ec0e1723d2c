"""A small recording for tests: made-up answers of three sides, their float64 truth, and where they were given."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np

from edgecnn.host import Host
from edgecnn.parity.recording import Recording, RecordingHead, SamplesRecord, SideArrays, SideRecord
from edgecnn.spec import Tolerance

CLASSES = ("cat", "dog", "owl")
TORCH, FP32, INT8 = "torch", "onnxruntime:fp32", "onnxruntime:int8"
HOST = Host(
    system="Linux 6.1",
    machine="x86_64",
    cpu="Made-up CPU",
    features=("avx2",),
    cores=4,
    usable_threads=4,
    governor=None,
    cgroup_cpus=None,
    python="3.11.2",
    packages={"numpy": "2.0.0", "onnxruntime": "1.30.0"},
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def side(ref: str, **changes: Any) -> SideRecord:
    backend, _, artifact = ref.partition(":")
    made = SideRecord(
        ref=ref,
        artifact=artifact or "checkpoint",
        precision=artifact or "fp32",
        quantized=artifact == "int8",
        sha256=sha(artifact),
        device="cpu",
        runtime=f"{backend} 1.30.0",
        threads=1,
    )
    return msgspec.structs.replace(made, **changes)


def recording(n: int = 40, seed: int = 0, noise: float = 1e-6, labels: bool = True, **head: Any) -> Recording:
    """Record three sides over `n` samples: torch and ONNX Runtime off by rounding `noise`, int8 by steps of 0.05.

    The samples and the truth depend on neither `seed` nor `noise`: two of these with other seeds are two machines.
    """
    truth = np.random.default_rng(7).normal(size=(n, len(CLASSES))) * 3
    random = np.random.default_rng(100 + seed)
    float32 = (truth + np.random.default_rng(8).normal(size=truth.shape) * 1e-6).astype(np.float32)
    fp32 = (truth + random.normal(size=truth.shape) * noise).astype(np.float32)
    int8 = (np.round(truth / 0.05) * 0.05).astype(np.float32)
    chosen = np.arange(0, n, 2)
    arrays = {
        TORCH: SideArrays(answers={"logits": float32}, on_truth=float32[chosen]),
        FP32: SideArrays(
            answers={"logits": fp32, "kinds": np.arange(n, dtype=np.int64)},
            on_truth=fp32[chosen],
            again={"repeat": (fp32[:8], fp32[:8].copy()), "batch": (fp32[:4], fp32[:4] + np.float32(1e-6))},
        ),
        INT8: SideArrays(
            answers={"logits": int8}, on_truth=int8[chosen], goldens=int8[:5], recorded=int8[:5] + np.float32(0.05)
        ),
    }
    given = RecordingHead(
        subject="animals",
        subject_sha256=sha("animals"),
        answer="logits",
        classes=CLASSES,
        tolerance=Tolerance(),
        reference=TORCH,
        sides=(side(TORCH), side(FP32), side(INT8)),
        samples=SamplesRecord(
            kind="data",
            said=f"{n} labelled images",
            n=n,
            names=tuple(f"images/{index:03d}.png" for index in range(n)),
            labels=tuple(truth.argmax(axis=1).tolist()) if labels else None,
            sha256=sha("images"),
        ),
        truth="torch in float64",
        truth_samples=tuple(chosen.tolist()),
        decoding=None,
        host=HOST,
        edgecnn="0.1.0",
        created="2026-11-24T12:00:00Z",
    )
    return Recording(
        head=msgspec.structs.replace(given, **head),
        sides=arrays,
        float64=truth[chosen],
        float32=float32[chosen],
        golden_float64=truth[:5],
    )
