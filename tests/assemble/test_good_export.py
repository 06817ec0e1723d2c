"""A good export: a whole bundle with its evidence, made from training images alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from assemble.quick import LOOSE, Exporters, Run, beside, export, quick_exporters

from edgecnn.bundle import Bundle
from edgecnn.manifest import Manifest
from edgecnn.parity import ParityReport, Verdict


@dataclasses.dataclass
class Made:
    """One good export, and what its exporters were asked for."""

    out: Path
    manifest: Manifest
    report: ParityReport
    exporters: Exporters


@pytest.fixture(scope="module")
def good(run_folder: Path, bundle_folder: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("good") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        exporters = quick_exporters(bundle_folder, tmp_path_factory.mktemp("worse"), patch)
        return Made(out, *export(run_folder, run, out, target="arm64", opset=20), exporters)


def test_a_good_export_is_a_whole_bundle(good: Made, run_folder: Path, run: Run) -> None:
    """The folder appears with nothing beside it, verifies, and its manifest is the one that was returned."""
    out, manifest, report = good.out, good.manifest, good.report
    assert beside(out) == {"digits"}
    bundle = Bundle.open(out)
    bundle.verify()
    assert json.loads((out / "manifest.json").read_text()) == json.loads(msgspec.json.encode(manifest))
    assert set(manifest.artifacts) == {"fp32", "int8", "checkpoint"}
    assert report.verdict is Verdict.PASS
    assert manifest.name == "digits"
    assert manifest.labels == tuple("0123456789")
    assert (out / "labels.txt").read_text().split() == list("0123456789")
    assert (out / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()
    assert manifest.preprocess == run[0].preprocess
    assert manifest.tolerance.max_drop == LOOSE
    assert manifest.artifacts["int8"].details == {"copied": True}


def test_the_evidence_is_in_the_manifest(good: Made, run: Run) -> None:
    """Parity, latency and test accuracy are recorded as measured, with nothing forced."""
    evidence = json.loads((good.out / "manifest.json").read_text())["evidence"]
    assert evidence["parity"] == json.loads(msgspec.json.encode(good.report))
    assert evidence["forced"] == []
    assert evidence["test_accuracy"]["n"] == len(run[2].test)
    assert set(evidence["latency"]) == {"fp32", "int8"}
    assert all(row["n"] > 0 and row["p50_us"] > 0 for row in evidence["latency"].values())
    assert good.manifest.provenance.test_sha256 == run[2].test.sha256()


def test_goldens_are_test_images_of_every_class(good: Made, run: Run) -> None:
    """The goldens are thirty-two test images with their labels, as many classes as there are among them."""
    goldens = Bundle.open(good.out).goldens()
    test = run[2].test
    known = {image.tobytes(): int(label) for image, label in zip(test.pixels, test.labels, strict=True)}
    assert len(goldens.pixels) == 32
    assert [known[image.tobytes()] for image in goldens.pixels] == goldens.labels.tolist()
    assert set(goldens.labels.tolist()) == set(range(10))
    assert set(goldens.recorded) == {"fp32", "int8"}
    assert not np.array_equal(goldens.recorded["fp32"], goldens.recorded["int8"])


def test_no_exporter_is_handed_a_test_image(good: Made, run: Run) -> None:
    """The pixels that the exporters were given are all among the training images and none among the test images."""
    exporters, dataset = good.exporters, run[2]
    train, test = ({image.tobytes() for image in part.pixels} for part in (dataset.train, dataset.test))
    for name in ("onnx", "onnx-int8"):
        (request,) = exporters[name].requests
        given = [image.tobytes() for image in request.calibration]
        assert len(given) == 256
        assert set(given) <= train
        assert not set(given) & test
        assert (request.target, request.opset) == ("arm64", 20)
        assert request.validation is not None
        assert not {image.tobytes() for image in request.validation[0]} & test
        assert (request.tolerance.max_drop, request.force) == (LOOSE, False)
    assert exporters["onnx"].requests[0].written == {}
    assert set(exporters["onnx-int8"].requests[0].written) == {"fp32"}


def test_an_empty_folder_is_filled(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """A folder that was made for the bundle beforehand is used."""
    out.mkdir(parents=True)
    export(run_folder, run, out, "onnx")
    Bundle.open(out).verify()
    assert beside(out) == {"digits"}
