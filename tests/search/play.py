"""What stands for training, export and measuring in no time, and a search with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgecnn.data import DataOptions, Dataset
from edgecnn.exporter import Exported
from edgecnn.search import run
from edgecnn.search.result import Measured, SearchReport, Together
from edgecnn.search.space import Limits, Settings
from edgecnn.search.trial import Plan
from edgecnn.training.loop import Epoch

Curve = Callable[[Settings, int], list[float]]


def _epoch(number: int, accuracy: float) -> Epoch:
    return Epoch(number=number, loss=1.0, lr=0.1, val_loss=1.0, val_accuracy=accuracy, seconds=0.0, best=True)


def usual_curve(settings: Settings, epochs: int) -> list[float]:
    top = 0.9 + 0.03 * settings.width - 0.2 * abs(math.log(settings.lr / 0.005)) / 10
    return [top * (number + 1) / epochs for number in range(epochs)]


class Acted:
    """Plays training, export and measuring in no time, and remembers what was trained."""

    def __init__(self, curve: Curve = usual_curve) -> None:
        self.curve = curve
        self.trained: list[Settings] = []
        self.of: dict[Path, Settings] = {}

    def train(self, work: Path, settings: Settings, plan: Plan, dataset: Dataset, on_epoch: Any) -> None:
        self.trained.append(settings)
        self.of[work] = settings
        for number, accuracy in enumerate(self.curve(settings, plan.epochs), 1):
            on_epoch(_epoch(number, accuracy))
        (work / "model.safetensors").write_bytes(b"weights")

    def export(self, work: Path, dataset: Dataset, target: str, seed: int) -> Exported:
        (work / "int8.onnx").write_bytes(b"graph")
        return Exported(work / "int8.onnx", "onnx", "int8", "any", {})

    def measure(self, exported: Exported, plan: Plan, dataset: Dataset) -> Measured:
        settings = self.of[exported.path.parent]
        accuracy = max(self.curve(settings, plan.epochs))
        return Measured(
            accuracy=accuracy, latency_us=10 * settings.width + 5 * settings.depth, spread=0.0, calls=1000, cpu="one"
        )

    def together(self, sessions: Any, seconds: float) -> tuple[dict[int, Together], tuple[str, ...]]:
        """Play the measurement at the end, in which the trials after were the faster ones."""
        found = {number: 100.0 / (1 + number) for number in sessions}
        return {number: Together(latency_us=one, spread=0.0, calls=9) for number, one in found.items()}, ("a storm",)


def play_search(out: Path, trials: int = 3, limits: Limits | None = None, epochs: int = 4, **more: Any) -> SearchReport:
    plan = Plan(source="digits", options=DataOptions(), epochs=0, limits=limits or Limits())
    return run.search(plan, out, trials, epochs=epochs, **more)
