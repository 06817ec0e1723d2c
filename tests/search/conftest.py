"""The search without training: a play stands for it."""

from __future__ import annotations

import contextlib

import pytest
from search.play import Acted

from edgecnn.search import run, trial


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> Acted:
    """Return the play that stands for training, export and measuring."""
    play = Acted()
    monkeypatch.setattr(trial, "train_trial", play.train)
    monkeypatch.setattr(trial, "export_int8", play.export)
    monkeypatch.setattr(trial, "measure_trial", play.measure)
    monkeypatch.setattr(run, "open_files", contextlib.nullcontext)
    monkeypatch.setattr(run, "measure_together", play.together)
    return play
