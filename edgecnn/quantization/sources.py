"""From what a person names to the images a model is calibrated, judged and tuned on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.data.open import read_source
from edgecnn.errors import DataError
from edgecnn.images import SUFFIXES
from edgecnn.quantization.conversion import InputOptions
from edgecnn.quantization.feeds import FeedSet, from_dataset_split, from_images, from_npz

CALIBRATION_IMAGES = 256
TRAIN_IMAGES = 8192
_MOST_UNLABELLED = 8192


@dataclass(frozen=True)
class Given:
    """Feeds for each purpose; `train` is None where there is nothing to train on. `skipped` could not be read."""

    calibration: FeedSet
    evaluation: FeedSet
    train: FeedSet | None
    statement: str
    skipped: tuple[str, ...] = ()


def open_feeds(
    calibrate: str,
    evaluate: str | None,
    model: onnx.ModelProto,
    options: InputOptions | None = None,
    images: int = CALIBRATION_IMAGES,
    seed: int = 0,
) -> Given:
    """Open what `--calibrate` and `--evaluate` name: a labelled source, a folder of pictures, or one of .npz feeds.

    Calibration takes `images` of the training split, chosen evenly. Without `evaluate` the same source gives the
    images to judge by: its test split, or, where it has no labels, those that calibration did not take.

    Raises:
        DataError: there is nothing to open, or too little.
        UsageError: the images do not fit the model's input.
    """
    if is_labelled(calibrate):
        dataset = open_data(calibrate, DataOptions(seed=seed))
        train = from_dataset_split(dataset, "train", model, options)
        rest = None if evaluate else from_dataset_split(dataset, "test", model, options)
        statement, skipped = f"training images of {calibrate}", dataset.skipped
    else:
        train, rest = _halves(_unlabelled(calibrate, model, options, seed), images, seed, bool(evaluate))
        statement, skipped = f"images of {calibrate}, which have no labels", train.skipped
    calibration = train.sample(images, seed)
    if evaluate:
        rest = evaluation_feeds(evaluate, model, options, seed)
    if rest is None:
        raise DataError(f"{calibrate}: no image is left to judge by; give --evaluate")
    labelled = "labelled" if rest.labels is not None else "unlabelled"
    where = evaluate or ("its test split" if rest.labels is not None else "its other images")
    said = f"calibrates on {calibration.count} {statement}; judges on {rest.count} {labelled} images: {where}"
    return Given(calibration, rest, train.sample(TRAIN_IMAGES, seed), said, (*skipped, *rest.skipped))


def calibration_feeds(
    data: str,
    model: onnx.ModelProto,
    options: InputOptions | None = None,
    images: int = CALIBRATION_IMAGES,
    seed: int = 0,
) -> FeedSet:
    """Open what `--calibrate` names for calibration alone.

    Raises:
        DataError: there is nothing to open.
        UsageError: the images do not fit the model's input.
    """
    if is_labelled(data):
        return from_dataset_split(open_data(data, DataOptions(seed=seed)), "train", model, options).sample(images, seed)
    return _unlabelled(data, model, options, seed).sample(images, seed)


def evaluation_feeds(data: str, model: onnx.ModelProto, options: InputOptions | None = None, seed: int = 0) -> FeedSet:
    """Open what `--evaluate` names: the test split where the source has one of its own, else all of its images.

    Raises:
        DataError: there is nothing to open.
        UsageError: the images do not fit the model's input.
    """
    if not is_labelled(data):
        return _unlabelled(data, model, options, seed)
    opened = read_source(data, DataOptions(seed=seed))
    whole, labels = opened.scanned.images, opened.listing.labels
    own = [index for index, item in enumerate(whole.items) if item.split == "test"]
    images = whole.subset(own) if own else whole  # type: ignore[arg-type]  # numpy takes lists of indices
    dataset = Dataset(
        source=data, labels=labels, preprocess=opened.preprocess, train=images, val=images, test=images, split="as given",
        skipped=opened.scanned.skipped,
    )  # fmt: skip
    return from_dataset_split(dataset, "test", model, options)


def is_labelled(data: str) -> bool:
    """Say whether a source has labels: all but a folder that holds pictures or .npz feeds and no folders."""
    path = Path(data)
    if not path.is_dir() or any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        return True
    names = [file.name.lower() for file in path.iterdir() if file.is_file()]
    return not any(name.endswith(".npz") or name.endswith(tuple(SUFFIXES)) for name in names)


def _unlabelled(data: str, model: onnx.ModelProto, options: InputOptions | None, seed: int) -> FeedSet:
    folder = Path(data)
    if any(folder.glob("*.npz")):
        return from_npz(folder, model)
    return from_images([folder], model, options, _MOST_UNLABELLED, seed)


def _halves(feeds: FeedSet, images: int, seed: int, all_of_it: bool) -> tuple[FeedSet, FeedSet | None]:
    """Split unlabelled feeds: at most half for calibration, the rest to judge by."""
    import numpy as np

    if all_of_it:
        return feeds, None
    if feeds.count < 2:
        raise DataError("a single image cannot both calibrate and judge; give more, or --evaluate")
    order = np.random.default_rng(seed).permutation(feeds.count)
    cut = max(1, min(images, feeds.count // 2))
    return feeds.subset(np.sort(order[:cut])), feeds.subset(np.sort(order[cut:]))
