"""How a network is trained: a small record whose defaults are meant to be good without tuning."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgecnn.data import Dataset
from edgecnn.spec import Frozen
from edgecnn.training.augment import Augment


class Recipe(Frozen, frozen=True):
    """Training choices; `None` means: by the size and kind of the training set.

    `lr` is the peak of the schedule, which rises over the share `warmup` of the steps; a one-cycle's momentum
    stays as it is. `weight_decay` spares norms and biases. `ema` is the share of the whole training over which the
    shipped weights are averaged; 0 ships the raw ones. `patience` stops after so many epochs without a better one.
    `teacher_weight` is the share of the loss that follows the teacher, at `teacher_temperature` (Hinton et al. 2015).
    `amp` trains in mixed precision, float16 on CUDA and bfloat16 on the CPU; None does so on CUDA only.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warmup: float | None = None
    lr: float | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.05
    augment: Augment | None = None
    balance: Literal["none", "weights", "sampler"] = "none"
    ema: float = 0.02
    patience: int | None = None
    teacher: str | None = None
    teacher_weight: float = 0.7
    teacher_temperature: float = 4.0
    amp: bool | None = None
    seed: int = 0

    def resolve(self, images: int) -> Recipe:
        """Fill in what depends on the number of training images."""
        batch = self.batch_size or (32 if images < 4000 else 128)
        return msgspec.structs.replace(
            self,
            epochs=self.epochs or max(8, min(80, 320_000 // max(images, 1))),
            batch_size=min(batch, images),
            warmup=(0.25 if self.schedule == "one-cycle" else 0.05) if self.warmup is None else self.warmup,
            lr=self.lr or {"adam": 0.004, "sgd": 0.2}[self.optimizer],
            weight_decay={"adam": 0.02, "sgd": 0.0005}[self.optimizer]
            if self.weight_decay is None
            else self.weight_decay,
            augment=self.augment or Augment(),
        )


def is_mirrored(dataset: Dataset) -> bool:
    """Say whether this kind of data keeps its meaning in a mirror: colour photographs of named things do.

    Digits, letters and signs do not; they are grey, or their classes are numbered or are single letters.
    """
    named = all(len(label) > 1 and not label.lstrip("-").isdigit() for label in dataset.labels)
    return named and dataset.preprocess.channels == 3
