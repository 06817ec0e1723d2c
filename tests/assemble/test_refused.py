"""Destinations that are left alone, and exporters that fail or do not fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from assemble.quick import Exporters, Run, beside, export

from edgecnn.assemble import ExportOptions, export_bundle
from edgecnn.errors import ExportError, RegistryError, UsageError


@pytest.mark.parametrize("kind", ["folder with files", "folder with folders", "file"])
def test_what_is_not_a_bundle_is_not_replaced(
    kind: str, run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """Something else at the destination is refused before any work is done, and left as it is."""
    out.parent.mkdir()
    kept = {"folder with files": out / "thesis.tex", "folder with folders": out / "a" / "b", "file": out}[kind]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("months of work")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export(run_folder, run, out, force=True)
    assert kept.read_text() == "months of work"
    assert not exporters["onnx"].requests
    assert beside(out) == {"digits"}


def test_an_exporter_that_fails_leaves_nothing(run_folder: Path, run: Run, out: Path, exporters: Exporters) -> None:
    """An error half way takes the files written so far with it."""
    with pytest.raises(ExportError, match="out of luck"):
        export(run_folder, run, out, "onnx", "failing")
    assert exporters["failing"].requests
    assert beside(out) == set()


@pytest.mark.parametrize("names", [("onnx-int8",), ("onnx-int8", "onnx"), ("worse-int8", "onnx")])
def test_a_missing_need_is_said(
    names: tuple[str, ...], run_folder: Path, run: Run, out: Path, exporters: Exporters
) -> None:
    """An exporter in front of the one whose artifact it needs is the user's mistake, and names both."""
    with pytest.raises(UsageError, match=r"needs the artifact fp32, which no exporter before it writes") as caught:
        export(run_folder, run, out, *names)
    assert names[0] in str(caught.value)
    assert beside(out) == set()


def test_an_unknown_exporter_lists_the_known_ones(run_folder: Path, run: Run, out: Path) -> None:
    """A misspelt exporter is an error that names those there are."""
    with pytest.raises(RegistryError, match="no exporter is called 'onxx'; known: onnx, onnx-fp16, onnx-int8"):
        export(run_folder, run, out, "onxx")
    assert beside(out) == set()


def test_no_exporter_at_all_is_an_error(run_folder: Path, run: Run, out: Path) -> None:
    """An export of nothing is refused."""
    with pytest.raises(UsageError, match="nothing to export"):
        export_bundle(run_folder, *run, out, ExportOptions(exporters=()))
    assert beside(out) == set()
