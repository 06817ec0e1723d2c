"""Fixtures of measuring over time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from over_time.machine import Machine

from edgecnn.bench import latency, paced, soak


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], Machine]:
    """Let the bench's modules read a machine's clock."""

    def plant(machine: Machine) -> Machine:
        for module in (soak, paced, latency):
            monkeypatch.setattr(module, "time", machine)
        return machine

    return plant
