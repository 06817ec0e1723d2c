"""Devices whose time says nothing, in a bench and in a soak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from over_time.machine import FP32, Machine

from edgecnn import registry
from edgecnn.backends.base import SessionOptions
from edgecnn.bench import run as bench_run
from edgecnn.bench.over_time import bench_soak
from edgecnn.bench.run import UNTIMED, bench
from edgecnn.bundle import Bundle
from edgecnn.errors import UsageError
from edgecnn.report.bench import bench_text
from edgecnn.spec import Artifact, BackendRef


class Imitated(Machine):
    """A backend whose time means nothing."""

    name = "imitated"
    formats = ("onnx",)
    timed = False

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> Imitated:
        raise AssertionError("bench must not even load it")


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> BackendRef:
    """Register a backend that is not timed."""
    real = registry.get

    def get(group: Any, name: str) -> Any:
        return Imitated(lambda now: 1.0) if name == "imitated" else real(group, name)

    monkeypatch.setattr(registry, "get", get)
    return BackendRef.parse("imitated:int8")


def test_the_emulated_backend_is_not_timed() -> None:
    """Emulation says of itself that its time means nothing, and ONNX Runtime does not."""
    assert not bench_run.is_timed(BackendRef.parse("emulated:int8@haswell"))
    assert bench_run.is_timed(FP32)


def test_an_emulated_device_is_not_measured(imitated: BackendRef, bundle_folder: Path) -> None:
    """In a bench such a candidate has one line, not measured, and the others are compared with the first that is."""
    report = bench(Bundle.open(bundle_folder), [imitated, FP32], seconds=0.1, cold_runs=0)
    first, second = report.rows
    assert (first.latency, first.ratio, first.reason) == (None, None, UNTIMED)
    assert second.ratio is not None
    assert second.ratio.median == 1.0
    lines = bench_text(report).splitlines()
    assert f"imitated:int8: {UNTIMED}" in lines
    assert sum("imitated" in line for line in lines) == 1
    alone = bench(Bundle.open(bundle_folder), [imitated], seconds=0.1)
    assert not alone.trust.trusted
    assert UNTIMED in bench_text(alone)


def test_an_emulated_device_is_not_soaked(imitated: BackendRef, bundle_folder: Path) -> None:
    """Soaks and camera rates of such a candidate are refused."""
    with pytest.raises(UsageError, match="not measured"):
        bench_soak(Bundle.open(bundle_folder), [imitated], 1.0)
