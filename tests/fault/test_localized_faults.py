"""Planted faults are found where they were planted, and nowhere where there are none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from fault.faults import ALLOWED, FAULTS, Fault, plant
from fault.where import localized

PLACED = [name for name, fault in FAULTS.items() if fault.block or fault.blame == "input"]
CLEAN = [
    Fault("fp32", (), ""),
    Fault("int8", (), "", artifact="int8"),
    Fault("int8 of full range", (), "", artifact="int8", bundle="full range"),
    Fault("three channels", (), "", bundle="colour"),
    *ALLOWED.values(),
]


@pytest.mark.parametrize("fault", PLACED)
def test_a_planted_fault_is_found_where_it_is(fault: str, clean: Mapping[str, Path], tmp_path: Path) -> None:
    """The first block at fault is the one that the fault was planted into, and the blame is on file, kernel or input."""
    planted = FAULTS[fault]
    copy = Path(shutil.copytree(clean[planted.bundle], tmp_path / "bundle"))
    plant(planted, copy)
    found = localized(planted, clean[planted.bundle], copy)
    assert found.first is not None, found.reason
    assert re.search(planted.block or "^input$", found.first.name), found.reason
    assert found.first.blame == planted.blame, found.reason
    assert found.advice


@pytest.mark.parametrize("pair", CLEAN, ids=lambda pair: pair.name)
def test_nothing_is_found_where_nothing_is_wrong(pair: Fault, clean: Mapping[str, Path], tmp_path: Path) -> None:
    """No block of a clean artifact is blamed, float or int8, nor one whose weight is off by its last place."""
    copy = Path(shutil.copytree(clean[pair.bundle], tmp_path / "bundle"))
    plant(pair, copy)
    found = localized(pair, clean[pair.bundle], copy)
    assert found.first is None, found.reason
    assert found.whole_reproduced
    assert found.blocks
