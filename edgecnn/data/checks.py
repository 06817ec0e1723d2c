"""What is wrong with a data set before anything is trained on it."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgecnn.data.dataset import Dataset, LabelledImages
from edgecnn.errors import DataError
from edgecnn.images import hash_pixels


def check(dataset: Dataset) -> Dataset:
    """Refuse what cannot be trained on and collect warnings about what should not be.

    Raises:
        DataError: one class only, or a class without a training image.
    """
    present = np.unique(dataset.train.labels)
    if len(dataset.labels) < 2:
        raise DataError(f"{dataset.source}: one class only ({dataset.labels[0]}); there is nothing to tell apart")
    absent = [name for index, name in enumerate(dataset.labels) if index not in present]
    if absent:
        raise DataError(f"{dataset.source}: no training image of {', '.join(absent[:5])}; every class needs some")
    warnings = list(dataset.warnings)
    for name, held_out in (("validation", dataset.val), ("test", dataset.test)):
        shared = _shared(dataset.train, held_out)
        if shared:
            first, twin = held_out.name(shared[0][0]), dataset.train.name(shared[0][1])
            warnings.append(
                f"{len(shared)} of {len(held_out)} {name} images are also in train, pixel for pixel "
                f"({first} = {twin}): the {name} accuracy is flattered"
            )
    return dataclasses.replace(dataset, warnings=tuple(warnings))


def _shared(train: LabelledImages, held_out: LabelledImages) -> list[tuple[int, int]]:
    """Pair held-out images with training images of exactly the same pixels, by index."""
    known = {hash_pixels(image): index for index, image in enumerate(train.pixels)}
    hashes = (hash_pixels(image) for image in held_out.pixels)
    return [(index, known[value]) for index, value in enumerate(hashes) if value in known]
