"""`edgecnn export`: what goes to stdout and stderr, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

from assemble.quick import Exporters, beside, invoke

from edgecnn.bundle import Bundle


def test_export_reports_on_stdout_and_talks_on_stderr(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """`export --json` prints the manifest and nothing else on stdout, and each step on stderr."""
    result = invoke("export", run_folder, "-o", out, "--max-drop", "20", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((out / "manifest.json").read_text())
    steps = ["exporting fp32", "exporting int8", "recording goldens", "checking parity", "measuring latency"]
    assert [line[: len(step)] for line, step in zip(result.stderr.splitlines(), steps, strict=True)] == steps


def test_export_prints_what_it_wrote(run_folder: Path, out: Path, exporters: Exporters) -> None:
    """Without --json every artifact has a line with its size and path, the default is marked, and parity follows."""
    result = invoke("export", run_folder, "-o", out, "--max-drop", "20")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if str(out) in line}
    manifest = Bundle.open(out).manifest
    assert set(rows) == set(manifest.artifacts)
    for name, row in rows.items():
        path = out / manifest.artifacts[name].path
        assert f"{path.stat().st_size / 1000:.1f} kB  {path}" in row
        assert row.endswith("(default)") is (name == manifest.default_artifact)
    assert "onnxruntime:int8" in result.stdout.rpartition(str(out))[2]


def test_the_shipped_int8_exporter_says_what_it_needs(run_folder: Path, out: Path) -> None:
    """On the command line int8 alone is refused in one line with exit 2, and nothing is written."""
    result = invoke("export", run_folder, "-o", out, "--exporter", "onnx-int8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "edgecnn: exporter onnx-int8 needs the artifact fp32, which no exporter before it writes\n"
    )
    assert beside(out) == set()


def test_an_opset_that_cannot_be_had_is_one_line(run_folder: Path, out: Path) -> None:
    """Opset 17 on the command line is refused with the reason and exit 2."""
    result = invoke("export", run_folder, "-o", out, "--opset", "17")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("edgecnn: opset 17 cannot be exported faithfully")
    assert beside(out) == set()
