"""A training on its way, on disk: what `--resume` goes on from, bit for bit."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import msgspec
import torch

from edgecnn.errors import CheckpointError, UsageError
from edgecnn.files import write_atomic
from edgecnn.runs import RunConfig
from edgecnn.training.loop import Epoch, Progress, Training

FILE = "resume.pt"
_OF_DATA = {
    "labels": "the classes",
    "split": "the splits",
    "train_sha256": "the training images or their labels",
    "val_sha256": "the validation images or their labels",
    "test_sha256": "the test images or their labels",
    "preprocess": "size, colour or brightness",
}


def save_state(path: Path, training: Training, config: RunConfig) -> None:
    """Write weights, their average, the best so far, the optimizer and the progress, atomically, after their SHA-256."""
    progress = training.progress
    state = {
        "config": msgspec.json.encode(config).decode(),
        "net": training.net.state_dict(),
        "average": training.average.net.state_dict(),
        "best": training.best,
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "peak": training.peak,
        "progress": (progress.epoch, progress.batch, progress.loss, progress.seconds, progress.epoch_seconds),
        "history": [msgspec.to_builtins(epoch) for epoch in progress.history],
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    # torch.load does not notice a flipped bit.
    write_atomic(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path, training: Training, config: RunConfig) -> RunConfig:
    """Put a training where the saved one was, and return what was decided when that was begun.

    The number of processes may be another: weights, optimizer and progress are the same in all of them.

    Raises:
        UsageError: the saved training is of another net, data set or recipe; the first difference is named.
        CheckpointError: the file is damaged.
    """
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise CheckpointError(f"{path}: is damaged; remove it to start anew")
    # To the CPU: what belongs on the device is copied there, and the optimizer's step counts do not.
    state = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
    try:
        saved = msgspec.json.decode(state["config"], type=RunConfig)
    except (KeyError, TypeError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path}: of another version of edgecnn ({error}); remove it to start anew") from None
    refuse_another(path, saved, config)
    try:
        training.net.load_state_dict(state["net"])
        training.average.net.load_state_dict(state["average"])
        training.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # there is none where mixed precision was off
            training.scaler.load_state_dict(state["scaler"])
        training.best, training.peak = state["best"], state["peak"]
        history = [msgspec.convert(row, type=Epoch) for row in state["history"]]
        epoch, batch, loss, seconds, epoch_seconds = state["progress"]
    except (RuntimeError, KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: does not hold this net ({reason}); remove it to start anew") from None
    training.progress = Progress(epoch, batch, loss, seconds, epoch_seconds, history)
    return saved


def refuse_another(path: Path, saved: RunConfig, config: RunConfig) -> None:
    """See that the training to be resumed is this one.

    Raises:
        UsageError: it is not; what differs is named.
    """
    if saved.model != config.model:
        was, now = saved.model.net, config.model.net
        differs = "its layers differ" if was == now else f"not {now}"
        raise UsageError(f"{path.parent}: was training another net, {was}: {differs}; resume with the same options")
    for name in ("size", "channels", "fit", "val", "test", "seed", "group_from"):
        was, now = getattr(saved.data_options, name), getattr(config.data_options, name)
        if was != now:
            raise UsageError(f"{path.parent}: was started with {name} {was} for the data, not {now}; resume with the same options")  # fmt: skip
    if saved.train_sha256 is None:
        raise UsageError(f"{path.parent}: was started by an earlier edgecnn, which did not note its training images; remove the folder to start anew")  # fmt: skip
    for name, what in _OF_DATA.items():
        if getattr(saved, name) != getattr(config, name):
            raise UsageError(f"{path.parent}: was training on other data or another split ({what} differ); resume with the same data and options")  # fmt: skip
    for name, value in config.recipe.items():
        if saved.recipe.get(name) != value:
            raise UsageError(f"{path.parent}: was started with {name} {saved.recipe.get(name)}, not {value}; resume with the same options")  # fmt: skip
