"""What both sides of a parity check are fed, a batch at a time; nothing that was fed is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecnn.backends.base import Tensors
from edgecnn.data.dataset import LabelledImages
from edgecnn.errors import DataError
from edgecnn.images import Pixels
from edgecnn.parity.recording import SamplesRecord
from edgecnn.parity.running import pixel_batches

if TYPE_CHECKING:
    from edgecnn.quantization.feeds import FeedSet

Indices = npt.NDArray[np.int64]


class Samples(Protocol):
    """Samples in order, that can be gone through as often as wanted."""

    @property
    def record(self) -> SamplesRecord:
        """What they are, in words, names, labels and a hash."""

    @property
    def batch(self) -> int | None:
        """How many a model insists on at once, None where any number will do."""

    def batches(self, size: int, indices: Indices | None = None) -> Iterator[Tensors]:
        """Give arrays by input name, up to `size` samples at a time: all samples, or those at `indices`, in order."""

    def pictures(self, indices: Sequence[int]) -> dict[int, Pixels]:
        """Give some samples as uint8 (H, W, C), for people to look at; none where they are no pictures."""


@dataclass(frozen=True)
class ImageSamples:
    """Pixels (N, H, W, C) as they are, for a model that takes those: a bundle's."""

    images: LabelledImages | Pixels
    input: str
    record: SamplesRecord
    batch: int | None = None

    def batches(self, size: int, indices: Indices | None = None) -> Iterator[Tensors]:
        """Decode as needed."""
        if indices is None:
            yield from ({self.input: pixels} for pixels in pixel_batches(self.images, size))
            return
        for start in range(0, len(indices), size):
            yield {self.input: self._take(indices[start : start + size])}

    def pictures(self, indices: Sequence[int]) -> dict[int, Pixels]:
        """Decode these once more."""
        chosen = np.array(sorted(set(indices)), dtype=np.int64)
        return dict(zip(chosen.tolist(), self._take(chosen), strict=True)) if len(chosen) else {}

    def _take(self, indices: Indices) -> Pixels:
        return self.images.take(indices) if isinstance(self.images, LabelledImages) else self.images[indices]


@dataclass(frozen=True)
class FedSamples:
    """Whatever an ONNX model takes: converted pictures, or rows of .npz files."""

    feeds: FeedSet
    record: SamplesRecord

    @property
    def batch(self) -> int | None:
        """The model's own."""
        return self.feeds.batch

    def batches(self, size: int, indices: Indices | None = None) -> Iterator[Tensors]:
        """Read and convert as needed."""
        yield from (self.feeds if indices is None else self.feeds.subset(indices)).batches(size)

    def pictures(self, indices: Sequence[int]) -> dict[int, Pixels]:
        """Read these once more, as they were before they were converted."""
        from edgecnn.quantization.rows import Pictures

        rows, chosen = self.feeds.rows, sorted(set(indices))
        if not isinstance(rows, Pictures) or not chosen:
            return {}
        places = self.feeds.indices[np.array(chosen, dtype=np.int64)]
        pixels = rows.store[places] if isinstance(rows.store, np.ndarray) else rows.store.take(places)
        return dict(zip(chosen, pixels, strict=True))


@dataclass(frozen=True)
class MadeSamples:
    """Samples that are made from their number, the same each time; `make` gives one, without the batch's axis."""

    make: Callable[[int], Tensors]
    record: SamplesRecord
    batch: int | None = None
    picture: Callable[[int], Pixels] | None = None

    def batches(self, size: int, indices: Indices | None = None) -> Iterator[Tensors]:
        """Make them."""
        size = self.batch or size
        order = range(self.record.n) if indices is None else indices.tolist()
        for start in range(0, len(order), size):
            made = [self.make(index) for index in order[start : start + size]]
            yield {name: np.stack([one[name] for one in made]) for name in made[0]}

    def pictures(self, indices: Sequence[int]) -> dict[int, Pixels]:
        """Make these once more."""
        return {index: self.picture(index) for index in set(indices)} if self.picture is not None else {}


def golden_samples(pixels: Pixels, names: Sequence[str], input_name: str) -> ImageSamples:
    """Feed a bundle's goldens; their labels are left out, for a few dozen images decide nothing."""
    said = f"{len(pixels)} goldens"
    record = SamplesRecord(
        kind="goldens", said=said, n=len(pixels), names=tuple(names), labels=None, sha256=_hash(pixels)
    )
    return ImageSamples(pixels, input_name, record)


def labelled_samples(images: LabelledImages, input_name: str, classes: int) -> ImageSamples:
    """Feed labelled images of a bundle's size.

    Raises:
        DataError: there are none, or a label is none of the classes.
    """
    if not len(images):
        raise DataError("the labelled images are an empty set: nothing was compared")
    if images.labels.min() < 0 or images.labels.max() >= classes:
        raise DataError(f"the images have labels that the bundle's {classes} classes do not cover")
    record = SamplesRecord(
        kind="data",
        said=f"{len(images)} labelled images",
        n=len(images),
        names=tuple(images.name(index) for index in range(len(images))),
        labels=tuple(images.labels.tolist()),
        sha256=images.fingerprint(),
    )
    return ImageSamples(images, input_name, record)


def fed_samples(feeds: FeedSet, where: str, classes: int | None) -> FedSamples:
    """Feed an ONNX model what `edgecnn quantize` would feed it.

    Raises:
        DataError: a label is none of the model's classes.
    """
    labels = feeds.labels
    if labels is not None and classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"{where}: its labels go from {labels.min()} to {labels.max()}, the model has {classes} classes"
        )
    labelled = "labelled" if labels is not None else "unlabelled"
    record = SamplesRecord(
        kind="feeds",
        said=f"{feeds.count} {labelled} samples of {where}",
        n=feeds.count,
        names=tuple(feeds.names),
        labels=None if labels is None else tuple(labels.tolist()),
        sha256=feeds.key,
    )
    return FedSamples(feeds, record)


def mixed_samples(pixels: Pixels, count: int, input_name: str, seed: int = 0) -> MadeSamples:
    """Make images that look like a bundle's goldens (G, H, W, C), without labels.

    Each mixes two goldens in random shares, shifts them by up to a quarter of each side (round the edge) and scales the
    contrast by 0.8 to 1.2. So range, colours and smoothness are those of real images, which noise would not have.

    Raises:
        DataError: none are asked for.
    """
    if count < 1:
        raise DataError("no random images to run: nothing was compared")

    def make(index: int) -> Pixels:
        rng = np.random.default_rng([seed, index])
        (first, second), share = pixels[rng.integers(0, len(pixels), 2)], rng.uniform()
        mixed = share * first.astype(np.float64) + (1 - share) * second
        shift = [int(rng.integers(-(side // 4), side // 4 + 1)) for side in mixed.shape[:2]]
        turned = np.roll(mixed, shift, (0, 1))
        made = turned.mean() + rng.uniform(0.8, 1.2) * (turned - turned.mean())
        result: Pixels = np.clip(np.rint(made), 0, 255).astype(np.uint8)
        return result

    said = f"{count} random mixtures of the goldens (seed {seed}): like real images, and none"
    return MadeSamples(lambda index: {input_name: make(index)}, random_record(count, said, _hash(pixels)), picture=make)


def random_record(count: int, said: str, source: str = "") -> SamplesRecord:
    """Describe random samples; they are what `said` and `source` determine."""
    digest = hashlib.sha256(f"{said} {source}".encode()).hexdigest()
    names = tuple(f"random-{index}" for index in range(count))
    return SamplesRecord(kind="random", said=said, n=count, names=names, labels=None, sha256=digest)


def spread(count: int, most: int, batch: int | None = None) -> Indices:
    """Choose up to `most` places from end to end of `count`: a source may list its images class by class.

    A multiple of `batch` is chosen where a model insists on one.
    """
    chosen = min(most, count)
    chosen = max(batch, chosen // batch * batch) if batch else chosen
    return np.linspace(0, count - 1, chosen).astype(np.int64)


def _hash(pixels: npt.NDArray[Any]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
