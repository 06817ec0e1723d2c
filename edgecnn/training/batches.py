"""The training images in batches: in which order, which part of a batch is this process's, and fetched ahead."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from edgecnn.data import LabelledImages
from edgecnn.errors import UsageError
from edgecnn.training.chance import generator
from edgecnn.training.processes import Processes
from edgecnn.training.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch: `pixels` uint8 (n, H, W, C), `labels` (n,); `total` images in all processes.

    `where` is this part's place in the whole batch, `labels_of_all` the labels of all of it.
    """

    index: int
    pixels: torch.Tensor
    labels: torch.Tensor
    where: slice
    labels_of_all: torch.Tensor

    @property
    def total(self) -> int:
        """Count the images of the whole batch."""
        return len(self.labels_of_all)


class Batches:
    """The training split, shuffled anew in each epoch as the seed says, in batches of even size.

    A last batch of a single image would stop batch norm where the planes are one pixel.
    """

    def __init__(self, images: LabelledImages, recipe: Recipe, processes: Processes) -> None:
        size = recipe.batch_size or 1
        self.images, self.recipe, self.processes = images, recipe, processes
        self.count = max(1, math.ceil((len(images) - 1) / size))
        self.labels = torch.from_numpy(images.labels)
        least = len(images) // self.count
        if (least + 1) // 2 < processes.count:  # each process takes at least one pair
            raise UsageError(
                f"batches of {least} images are too small for {processes.count} processes: "
                f"use --batch-size {4 * processes.count} or more, or fewer processes"
            )

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch, from the one of index `start`; the next is fetched meanwhile."""
        parts = list(enumerate(torch.tensor_split(self._order(number), self.count)))[start:]
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[Batch]] = deque()
            for part in parts:
                ahead.append(pool.submit(self._fetch, *part))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _order(self, number: int) -> torch.Tensor:
        chance = generator(self.recipe.seed, "order", number)
        if self.recipe.balance == "sampler":
            counts = torch.bincount(self.labels)
            return torch.multinomial(
                1.0 / counts[self.labels].double(), len(self.labels), replacement=True, generator=chance
            )
        return torch.randperm(len(self.labels), generator=chance)

    def _fetch(self, index: int, order: torch.Tensor) -> Batch:
        where = self.processes.share(len(order))
        mine = order[where]
        pixels = torch.from_numpy(np.ascontiguousarray(self.images.take(mine.numpy())))
        return Batch(index, pixels, self.labels[mine], where, self.labels[order])
