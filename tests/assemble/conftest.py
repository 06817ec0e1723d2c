"""The run that is exported, quick exporters for it, and where the bundle goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from assemble.quick import Exporters, Run, quick_exporters

from edgecnn.runs import open_run_data, read_run


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    config, metrics = read_run(run_folder)
    return config, metrics, open_run_data(config)


@pytest.fixture
def exporters(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporters:
    return quick_exporters(bundle_folder, tmp_path, monkeypatch)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "bundles" / "digits"
