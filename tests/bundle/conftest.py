"""The small bundle that every test here may read and damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bundle import write


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return the folder of a small bundle."""
    return write(tmp_path / "small")
