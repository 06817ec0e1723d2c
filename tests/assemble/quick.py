"""Exports that need not wait for torch and the quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from edgecnn import assemble, registry
from edgecnn.assemble import ExportOptions, export_bundle
from edgecnn.bench import latency as latency_module
from edgecnn.cli import cli
from edgecnn.data import Dataset
from edgecnn.errors import ExportError
from edgecnn.exporter import Exported, ExportRequest
from edgecnn.manifest import Manifest
from edgecnn.parity import ParityReport
from edgecnn.runs import Metrics, RunConfig

Run = tuple[RunConfig, Metrics, Dataset]
LOOSE = 0.2


class Copying:
    """An exporter that hands out a file made before, so that a test need not wait for torch and the quantizer."""

    def __init__(
        self, artifact: str, source: Path, needs: tuple[str, ...] = (), fault: Exception | None = None
    ) -> None:
        self.name = artifact
        self.artifact = artifact
        self.needs = needs
        self.source = source
        self.fault = fault
        self.requests: list[ExportRequest] = []
        self.details: dict[str, Any] = {"copied": True}

    def export(self, request: ExportRequest) -> Exported:
        self.requests.append(request)
        path = request.folder / f"{self.artifact}.onnx"
        shutil.copy(self.source, path)
        if self.fault is not None:
            raise self.fault
        return Exported(
            path=path, format="onnx", precision=self.artifact[:4], target=request.target, details=self.details
        )


Exporters = dict[str, Copying]


def quick_exporters(bundle_folder: Path, folder: Path, patch: pytest.MonkeyPatch) -> Exporters:
    """Put quick exporters into the registry: good ones, and some whose artifact answers `0` too often."""
    worse = folder / "worse.onnx"
    model = onnx.load(str(bundle_folder / "fp32.onnx"))
    head = next(node for node in model.graph.node if "logits" in node.output)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] += 8
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(worse))
    made = {
        "onnx": Copying("fp32", bundle_folder / "fp32.onnx"),
        "onnx-int8": Copying("int8", bundle_folder / "int8.onnx", needs=("fp32",)),
        "worse-fp32": Copying("fp32", worse),
        "worse-int8": Copying("int8", worse, needs=("fp32",)),
        "failing": Copying("int8", worse, fault=ExportError("out of luck")),
    }
    real = registry.get
    patch.setattr(
        registry,
        "get",
        lambda group, name: made[name] if group == registry.EXPORTERS and name in made else real(group, name),
    )
    patch.setattr(assemble, "_LATENCY_SECONDS", 0.01)
    patch.setattr(latency_module, "_ROUND_SECONDS", 0.001)
    patch.setattr(latency_module, "_WARMUP_SECONDS", 0.001)
    return made


def export(run_folder: Path, run: Run, out: Path, *names: str, **options: Any) -> tuple[Manifest, ParityReport]:
    chosen = ExportOptions(exporters=names or ("onnx", "onnx-int8"), **{"max_drop": LOOSE, **options})
    return export_bundle(run_folder, *run, out, chosen)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()
