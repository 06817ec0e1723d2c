"""The small net's checkpoint, exported and quantized once for all tests here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from exporters.made import LOOSE, OPSETS, Int8, RequestFor
from steady import steady_races

from edgecnn.bundle import Bundle
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.spec import Preprocess, Target
from edgecnn_exporters.onnx import OnnxExporter
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter


@pytest.fixture(scope="session")
def checkpoint(run_folder: Path) -> Path:
    return run_folder / "model.safetensors"


@pytest.fixture(scope="session")
def pixels(bundle_folder: Path) -> npt.NDArray[np.uint8]:
    """Return digits and images of noise, some of them at the ends of the range."""
    noise = np.random.default_rng(3).integers(0, 256, (14, 8, 8, 1), dtype=np.uint8)
    ends = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])
    return np.concatenate([Bundle.open(bundle_folder).goldens().pixels, noise, ends])


@pytest.fixture(scope="session")
def calibration(bundle_folder: Path) -> npt.NDArray[np.uint8]:
    return Bundle.open(bundle_folder).goldens().pixels


@pytest.fixture(scope="session")
def preprocess(bundle_folder: Path) -> Preprocess:
    return Bundle.open(bundle_folder).manifest.preprocess


@pytest.fixture(scope="session")
def exports(
    checkpoint: Path, calibration: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Exported]:
    """Export the network once for each opset."""
    made = {}
    for opset in OPSETS:
        folder = tmp_path_factory.mktemp(f"opset{opset}")
        request = ExportRequest(checkpoint=checkpoint, folder=folder, calibration=calibration, opset=opset)
        made[opset] = OnnxExporter().export(request)
    return made


@pytest.fixture(params=OPSETS)
def exported(request: pytest.FixtureRequest, exports: dict[int, Exported]) -> Exported:
    return exports[request.param]


@pytest.fixture(scope="session")
def request_for(
    exports: dict[int, Exported],
    checkpoint: Path,
    calibration: npt.NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> RequestFor:
    def make(**changes: Any) -> ExportRequest:
        request = ExportRequest(
            checkpoint=checkpoint,
            folder=tmp_path_factory.mktemp("quantized"),
            calibration=calibration,
            written={"fp32": exports[18].path},
            tolerance=LOOSE,
        )
        return dataclasses.replace(request, **changes)

    return make


@pytest.fixture(scope="session")
def int8(request_for: RequestFor) -> Int8:
    """Return what quantizes for a target, once, with the first convolution in int8 or, as that is faster, in float."""
    made: dict[tuple[str, bool], Exported] = {}

    def export(target: Target, first_in_float: bool) -> Exported:
        key = (target, first_in_float)
        if key not in made:
            with steady_races(in_float=(0,) if first_in_float else (), host=target):
                made[key] = OnnxInt8Exporter().export(request_for(target=target))
        return made[key]

    return export
