"""Train on a source and write a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from edgecnn import __version__, host
from edgecnn.data import DataOptions, Dataset
from edgecnn.errors import UsageError
from edgecnn.files import write_atomic
from edgecnn.nets import build_net, measure_cost
from edgecnn.nets.build import default_config
from edgecnn.runs import CHECKPOINT, CONFIG, METRICS, Metrics, RunConfig
from edgecnn.spec import ModelConfig, to_json
from edgecnn.training.checkpoint import Header, save_checkpoint
from edgecnn.training.evaluate import evaluate_run
from edgecnn.training.loop import Epoch, fit
from edgecnn.training.recipe import Recipe


def train(
    dataset: Dataset,
    options: DataOptions,
    out: Path,
    model: ModelConfig | None,
    recipe: Recipe,
    device: str,
    on_epoch: Callable[[Epoch], None],
) -> Metrics:
    """Train a network on `dataset` and write checkpoint, configuration, metrics and plots into `out`.

    The checkpoint is written anew, atomically, at every epoch that is the best so far. `model` None chooses the
    network by the size of the images.

    Raises:
        UsageError: the network does not fit the images, or the device is not there.
        TrainingError: the loss is no longer a number.
    """
    devices = ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
    if device not in devices:
        known = "torch sees no CUDA device here" if len(devices) == 1 else f"torch has {', '.join(devices)}"
        raise UsageError(f"--device {device}: {known}; use --device cpu")
    dataset = _normalised(dataset)
    torch.manual_seed(recipe.seed)
    recipe = recipe.resolve(len(dataset.train))
    model = model or default_config(dataset.preprocess)
    net = build_net(model, dataset.preprocess, len(dataset.labels))
    cost = measure_cost(net, dataset.preprocess)
    out.mkdir(parents=True, exist_ok=True)
    (out / METRICS).unlink(missing_ok=True)  # a folder without metrics is a run that has not finished
    header = Header(model=model, preprocess=dataset.preprocess, labels=dataset.labels)
    config = RunConfig(
        edgecnn=__version__,
        data=dataset.source,
        data_options=options,
        split=dataset.split,
        test_sha256=dataset.test.sha256(),
        labels=dataset.labels,
        preprocess=dataset.preprocess,
        model=model,
        recipe=msgspec.to_builtins(recipe),
        device=device,
        host=msgspec.to_builtins(host.fingerprint()),
    )
    write_atomic(out / CONFIG, to_json(config))

    def keep(epoch: Epoch, net: nn.Module) -> None:
        if epoch.best:
            save_checkpoint(out / CHECKPOINT, net, header)
        on_epoch(epoch)

    trained = fit(net, dataset, recipe, device, keep)
    save_checkpoint(out / CHECKPOINT, trained.net, header)
    return evaluate_run(trained.net, dataset, trained.history, trained.seconds, cost, out, config=config)


def _normalised(dataset: Dataset) -> Dataset:
    """Set the normalisation to the training pixels' own mean, rounded, and standard deviation."""
    pixels = dataset.train.pixels
    scale = float(np.float32(1 / max(float(pixels.std(dtype=np.float64)), 1.0)))
    preprocess = msgspec.structs.replace(
        dataset.preprocess, zero_point=round(float(pixels.mean(dtype=np.float64))), scale=scale
    )
    return dataclasses.replace(dataset, preprocess=preprocess)
