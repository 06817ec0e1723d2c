"""What is wrong with a data set before anything is trained on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgecnn.data.dataset import Dataset, LabelledImages, SplitName
from edgecnn.errors import DataError

Identity = npt.NDArray[np.int64]


def check(dataset: Dataset, identity: Mapping[SplitName, Identity]) -> Dataset:
    """Refuse what cannot be trained on and collect warnings about what should not be.

    `identity` numbers the images of each split, equal pixels equally.

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
    held: tuple[tuple[SplitName, str, LabelledImages], ...] = (
        ("val", "validation", dataset.val),
        ("test", "test", dataset.test),
    )
    for name, word, held_out in held:
        shared, twins = shared_images(identity["train"], identity[name])
        if len(shared):
            first, twin = held_out.name(int(shared[0])), dataset.train.name(int(twins[0]))
            warnings.append(
                f"{len(shared)} of {len(held_out)} {word} images are also in train, pixel for pixel "
                f"({first} = {twin}): the {word} accuracy is flattered"
            )
    return dataclasses.replace(dataset, warnings=tuple(warnings))


def shared_images(train: Identity, held_out: Identity) -> tuple[Identity, Identity]:
    """Return the places in `held_out` of images that are also in `train`, and where they are there."""
    known, first = np.unique(train, return_index=True)
    where = np.minimum(np.searchsorted(known, held_out), len(known) - 1)
    shared = np.flatnonzero(known[where] == held_out)
    return shared, first[where[shared]]
