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
from edgecnn.files import sweep_file, write_atomic
from edgecnn.layers import ModelConfig
from edgecnn.nets import Deployed, NetChoice, build_net, choose_net, measure_cost
from edgecnn.runs import CHECKPOINT, CONFIG, METRICS, Metrics, RunConfig, read_run
from edgecnn.spec import to_json
from edgecnn.training import state
from edgecnn.training.augment import parse_augment
from edgecnn.training.calibration import fit_temperature, fold_temperature
from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint
from edgecnn.training.evaluate import evaluate_run
from edgecnn.training.find_lr import find_lr
from edgecnn.training.loop import Epoch, Trained, Training, predict_logits
from edgecnn.training.processes import ALONE, Processes
from edgecnn.training.recipe import Recipe, is_mirrored

NetWanted = NetChoice | ModelConfig | None


def train(
    dataset: Dataset,
    options: DataOptions,
    out: Path,
    model: NetWanted,
    recipe: Recipe,
    device: str,
    on_epoch: Callable[[Epoch], None],
    *,
    processes: Processes = ALONE,
    resume: bool = False,
    auto_lr: bool = False,
    calibrate: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Metrics | None:
    """Train a network on `dataset` and write checkpoint, configuration, metrics and report into `out`.

    The checkpoint is written anew, atomically, at every epoch that is the best so far, and the state of the training
    at every epoch and every two minutes. `model` None chooses the default network for the size of the images. Where
    several processes train, the first writes and returns the metrics, the others return None.

    Raises:
        UsageError: the network does not fit the images, the device is not there, or `out` holds another training.
        TrainingError: the loss is no longer a number, or another process has died.
    """
    check_device(device)
    if resume and (out / METRICS).exists() and not (out / state.FILE).exists():
        say(f"{out}: has finished already")
        return read_run(out)[1] if processes.first else None
    if (out / state.FILE).exists() and not resume:
        raise UsageError(f"{out}: holds an unfinished training; go on with it by --resume, or remove the folder")
    dataset = normalised(dataset)
    torch.manual_seed(recipe.seed)
    if recipe.augment is None:
        recipe = msgspec.structs.replace(recipe, augment=parse_augment("light", is_mirrored(dataset)))
    recipe = recipe.resolve(len(dataset.train))
    if not isinstance(model, ModelConfig):
        model = choose_net(model or NetChoice(), dataset.preprocess, len(dataset.labels))
    net = build_net(model, dataset.preprocess, len(dataset.labels))
    cost = measure_cost(net, dataset.preprocess)
    teacher = _teacher(recipe, dataset, device)
    if auto_lr and not (resume and (out / state.FILE).exists()):
        found = processes.of_first(find_lr(net, dataset, recipe, device, teacher))
        recipe = msgspec.structs.replace(recipe, lr=found)
        say(f"learning rate {recipe.lr:g}, found")
    elif auto_lr:
        recipe = msgspec.structs.replace(recipe, lr=_recorded_lr(out, recipe))
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
        processes=processes.count,
        train_sha256=dataset.train.fingerprint(),
        val_sha256=dataset.val.fingerprint(),
    )
    if recipe.amp and device == "cpu" and host.has_bfloat16() is False:
        say("--amp: this CPU has no bfloat16 instructions; training will be slower, not faster")
    training = Training(net, dataset, recipe, device, processes, teacher)
    if resume and (out / state.FILE).exists():
        before = state.load_state(out / state.FILE, training, config).processes
        say(f"{out}: goes on in epoch {training.progress.epoch}, after {training.progress.seconds:.0f} s of training")
        if before != processes.count:
            say(f"processes: {before} before, {processes.count} now: the result is the same but for rounding and for which values dropout drops")  # fmt: skip
    elif resume:
        say(f"{out}: nothing to resume; starts anew")
    if processes.first:
        out.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, CONFIG, METRICS, state.FILE):
            sweep_file(out / name)
        (out / METRICS).unlink(missing_ok=True)  # a folder without metrics is a run that has not finished
        write_atomic(out / CONFIG, to_json(config))
    trained = _run(training, out, header, config, on_epoch)
    if not processes.first:
        return None
    temperature = _calibrated(trained.net, dataset) if calibrate else 1.0
    save_checkpoint(out / CHECKPOINT, trained.net, header)
    metrics = evaluate_run(
        trained.net, dataset, trained.history, trained.seconds, cost, out, config=config, temperature=temperature
    )
    (out / state.FILE).unlink(missing_ok=True)
    return metrics


def _run(
    training: Training, out: Path, header: Header, config: RunConfig, on_epoch: Callable[[Epoch], None]
) -> Trained:
    """Train to the end, writing the best weights and the state as they come."""

    def keep(epoch: Epoch, net: nn.Module) -> None:
        if not training.processes.first:
            return
        if epoch.best:
            save_checkpoint(out / CHECKPOINT, net, header)
        on_epoch(epoch)

    def save(at: Training) -> None:
        if at.processes.first:
            state.save_state(out / state.FILE, at, config)

    return training.run(keep, save)


def check_device(device: str) -> None:
    """See that torch has the device.

    Raises:
        UsageError: it has not.
    """
    devices = ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
    if device not in devices:
        known = "torch sees no CUDA device here" if len(devices) == 1 else f"torch has {', '.join(devices)}"
        raise UsageError(f"--device {device}: {known}; use --device cpu")


def normalised(dataset: Dataset) -> Dataset:
    """Set the normalisation to the training pixels' own mean, rounded, and standard deviation."""
    mean, deviation = dataset.train.statistics()
    scale = float(np.float32(1 / max(deviation, 1.0)))
    preprocess = msgspec.structs.replace(dataset.preprocess, zero_point=round(mean), scale=scale)
    return dataclasses.replace(dataset, preprocess=preprocess)


def _teacher(recipe: Recipe, dataset: Dataset, device: str) -> Deployed | None:
    """Load the network to be followed.

    Raises:
        UsageError: it knows other classes or sees other images.
    """
    if recipe.teacher is None:
        return None
    found = load_checkpoint(Path(recipe.teacher))
    if found.labels != dataset.labels:
        raise UsageError(f"--teacher {recipe.teacher}: knows other classes ({len(found.labels)} against {len(dataset.labels)} here, or other names)")  # fmt: skip
    if found.preprocess.shape != dataset.preprocess.shape:
        height, width, channels = found.preprocess.shape
        raise UsageError(f"--teacher {recipe.teacher}: sees images of {width}x{height}x{channels}; use --image-size {height} --channels {channels}")  # fmt: skip
    net = found.build().requires_grad_(False)
    return Deployed(net, found.preprocess).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch declares it for tensors only


def _recorded_lr(out: Path, recipe: Recipe) -> float | None:
    """Read the rate that was found when the training began."""
    try:
        return float(msgspec.json.decode((out / CONFIG).read_bytes(), type=RunConfig).recipe["lr"])
    except (OSError, msgspec.MsgspecError, KeyError):
        return recipe.lr


def _calibrated(net: nn.Module, dataset: Dataset) -> float:
    """Fit the temperature on the validation images and fold it into the last layer."""
    logits = predict_logits(Deployed(net, dataset.preprocess), dataset.val)
    temperature = fit_temperature(logits, dataset.val.labels)
    if temperature != 1.0:
        fold_temperature(net, temperature, dataset.preprocess)
    return temperature
