"""Which images are for calibration, for judging and for training on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from assemble.quick import Run

from edgecnn import assemble
from edgecnn.data import Dataset, LabelledImages


def few(dataset: Dataset, train: int) -> Dataset:
    """Cut the training images down, and give training and test images pixels that tell them apart."""

    def painted(images: LabelledImages, count: int, value: int) -> LabelledImages:
        pixels = np.full_like(images.pixels[:count], value)
        pixels[:, 0, 0, 0] = np.arange(count) % 251
        return dataclasses.replace(images, store=pixels, labels=images.labels[:count], items=images.items[:count])

    return dataclasses.replace(
        dataset,
        train=painted(dataset.train, train, 111),
        val=painted(dataset.val, len(dataset.val), 99),
        test=painted(dataset.test, len(dataset.test), 222),
    )


@pytest.mark.parametrize(("train", "count"), [(1, 1), (100, 100), (256, 256), (800, 256)])
def test_calibration_images_are_training_images(run: Run, train: int, count: int) -> None:
    """At most 256 training images are chosen, each once, and never one for validation or test."""
    dataset = few(run[2], train)
    chosen = assemble._calibration(dataset, seed=0)
    assert chosen.shape == (count, 8, 8, 1)
    assert (chosen[:, 1:] == 111).all()
    if train <= 251:
        assert len(set(chosen[:, 0, 0, 0].tolist())) == count


def test_calibration_is_seeded(run: Run) -> None:
    """One seed always chooses the same images, and another seed others."""
    dataset = run[2]
    first, again, other = (assemble._calibration(dataset, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def as_bytes(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_images_to_judge_and_to_train_on_are_apart(run: Run) -> None:
    """All validation images judge, and half of the training images with them; the other half trains; none is a test image."""
    dataset = run[2]
    (judged, labels), (trained, taught) = assemble._tuning(dataset, seed=0)
    assert len(judged) == len(labels) == len(dataset.val) + len(dataset.train) // 2
    assert len(trained) == len(taught) == len(dataset.train) - len(dataset.train) // 2
    known = {image: label for part in (dataset.train, dataset.val) for image, label in zip(as_bytes(part.pixels), part.labels.tolist(), strict=True)}  # fmt: skip
    for images, names in ((judged, labels), (trained, taught)):
        assert [known[image] for image in as_bytes(images)] == names.tolist()
    test = set(as_bytes(dataset.test.pixels))
    assert not set(as_bytes(judged)) & test
    assert not set(as_bytes(judged)) & set(as_bytes(trained))


@pytest.mark.parametrize(("most", "judging"), [(10, 10), (200, 200)])
def test_images_to_judge_are_not_without_number(
    most: int, judging: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the number, validation images are left out at random, or as many training images are added as there is room."""
    monkeypatch.setattr(assemble, "VALIDATION_IMAGES", most)
    (judged, _), (trained, _) = assemble._tuning(run[2], seed=0)
    assert len(judged) == judging
    monkeypatch.setattr(assemble, "TUNING_IMAGES", 7)
    assert len(assemble._tuning(run[2], seed=0)[1][1]) == 7
    assert len(trained) > 7
