"""The contract of an exporter: it writes one kind of artifact from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.images import Pixels
from edgecnn.spec import Format, Target, Tolerance

Labelled = tuple[Pixels, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class ExportRequest:
    """What an exporter is given.

    `folder` is where to write; `written` holds the artifacts made before, by name; `calibration` is uint8 NHWC
    pixels of training images; `opset` None means the lowest the exporter emits faithfully. `validation` is pixels and
    labels by which remedies are judged, `train` others to train under rounding on, never test images; `tolerance` says what it may lose. `force` writes
    what does not pay. `say` is told of progress.
    """

    checkpoint: Path
    folder: Path
    calibration: Pixels
    target: Target = "any"
    opset: int | None = None
    written: Mapping[str, Path] = field(default_factory=dict)
    validation: Labelled | None = None
    train: Labelled | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    force: bool = False
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Exported:
    """One artifact that was written; `details` is its exporter's account, for the manifest."""

    path: Path
    format: Format
    precision: str
    target: Target
    details: dict[str, Any]


class Exporter(Protocol):
    """Writes the artifact called `artifact`; `needs` names artifacts that must be in `written` before.

    A class may also state `requires: dict[str, str]`, from a module's name to the way to install it.
    """

    name: str
    artifact: str
    needs: tuple[str, ...]

    def export(self, request: ExportRequest) -> Exported:
        """Write the artifact, read it back, and raise an ExportError if it is not what was asked for."""
