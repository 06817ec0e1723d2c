"""A run folder: the checkpoint with, beside it, the resolved configuration and the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgecnn.data.dataset import DataOptions, Dataset
from edgecnn.data.open import open_data
from edgecnn.errors import CheckpointError, DataError
from edgecnn.layers import ModelConfig
from edgecnn.metrics import Accuracy, ClassScore, Mistake, ReliabilityBin
from edgecnn.spec import Frozen, Preprocess

CHECKPOINT, CONFIG, METRICS = "model.safetensors", "config.json", "metrics.json"


class RunConfig(Frozen, frozen=True):
    """Everything that `train` decided, as JSON beside the weights.

    `train_sha256` and `val_sha256` are the splits' fingerprints; None where an earlier edgecnn did not take them.
    """

    edgecnn: str
    data: str
    data_options: DataOptions
    split: str
    test_sha256: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    model: ModelConfig
    recipe: dict[str, Any]
    device: str
    host: dict[str, Any]
    processes: int = 1
    train_sha256: str | None = None
    val_sha256: str | None = None


class Metrics(Frozen, frozen=True):
    """What a run came to: accuracies, cost, time, every epoch, and what the test showed by class and by confidence.

    Scores without a `val_` are of the test split, as the network is deployed. None is what is not defined, or was
    not measured when the file was written. `ece_by_chance` is what a perfectly calibrated network would show on as
    many images. `temperature` is what the logits were divided by; the `val_` scores `_before` are those without it.
    `mistakes` are the most confident ones, the worst first; `skipped` counts images that could not be read.
    """

    test_accuracy: Accuracy
    val_accuracy: Accuracy
    best_epoch: int
    parameters: int
    macs: int
    seconds: float
    images: dict[str, int]
    confusion: tuple[tuple[int, ...], ...]
    history: tuple[dict[str, Any], ...]
    per_class: tuple[ClassScore, ...] = ()
    macro_f1: float | None = None
    balanced_accuracy: float | None = None
    auc: float | None = None
    ece: float | None = None
    ece_by_chance: float | None = None
    nll: float | None = None
    brier: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    temperature: float = 1.0
    val_ece: float | None = None
    val_nll: float | None = None
    val_ece_before: float | None = None
    val_nll_before: float | None = None
    mistakes: tuple[Mistake, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: int = 0


def read_run(folder: Path) -> tuple[RunConfig, Metrics]:
    """Read a run folder's configuration and metrics.

    Raises:
        CheckpointError: the folder is not one that `edgecnn train` wrote and finished.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=RunConfig)
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=Metrics)
    except OSError as error:
        name = Path(error.filename or folder).name
        raise CheckpointError(
            f"{folder}: {name} is missing; give a folder in which `edgecnn train` has finished"
        ) from None
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{folder}: its configuration or metrics cannot be read ({error})") from None
    return config, metrics


def open_run_data(config: RunConfig, source: str | None = None) -> Dataset:
    """Open the data of a run, from another place if `source` is given, and hold it to the same test split.

    Raises:
        DataError: the data cannot be opened, or its test split is another one.
    """
    side = config.preprocess
    options = msgspec.structs.replace(
        config.data_options, size=side.height, channels=side.channels, fit=side.fit, strict=False
    )
    dataset = open_data(source or config.data, options)
    if dataset.labels != config.labels or dataset.test.sha256() != config.test_sha256:
        raise DataError(
            f"{source or config.data}: not the data this run was trained on (its test split differs); give the same with --data"
        )
    return dataset
