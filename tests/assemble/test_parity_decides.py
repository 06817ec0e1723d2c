"""What parity decides: a bundle that fails is not written, or forced and marked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from assemble.quick import LOOSE, Exporters, Run, beside, export, invoke
from steady import steady_races
from trees import tree

from edgecnn import assemble
from edgecnn.bundle import Bundle
from edgecnn.errors import VerdictError
from edgecnn.exporter import ExportRequest
from edgecnn.parity import Verdict
from edgecnn.spec import Tolerance
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter


def test_a_failed_parity_writes_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An int8 that answers otherwise is refused with its reason, and neither folder nor remains are left."""
    with pytest.raises(VerdictError, match=r"no bundle was written: onnxruntime:int8 decisions: .*--force") as caught:
        export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01)
    assert caught.value.exit_code == 3
    assert beside(out) == set()


def test_a_wrong_computation_writes_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An fp32 whose logits are not the checkpoint's is refused, whatever its accuracy."""
    with pytest.raises(VerdictError, match=r"onnxruntime:fp32 computation: .* times torch float32's own"):
        export(run_folder, run, out, "worse-fp32", max_drop=0.99)
    assert beside(out) == set()


def test_a_failed_parity_leaves_the_old_bundle(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """A bundle that is there already is untouched when its successor is refused, and replaced when it is good."""
    export(run_folder, run, out)
    (out / "note.txt").write_text("left here by hand")
    before = tree(out)
    with pytest.raises(VerdictError):
        export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01)
    assert tree(out) == before
    export(run_folder, run, out, "onnx")
    assert set(Bundle.open(out).manifest.artifacts) == {"fp32", "checkpoint"}
    assert not (out / "note.txt").exists()
    assert beside(out) == {"digits"}


def test_recorded_answers_are_those_of_the_target(
    run_folder: Path, run: Run, out: Path, exporters: Exporters, bundle_folder: Path, tmp_path: Path
) -> None:
    """Answers recorded for an Arm CPU do not saturate as those of x86 without VNNI do, whatever machine exports."""
    from onnx.reference import ReferenceEvaluator

    request = ExportRequest(
        checkpoint=run_folder,
        folder=tmp_path,
        calibration=assemble._calibration(run[2], 0),
        target="arm64",
        written={"fp32": bundle_folder / "fp32.onnx"},
        tolerance=Tolerance(max_drop=LOOSE),
    )
    with steady_races(host="arm64"):
        path = OnnxInt8Exporter().export(request).path
    path = path.rename(tmp_path / "full-range.onnx")
    exporters["onnx-int8"].source = path
    export(run_folder, run, out, target="arm64")
    goldens = Bundle.open(out).goldens()
    model = onnx.version_converter.convert_version(onnx.load(str(path)), 19)
    exact = ReferenceEvaluator(model).run(["logits"], {"image": goldens.pixels})[0]
    largest = np.abs(exact).max()
    np.testing.assert_allclose(goldens.recorded["int8"], exact, rtol=0, atol=0.02 * largest)


def test_force_writes_and_says_so(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """Forced, the same export is written, the reasons stand in its manifest, and what failed is not the default."""
    manifest, report = export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01, force=True)
    assert report.verdict is Verdict.FAIL
    forced = json.loads((out / "manifest.json").read_text())["evidence"]["forced"]
    assert len(forced) == 1
    assert forced[0].startswith("onnxruntime:int8 decisions: ")
    assert "the budget is 1.00" in forced[0]
    assert manifest.default_artifact == "fp32"
    Bundle.open(out).verify()


def test_force_without_a_failure_records_none(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """Where nothing failed there is nothing that was forced."""
    manifest, _ = export(run_folder, run, out, force=True)
    assert manifest.evidence["forced"] == []


def test_too_few_images_is_written_and_not_the_default(
    run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """An INCONCLUSIVE artifact goes into the bundle, with its verdict, and does not become the default."""
    manifest, report = export(run_folder, run, out, max_drop=1e-5)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert manifest.default_artifact == "fp32"
    assert manifest.evidence["parity"]["verdict"] == "INCONCLUSIVE"
    assert manifest.evidence["forced"] == []


def test_the_cli_exits_with_three_when_parity_fails(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """On the command line a failed parity prints one line and leaves with 3, and --force with 0."""
    arguments = ("export", run_folder, "-o", out, "--exporter", "onnx", "--exporter", "worse-int8", "--json")
    refused = invoke(*arguments)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert refused.stderr.splitlines()[-1].startswith("edgecnn: parity failed, so no bundle was written: ")
    assert beside(out) == set()
    forced = invoke(*arguments, "--force")
    assert forced.exit_code == 0
    assert len(json.loads(forced.stdout)["evidence"]["forced"]) == 1
    shown = invoke("inspect", out)
    assert "onnxruntime:int8 decisions" in next(row for row in shown.stdout.splitlines() if row.startswith("forced"))


def test_all_that_was_forced_is_listed(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """What an exporter would have refused and what parity would have refused stand together in the manifest."""
    exporters["worse-int8"].details = {"forced": ["speed: too slow", "size: too large"]}
    manifest, _ = export(run_folder, run, out, "onnx", "worse-int8", max_drop=0.01, force=True)
    forced = manifest.evidence["forced"]
    assert forced[:2] == ["int8 speed: too slow", "int8 size: too large"]
    assert [reason.partition(":")[0] for reason in forced[2:]] == ["onnxruntime"]
