"""The training loop: averaged weights, chosen by validation; every step depends on seed and number alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from edgecnn.training.augment import augment, draw, partners
from edgecnn.training.average import Average, decay_of
from edgecnn.training.batches import Batch, Batches
from edgecnn.training.chance import derived_seed, generator
from edgecnn.training.loss import class_weights, summed_loss
from edgecnn.training.processes import ALONE, Processes, share_norms
from edgecnn.training.recipe import Recipe
from edgecnn.training.schedule import rate

_SAVE_SECONDS = 120.0  # at most this much is lost to a killed process, beyond what an epoch takes to be saved


class Epoch(Frozen, frozen=True):
    """What one pass over the training images came to; `best` says whether its weights were kept.

    `loss` is that of training, augmented and smoothed; validation is of the averaged weights, which are shipped.
    """

    number: int
    loss: float
    lr: float
    val_loss: float
    val_accuracy: float
    seconds: float
    best: bool


@dataclass
class Progress:
    """How far a training is: what, beside weights and optimizer, its next step depends on."""

    epoch: int = 1
    batch: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)

    def keeps(self, accuracy: float, images: int) -> bool:
        """Say whether an epoch's weights replace those kept: they do unless clearly worse than the best so far.

        Clearly is by more than the best accuracy's own standard error on so many validation images (Breiman et al.
        1984, the one-standard-error rule). The highest of many accuracies is mostly luck, and the rate falls: of
        epochs that the images cannot tell apart the last is the better one.
        """
        best = max((row.val_accuracy for row in self.history), default=0.0)
        return accuracy >= best - math.sqrt(best * (1 - best) / max(1, images))

    @property
    def idle(self) -> int:
        """Count the epochs since the last that was better than all before it: in accuracy, then in loss."""
        ranks = [(row.val_accuracy, -row.val_loss) for row in self.history]
        return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0


@dataclass(frozen=True)
class Trained:
    """The network with its best weights, and the road there."""

    net: nn.Module
    history: list[Epoch]
    seconds: float


class Training:
    """A network on its way: it can be stopped after any step, saved, and gone on with bit for bit."""

    def __init__(
        self,
        net: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        device: str = "cpu",
        processes: Processes = ALONE,
        teacher: Deployed | None = None,
    ) -> None:
        self.recipe = recipe.resolve(len(dataset.train))
        if self.recipe.epochs is None or self.recipe.augment is None or self.recipe.lr is None:
            raise ValueError("resolve() fills these in")
        self.parts, self.epochs, self.peak = self.recipe.augment, self.recipe.epochs, self.recipe.lr
        self.dataset, self.device, self.processes, self.teacher = dataset, device, processes, teacher
        torch.set_num_threads(max(1, usable_threads() // processes.local_count))
        # Channels last is a quarter faster on CPUs too, and what tensor cores want.
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only
        self.batches = Batches(dataset.train, self.recipe, processes)
        self.steps = self.batches.count * self.epochs
        self.optimizer = make_optimizer(net, self.recipe)
        self.average = Average(net, decay_of(self.recipe.ema, self.steps))
        if processes.count > 1:
            share_norms(net, processes)
        self.net, self.model = net, Deployed(net, dataset.preprocess)
        self.judged = Deployed(self.average.net, dataset.preprocess)
        self.best = copy.deepcopy(self.average.net.state_dict())
        self.weights = None
        if self.recipe.balance == "weights":
            self.weights = class_weights(self.batches.labels, len(dataset.labels)).to(device)
        self.amp = device.startswith("cuda") if self.recipe.amp is None else self.recipe.amp
        # Small gradients vanish in float16, which CUDA takes; bfloat16, the CPU's, reaches as far as float32.
        self.scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=self.amp and device.startswith("cuda"))
        self.progress = Progress()

    def run(
        self,
        on_epoch: Callable[[Epoch, nn.Module], None] = lambda epoch, net: None,
        save: Callable[[Training], None] = lambda training: None,
    ) -> Trained:
        """Train to the end and return the last weights that the validation images do not show to be worse than others.

        `on_epoch` is called after each epoch with the averaged network, then `save`, which is called between steps too.

        Raises:
            TrainingError: the loss is no longer a finite number, or another process has died.
        """
        while self.progress.epoch <= self.epochs and not self._patience_is_over():
            self._train_epoch(save)
            epoch = self._judge()
            on_epoch(epoch, self.average.net)
            save(self)
        net = self.average.net
        net.load_state_dict(self.best)
        return Trained(net=net.eval(), history=self.progress.history, seconds=self.progress.seconds)

    def _train_epoch(self, save: Callable[[Training], None]) -> None:
        progress, clock, saved = self.progress, time.perf_counter(), time.perf_counter()
        self.net.train()
        for batch in self.batches.epoch(progress.epoch, progress.batch):
            progress.loss += self._step(batch)
            progress.batch = batch.index + 1
            now = time.perf_counter()
            progress.epoch_seconds, clock = progress.epoch_seconds + now - clock, now
            if now - saved > _SAVE_SECONDS and progress.batch < self.batches.count:
                save(self)
                saved = now

    def _step(self, batch: Batch) -> float:
        """Take one step and return the sum of the losses of the whole batch's images."""
        step = (self.progress.epoch - 1) * self.batches.count + batch.index
        return self._step_at(batch, step, self.peak * rate(step, self.steps, self.recipe.warmup or 0.0))

    def trial_step(self, number: int, lr: float) -> float:
        """Take one step at a given learning rate, on the batch of that number, and return the mean loss."""
        epoch, index = divmod(number, self.batches.count)
        batch = next(iter(self.batches.epoch(epoch + 1, index)))
        try:
            return self._step_at(batch, number, lr) / batch.total
        except TrainingError:
            return math.inf

    def _step_at(self, batch: Batch, step: int, lr: float) -> float:
        seed = self.recipe.seed
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(derived_seed(seed, "dropout", step, self.processes.rank))
        draws = draw(batch.total, self.parts, generator(seed, "augment", step)).of(batch.where)
        pixels = batch.pixels.to(self.device, non_blocking=True).float().permute(0, 3, 1, 2)
        pixels = augment(pixels, draws, self.parts, self.dataset.preprocess.zero_point).permute(0, 2, 3, 1)
        labels = batch.labels.to(self.device)
        partner = labels[partners(len(labels)).to(self.device)]
        taught = None
        if self.teacher is not None:
            with torch.inference_mode():
                taught = self.teacher.logits(pixels).float()
        with torch.autocast(self.device.partition(":")[0], enabled=self.amp):
            logits = self.model.logits(pixels)
        total = summed_loss(
            logits.float(), labels, partner, draws.mix.to(self.device), self.weights, taught, self.recipe
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total / self._weight_of(batch)).backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
        self.processes.sum_gradients(self.net)
        value = float(self.processes.sum(total.detach()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {self.progress.epoch}: use a smaller --lr (it is {self.peak:g}); "
                "the best weights before are kept"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(step)
        return value

    def _weight_of(self, batch: Batch) -> float:
        if self.weights is None:
            return float(batch.total)
        return float(self.weights[batch.labels_of_all.to(self.device)].sum())

    def _judge(self) -> Epoch:
        """Evaluate the averaged weights on the validation images and remember them if they are the best."""
        progress, began = self.progress, time.perf_counter()
        val_loss, val_accuracy = self._validate()
        if not math.isfinite(val_loss):
            raise TrainingError(f"the validation loss became {val_loss}: use a smaller --lr (it is {self.peak:g})")
        best = progress.keeps(val_accuracy, len(self.dataset.val))
        if best:
            self.best = copy.deepcopy(self.average.net.state_dict())
        seconds = progress.epoch_seconds + time.perf_counter() - began
        step = progress.epoch * self.batches.count - 1
        epoch = Epoch(
            number=progress.epoch,
            loss=progress.loss / len(self.dataset.train),
            lr=self.peak * rate(step, self.steps, self.recipe.warmup or 0.0),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=seconds,
            best=best,
        )
        history = [*progress.history, epoch]
        self.progress = Progress(epoch=progress.epoch + 1, seconds=progress.seconds + seconds, history=history)
        return epoch

    def _validate(self) -> tuple[float, float]:
        """Compute loss and accuracy; each process takes its part."""
        where = self.processes.share(len(self.dataset.val))
        indices = np.arange(where.start, where.stop)
        sums = torch.zeros(2, dtype=torch.float64)
        if len(indices):
            logits = torch.from_numpy(predict_logits(self.judged, self.dataset.val, indices=indices))
            labels = torch.from_numpy(self.dataset.val.labels[indices])
            sums[0] = functional.cross_entropy(logits, labels, reduction="sum")
            sums[1] = (logits.argmax(1) == labels).sum()
        if self.processes.count > 1:
            sums = self.processes.sum(sums.to(self.device)).cpu()
        loss, right = (sums / len(self.dataset.val)).tolist()
        return loss, right

    def _patience_is_over(self) -> bool:
        patience = self.recipe.patience
        return patience is not None and self.progress.idle >= patience


def fit(
    net: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    device: str = "cpu",
    on_epoch: Callable[[Epoch, nn.Module], None] = lambda epoch, net: None,
) -> Trained:
    """Train in one go, in this process alone; see `Training`."""
    return Training(net, dataset, recipe, device).run(on_epoch)


def predict_logits(
    model: Deployed, images: LabelledImages, batch_size: int = 500, indices: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """Compute the logits (N, classes) of one split, or of the images at `indices`, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    wanted = np.arange(len(images)) if indices is None else indices
    with torch.inference_mode():
        parts = [
            model.logits(torch.from_numpy(images.take(wanted[start : start + batch_size])).to(device)).cpu().numpy()
            for start in range(0, len(wanted), batch_size)
        ]
    return np.concatenate(parts)


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer; kernels and matrices decay, norms and biases do not."""
    decayed = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr or 0.0, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr or 0.0)
