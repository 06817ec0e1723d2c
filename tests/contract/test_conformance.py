"""The shipped conformance suite, held to our own backends and exporters, and to broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from edgecnn import registry
from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.bundle import Bundle
from edgecnn.errors import ContractError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.spec import TARGETS, Artifact, Target, TensorSpec, Tolerance
from edgecnn.testing import check_backend, check_exporter

CASES = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("torch", "checkpoint"),
    ("reference", "fp32"),
    ("reference", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
]


@pytest.mark.parametrize(("backend", "artifact"), CASES)
def test_our_backends_keep_the_contract(backend: str, artifact: str, bundle_folder: Path) -> None:
    """Every backend we ship keeps every promise of the contract."""
    check_backend(registry.get(registry.BACKENDS, backend), Bundle.open(bundle_folder).artifact(artifact))


@pytest.mark.usefixtures("steady")
def test_our_exporters_keep_the_contract(run_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """Every exporter we ship writes one file of the promised kind and leaves nothing else behind."""
    pixels = Bundle.open(bundle_folder).goldens().pixels
    request = ExportRequest(
        checkpoint=run_folder / "model.safetensors",
        folder=tmp_path,
        calibration=pixels,
        tolerance=Tolerance(max_drop=0.9),
    )
    fp32 = check_exporter(registry.get(registry.EXPORTERS, "onnx"), request)
    second = dataclasses.replace(request, written={"fp32": fp32.path})
    int8 = check_exporter(registry.get(registry.EXPORTERS, "onnx-int8"), second)
    half = check_exporter(registry.get(registry.EXPORTERS, "onnx-fp16"), second)
    assert (fp32.precision, int8.precision, half.precision) == ("fp32", "int8", "fp16")


@pytest.mark.parametrize("target", TARGETS)
def test_our_fp16_exporter_keeps_the_contract_for_every_target(
    target: Target, bundle_folder: Path, tmp_path: Path
) -> None:
    """Whatever target is asked for, the fp16 artifact says that one, or any."""
    bundle = Bundle.open(bundle_folder)
    request = ExportRequest(
        checkpoint=bundle.artifact("checkpoint").path,
        folder=tmp_path,
        calibration=bundle.goldens().pixels,
        target=target,
        written={"fp32": bundle.artifact("fp32").path},
    )
    check_exporter(registry.get(registry.EXPORTERS, "onnx-fp16"), request)


class Fake:
    """A backend that keeps the contract unless it is told which promise to break."""

    name = "fake"
    formats = ("onnx",)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cpu") if self.fault == "a device twice" else ("cpu",)

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> FakeSession:
        if self.fault != "no hash":
            artifact.read_bytes()
        return FakeSession(self.fault)


class FakeSession:
    inputs = (TensorSpec(name="x", shape=(None, 4), dtype="float32"),)
    outputs = (TensorSpec(name="y", shape=(None, 4), dtype="float32"),)

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.device = "cuda:7" if fault == "another device" else "cpu"
        self.buffer: Any = None

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        y: Any = feeds["x"] * 2
        if self.fault == "the batch matters":
            y = y + len(y)
        if self.fault == "not finite":
            y[0, 0] = np.nan
        if self.fault == "a list":
            y = np.ma.masked_array(y)
        if self.fault == "one buffer":
            if self.buffer is None or self.buffer.shape != y.shape:
                self.buffer = np.empty_like(y)
            self.buffer[:] = y
            y = self.buffer
        if self.fault == "a wrong dtype":
            y = y.astype(np.float64)
        return {"z" if self.fault == "a wrong name" else "y": y}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


FAULTS = {
    "a device twice": "devices",
    "another device": "cuda:7",
    "the batch matters": "alone and in a batch",
    "not finite": "finite",
    "a list": "host numpy array",
    "one buffer": "overwritten",
    "a wrong dtype": "float64",
    "a wrong name": "'z'",
    "no hash": "hash",
}


def test_a_good_backend_passes(tmp_path: Path) -> None:
    """A third party's backend that keeps the contract passes the suite."""
    check_backend(Fake(), artifact(tmp_path))


@pytest.mark.parametrize(("fault", "told"), FAULTS.items())
def test_each_broken_promise_is_caught(fault: str, told: str, tmp_path: Path) -> None:
    """A backend that breaks one promise is caught, and told which."""
    with pytest.raises(Exception, match=told) as caught:
        check_backend(Fake(fault), artifact(tmp_path))
    assert type(caught.value).__module__ == "edgecnn.errors"


class Littering:
    """An exporter that leaves a file behind."""

    name, artifact, needs = "littering", "litter", ()

    def export(self, request: ExportRequest) -> Exported:
        path = request.folder / "litter.onnx"
        path.write_bytes(b"x")
        (request.folder / "litter.onnx.data").write_bytes(b"y")
        return Exported(path=path, format="onnx", precision="fp32", target="any", details={})


def test_a_littering_exporter_is_caught(tmp_path: Path) -> None:
    """An exporter that leaves a second file behind is caught."""
    request = ExportRequest(checkpoint=tmp_path, folder=tmp_path, calibration=np.zeros((1, 1, 1, 1), np.uint8))
    with pytest.raises(ContractError, match="nothing else"):
        check_exporter(Littering(), request)


def artifact(folder: Path) -> Artifact:
    path = folder / "model.onnx"
    path.write_bytes(b"anything")
    return Artifact(name="fp32", format="onnx", path=path)
