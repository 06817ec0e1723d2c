"""What a study has come to: one row a trial, and the front of those that no other beats in both respects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edgecnn.search.space import Cost, Limits, Settings, settings_of
from edgecnn.spec import Frozen

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State = Literal["complete", "pruned", "failed", "refused"]
KIND = "edgecnn search"


class Measured(Frozen, frozen=True):
    """What was measured on a trial's int8 file: accuracy on the validation images, p50 in microseconds, on `cpu`.

    `doubts` are the reasons not to trust the latency; none is trust.
    """

    accuracy: float
    latency_us: float
    spread: float
    calls: int
    cpu: str
    doubts: tuple[str, ...] = ()


class Together(Frozen, frozen=True):
    """The p50, in microseconds, of a trial on the front where all of the front took turns, after the last trial."""

    latency_us: float
    spread: float
    calls: int


class Row(Frozen, frozen=True):
    """One trial; `val_accuracy` is the best of the float network, `passed` the limits that the trial is over.

    `command` and `folder`, what is kept of it, are given for the front only, and so is `together`, where its file is on
    this machine. The front is chosen by `int8`, which was measured in the trial.
    """

    number: int
    state: State
    settings: Settings | None
    cost: Cost | None
    epochs: int = 0
    val_accuracy: float | None = None
    int8: Measured | None = None
    passed: tuple[str, ...] = ()
    reason: str | None = None
    front: bool = False
    command: str | None = None
    folder: str | None = None
    together: Together | None = None


class SearchReport(Frozen, frozen=True):
    """A study as written to `study.json`; the rows are in the order of the trials."""

    data: str
    split: str
    study_name: str
    storage: str
    epochs: int
    usual_epochs: int
    image_sizes: tuple[int, ...]
    seed: int
    device: str
    val_images: int
    limits: Limits
    warnings: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    kind: str = KIND


def pareto_front(accuracies: Sequence[float], latencies: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Mark the points (N,) that no other point equals or beats in both respects, and beats in one."""
    accuracy, latency = np.asarray(accuracies, dtype=float), np.asarray(latencies, dtype=float)
    order = np.lexsort((-accuracy, latency))  # the fastest first; of equally fast ones the most accurate
    front = np.zeros(len(order), dtype=bool)
    best, fastest = -np.inf, -np.inf
    for index in order:
        equal = accuracy[index] == best and latency[index] == fastest
        if accuracy[index] > best or equal:
            front[index], best, fastest = True, accuracy[index], latency[index]
    return front


def row_of(trial: FrozenTrial, limits: Limits) -> Row:
    """Read one finished trial from the study, and hold it to the limits of today."""
    import msgspec

    attributes = trial.user_attrs
    cost = msgspec.convert(attributes["cost"], Cost) if "cost" in attributes else None
    int8 = msgspec.convert(attributes["int8"], Measured) if "int8" in attributes else None
    curve = attributes.get("curve", [])
    state: State = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")  # type: ignore[assignment]
    return Row(
        number=trial.number,
        state="refused" if state == "pruned" and not curve else state,
        settings=settings_of(trial.params) if len(trial.params) == len(Settings.__struct_fields__) else None,
        cost=cost,
        epochs=len(curve),
        val_accuracy=max(curve, default=None),
        int8=int8,
        passed=limits.passed(cost, int8.latency_us if int8 else None) if cost else (),
        reason=attributes.get("reason", "its process ended" if state == "failed" else None),
    )
