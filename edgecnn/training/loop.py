"""The training loop: one-cycle schedule, the best weights by validation, the test set looked at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from edgecnn.data import Dataset, LabelledImages
from edgecnn.errors import TrainingError
from edgecnn.host import usable_threads
from edgecnn.nets import Deployed
from edgecnn.spec import Frozen
from edgecnn.training.augment import augment_light
from edgecnn.training.recipe import Recipe


class Epoch(Frozen, frozen=True):
    """What one pass over the training images came to; `best` says whether its weights were kept."""

    number: int
    loss: float
    lr: float
    val_loss: float
    val_accuracy: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class Trained:
    """The network with its best weights, and the road there."""

    net: nn.Module
    history: list[Epoch]
    seconds: float


def fit(
    net: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    device: str = "cpu",
    on_epoch: Callable[[Epoch, nn.Module], None] = lambda epoch, net: None,
) -> Trained:
    """Train and return the weights that were best on the validation images (ties: the lower loss).

    Raises:
        TrainingError: the loss is no longer a finite number.
    """
    recipe = recipe.resolve(len(dataset.train))
    if not (recipe.epochs and recipe.batch_size and recipe.lr):
        raise ValueError("resolve() fills these in")
    torch.set_num_threads(usable_threads())
    model = Deployed(net, dataset.preprocess).to(device)
    # Batches of even size: a last one of a single image would stop batch norm where the planes are one pixel.
    batches = max(1, math.ceil((len(dataset.train) - 1) / recipe.batch_size))
    optimizer = _optimizer(net, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=max(batches * recipe.epochs, 5), pct_start=0.25, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = (torch.from_numpy(array) for array in (dataset.train.pixels, dataset.train.labels))
    best_rank, best_state, history = (-1.0, -math.inf), copy.deepcopy(net.state_dict()), []
    start = time.perf_counter()
    for number in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        net.train()
        total = lr = 0.0
        for batch in torch.tensor_split(torch.randperm(len(labels), generator=generator), batches):
            loss = _step(model, images[batch], labels[batch].to(device), optimizer, recipe, generator)
            lr = float(schedule.get_last_lr()[0])
            schedule.step()
            total += loss * len(batch)
        logits = predict_logits(model, dataset.val)
        truth = torch.from_numpy(dataset.val.labels)
        val_loss = float(functional.cross_entropy(torch.from_numpy(logits), truth))
        if not math.isfinite(val_loss):
            raise TrainingError(f"the validation loss became {val_loss}: use a smaller --lr (it is {recipe.lr})")
        val_accuracy = float((logits.argmax(1) == dataset.val.labels).mean())
        rank = (val_accuracy, -val_loss)
        if rank > best_rank:
            best_state = copy.deepcopy(net.state_dict())
        epoch = Epoch(
            number=number,
            loss=total / len(labels),
            lr=lr,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.perf_counter() - began,
            best=rank > best_rank,
        )
        best_rank = max(best_rank, rank)
        history.append(epoch)
        on_epoch(epoch, net)
    net.load_state_dict(best_state)
    return Trained(net=net.eval(), history=history, seconds=time.perf_counter() - start)


def predict_logits(model: Deployed, images: LabelledImages, batch_size: int = 500) -> npt.NDArray[np.float32]:
    """Compute the logits (N, classes) of one split, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        parts = [
            model.logits(torch.from_numpy(images.pixels[start : start + batch_size]).to(device)).cpu().numpy()
            for start in range(0, len(images), batch_size)
        ]
    return np.concatenate(parts)


def _step(
    model: Deployed,
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    generator: torch.Generator,
) -> float:
    pixels = images.to(labels.device).float()
    if recipe.augment == "light":
        pixels = augment_light(pixels, generator)
    loss = functional.cross_entropy(model.logits(pixels), labels, label_smoothing=recipe.label_smoothing)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"the loss became {value}: use a smaller --lr (it is {recipe.lr})")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
    optimizer.step()
    return value


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        # SGD's decay acts through the gradient and so is scaled by the learning rate twice over.
        groups[0]["weight_decay"] = recipe.weight_decay / 40
        return torch.optim.SGD(groups, lr=recipe.lr or 0.0, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr or 0.0)
