"""Running a session over samples, a batch at a time, and joining what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgecnn.backends.base import Array, CheckedSession, Tensors
from edgecnn.data.dataset import LabelledImages
from edgecnn.errors import ContractError, DataError
from edgecnn.images import Pixels

BATCH = 64


def run_all(session: CheckedSession, data: Pixels | LabelledImages) -> Tensors:
    """Run over all images in batches, decoded as they are needed where they are streamed, and join the outputs.

    Raises:
        DataError: there are no images.
        ContractError: an output has not one row for each image.
    """
    if not len(data):
        raise DataError("no images to run: nothing was compared")
    name = session.inputs[0].name
    joined = join([session.run({name: batch}) for batch in pixel_batches(data, BATCH)])
    check_rows(joined, len(data))
    return joined


def run_batch(session: CheckedSession, feeds: Mapping[str, Array]) -> Tensors:
    """Run one batch, in parts where the session takes exactly so many samples at once.

    Raises:
        ContractError: the batch is no multiple of that, or an output has not one row for each sample.
    """
    rows = rows_of(feeds)
    at_once = batch_of(session) or rows
    if rows % at_once:
        raise ContractError(
            f"it takes exactly {at_once} samples at once, and {rows} are to be run: give a multiple, or a file whose batch is free"
        )
    if at_once == rows:
        outputs = session.run(feeds)
    else:
        parts = range(0, rows, at_once)
        outputs = join([session.run({name: array[at : at + at_once] for name, array in feeds.items()}) for at in parts])
    check_rows(outputs, rows)
    return outputs


def batch_of(session: CheckedSession) -> int | None:
    """Say how many samples a session insists on at once; None where any number will do."""
    return next((spec.shape[0] for spec in session.inputs if spec.shape and (spec.shape[0] or 0) > 0), None)


def rows_of(feeds: Mapping[str, Array]) -> int:
    """Count the samples of a batch."""
    return len(next(iter(feeds.values())))


def join(parts: Sequence[Tensors]) -> Tensors:
    """Put the outputs of batches one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]


def check_rows(outputs: Tensors, count: int) -> None:
    """Hold outputs to one row for each sample.

    Raises:
        ContractError: one has another number.
    """
    for name, array in outputs.items():
        rows = len(array) if array.ndim else 0
        if rows != count:
            raise ContractError(f"output {name!r} has {rows} rows for {count} samples")


def pixel_batches(data: Pixels | LabelledImages, size: int) -> Iterator[Pixels]:
    """Go through images in order, `size` at a time."""
    if isinstance(data, LabelledImages):
        yield from data.chunks(size)
    else:
        yield from (data[start : start + size] for start in range(0, len(data), size))
