"""`edgecnn parity` and `edgecnn bench` as a user meets them: tables, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from commands import invoke


def test_parity_passes_with_zero(bundle_folder: Path) -> None:
    """A bundle within its budget passes with exit 0, one JSON document and both questions answered."""
    result = invoke("parity", bundle_folder, "--max-drop", "20", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["verdict"], report["reference"], report["data"]) == ("PASS", "torch", "719 labelled images")
    assert [cell["candidate"] for cell in report["cells"]] == ["onnxruntime:fp32", "onnxruntime:int8"]
    for cell in report["cells"]:
        assert cell["computation"]["verdict"] == cell["decisions"]["verdict"] == "PASS"
        assert cell["decisions"]["n"] == 719


def test_parity_without_enough_evidence_leaves_with_three(bundle_folder: Path) -> None:
    """A budget that 719 images cannot show to be kept is INCONCLUSIVE, and that is not a success."""
    result = invoke("parity", bundle_folder, "--max-drop", "0.01", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["verdict"] == "INCONCLUSIVE"
    assert all(cell["decisions"]["images_needed"] != 0 for cell in report["cells"])
    assert result.stderr.splitlines() == ["edgecnn: parity of bundle: INCONCLUSIVE"]


def test_parity_of_a_wrong_artifact_leaves_with_three(bundle_folder: Path, tmp_path: Path) -> None:
    """Where the data is other than the bundle's and the candidate loses its accuracy, the verdict is no."""
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    spoil_head(folder)
    result = invoke("parity", folder, "--max-drop", "20", "--json")
    assert result.exit_code == 3
    cells = {cell["artifact"]: cell for cell in json.loads(result.stdout)["cells"]}
    assert cells["fp32"]["computation"]["verdict"] == "FAIL"
    assert cells["fp32"]["decisions"]["verdict"] == "FAIL"
    assert cells["int8"]["computation"]["verdict"] == "PASS"


def spoil_head(folder: Path) -> None:
    """Make the fp32 artifact say 0 to everything, and record the new file's hash as if it were meant."""
    import hashlib

    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(folder / "fp32.onnx"))
    head = next(node for node in model.graph.node if "logits" in node.output)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] += 50
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    data = model.SerializeToString()
    (folder / "fp32.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["fp32.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_parity_without_data_asks_the_goldens(bundle_folder: Path, tmp_path: Path) -> None:
    """Where the bundle's data is gone the first question alone is answered, and stderr says why."""
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"]["data"] = str(tmp_path / "gone")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = invoke("parity", folder, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["verdict"], report["data"]) == (0, "PASS", None)
    assert all(cell["decisions"] is None for cell in report["cells"])
    assert "decisions are not measured; name some with --data" in result.stderr


def test_parity_text_has_a_row_for_each_candidate(bundle_folder: Path) -> None:
    """Without --json the same is a table that names the candidates and the verdict."""
    result = invoke("parity", bundle_folder, "-c", "onnxruntime:fp32", "-c", "reference:fp32", "--max-drop", "20")
    assert result.exit_code == 0
    assert "onnxruntime:fp32" in result.stdout
    assert "reference:fp32" in result.stdout
    assert "PASS" in result.stdout


def test_bench_reports_what_it_measured(bundle_folder: Path) -> None:
    """`bench --json` has latency, throughput, ratio, cold start, memory, conditions and trust for each candidate."""
    result = invoke("bench", bundle_folder, "--seconds", "0.05", "--cold-runs", "1", "--batch", "2", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["batch"], report["threads"]) == (2, 1)
    assert report["host"]["cores"] == os.cpu_count()
    assert report["trust"]["trusted"] is (not report["trust"]["reasons"])
    assert [row["artifact"] for row in report["rows"]] == ["fp32", "int8"]
    for row in report["rows"]:
        latency, cold = row["latency"], row["cold_start"]
        assert row["size"] == (bundle_folder / f"{row['artifact']}.onnx").stat().st_size
        assert 0 < latency["p50_us"] <= latency["p90_us"] <= latency["p99_us"] <= latency["max_us"]
        assert latency["n"] >= 8
        assert latency["images_per_second"] == pytest.approx(2e6 / latency["p50_us"])
        assert cold["runs"] == 1
        parts = cold["interpreter_ms"] + cold["import_ms"] + cold["load_ms"] + cold["first_run_ms"]
        assert cold["total_ms"] == pytest.approx(parts, rel=0.01)
        assert cold["peak_mb"] > 10
    first = report["rows"][0]["ratio"]
    assert (first["median"], first["low"], first["high"]) == (1, 1, 1)


def test_bench_text_names_candidates_and_conditions(bundle_folder: Path) -> None:
    """Without --json the same is a table with a row for each candidate and the conditions under it."""
    result = invoke("bench", bundle_folder, "-c", "onnxruntime:int8", "--seconds", "0.05", "--cold-runs", "0")
    assert result.exit_code == 0
    assert re.search(r"^onnxruntime:int8 +\d", result.stdout, re.M)
    assert "batch 1, 1 thread(s)" in result.stdout
    assert "measurement: " in result.stdout
    assert "cold start" not in result.stdout
