"""How a network is trained: a small record whose defaults are meant to be good without tuning."""

from __future__ import annotations

from typing import Literal

from edgecnn.spec import Frozen


class Recipe(Frozen, frozen=True):
    """Training choices; `None` means: by the size of the training set.

    `lr` is the peak of the one-cycle schedule. `weight_decay` spares norms and biases.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float | None = None
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    augment: Literal["none", "light"] = "light"
    seed: int = 0

    def resolve(self, images: int) -> Recipe:
        """Fill in what depends on the number of training images."""
        batch = self.batch_size or (32 if images < 4000 else 128)
        return Recipe(
            epochs=self.epochs or max(8, min(80, 320_000 // max(images, 1))),
            batch_size=min(batch, images),
            optimizer=self.optimizer,
            lr=self.lr or {"adam": 0.004, "sgd": 0.2}[self.optimizer],
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            augment=self.augment,
            seed=self.seed,
        )
