"""Streaming calibration: what values each tensor takes, counted batch by batch, so that memory does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WEIGHTED, makers, weights_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BINS = 2048
BATCH = 32
# What a batch's watched tensors may take together; those of a single image may go over it. The process takes about
# three times as much for them, and larger batches are no faster.
BUDGET_BYTES = 16_000_000
# So many values at a time are made float64: few enough to stay in the cache, whatever the tensor's size.
_BLOCK = 1 << 16


class Feeds(Protocol):
    """What `observe` takes of a set of images: the same batches each time it is asked, ready for the model."""

    @property
    def count(self) -> int:
        """Number of images."""

    def batches(self, size: int = BATCH) -> Iterator[dict[str, Array]]:
        """Give input name -> array, `size` images at a time, the last batch maybe fewer."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What one float32 tensor was seen to hold, over all images.

    `low`, `high`, `mean` and `rms` (root of the mean square) are over `count` values. `histogram` counts them, int64
    (bins,), in bins of equal width from `low` to `high`, all of them in the first where the two are equal. `zeros`,
    `at_low` and `at_high` count the values that are exactly 0, `low` and `high`: after a ReLU or a clip those are
    spikes, which no bin can tell from values near them. The channels' arrays are float64 (C,) for tensors
    (N, C, ...), None for tensors of another kind or with a C that changes.
    """

    low: float
    high: float
    mean: float
    rms: float
    count: int
    histogram: Counts
    zeros: int
    at_low: int
    at_high: int
    channel_low: Floats | None = None
    channel_high: Floats | None = None
    channel_mean: Floats | None = None

    @property
    def edges(self) -> Floats:
        """The bins' edges, float64 (bins + 1,)."""
        return np.linspace(self.low, self.high, self.histogram.size + 1)


def observe(
    model: onnx.ModelProto, feeds: Feeds, tensors: Sequence[str] | None = None, bins: int = BINS
) -> dict[str, Observed]:
    """Run all images twice and count what each tensor holds: extremes and means first, then a histogram between them.

    Args:
        model: a float model; its own outputs may be among `tensors`, and so may its float32 inputs.
        feeds: the images. Kept in memory are one batch of at most 32, fewer where its watched tensors would
            take more than `BUDGET_BYTES`, and the counts.
        tensors: which to watch; None for what the weighted layers read and write.
        bins: of the histogram.

    Raises:
        QuantizationError: there are no images, a tensor is not in the model, not float32, empty or not finite, the
            model does not run on them, or `feeds` gave other images the second time.
    """
    wanted = list(dict.fromkeys(_layer_tensors(model) if tensors is None else tensors))
    if not wanted or bins < 1:
        raise QuantizationError(f"nothing to observe: {len(wanted)} tensors and {bins} bins; name at least one of each")
    if not feeds.count:
        raise QuantizationError("calibration needs images and there are none; give a folder or split that holds some")
    watched = _Watched(model, wanted)
    size = watched.batch_size(feeds)
    moments = {name: _Moments() for name in wanted}
    for values in watched.run(feeds, size):
        for name, array in values:
            moments[name].add(array, name)
    counters = {name: _Counter(moments[name], bins, name) for name in wanted}
    for values in watched.run(feeds, size):
        for name, array in values:
            counters[name].add(array)
    return {name: counters[name].observed(name) for name in wanted}


def _layer_tensors(model: onnx.ModelProto) -> list[str]:
    """List what weighted layers read and write, constants aside, in graph order."""
    constants = set(weights_of(model)) | {
        name for name, node in makers(model).items() if node.op_type in ("Constant", "DequantizeLinear")
    }
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED]
    names = [name for node in layers for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(names) if name and name not in constants]


class _Watched:
    """A session that also gives the tensors watched."""

    def __init__(self, model: onnx.ModelProto, wanted: list[str]) -> None:
        weights, made = weights_of(model), makers(model)
        self._fed = [value.name for value in model.graph.input if value.name in wanted and value.name not in weights]
        self._made = [name for name in wanted if name not in self._fed]
        unknown = [name for name in self._made if name not in made]
        if unknown:
            raise QuantizationError(
                f"{_listed(unknown)}: no activation of the model is called that; name those of nodes"
            )
        self._session = _session(model, self._made)
        not_float = [
            value.name
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
            if value.name in wanted and value.type != "tensor(float)"
        ]
        if not_float:
            raise QuantizationError(
                f"{_listed(not_float)}: not float32, so there is no range to calibrate; leave it out"
            )

    def batch_size(self, feeds: Feeds) -> int:
        """Choose how many images to run at once: what one of them takes tells more than shapes that may be unknown."""
        shapes = [value.shape for value in self._session.get_inputs()]
        fixed = next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)
        if fixed is not None:
            if feeds.count % fixed:
                raise QuantizationError(
                    f"the model takes exactly {fixed} images at once, and {feeds.count} cannot be parted so; "
                    "calibrate on a multiple, or export the model with a batch of 1 or any"
                )
            return int(fixed)
        first = next(iter(self.run(feeds, 1)), iter(()))
        bytes_each = sum(array.nbytes for _, array in first)
        return max(1, min(BATCH, BUDGET_BYTES // max(1, bytes_each)))

    def run(self, feeds: Feeds, size: int) -> Iterator[Iterator[tuple[str, Array]]]:
        """Give, for each batch, the tensors watched and their values, each let go of before the next is taken."""
        for batch in feeds.batches(size):
            yield self._values(batch)

    def _values(self, batch: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        try:
            arrays = self._session.run(self._made, dict(batch)) if self._made else []
        except Exception as error:  # ONNX Runtime raises ValueError, its own types and others, all for: it did not run
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items())
            raise QuantizationError(f"the model does not run on {shapes}: {_first_line(error)}") from error
        yield from ((name, batch[name]) for name in self._fed)
        for name in reversed(self._made):
            yield name, arrays.pop()


def _session(model: onnx.ModelProto, made: list[str]) -> Any:
    """Load the model with more outputs; ONNX Runtime infers their types itself.

    All its optimisations are on, as where the float model runs. They keep every output, and with it the values.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # again a dozen types for one thing
        raise QuantizationError(f"ONNX Runtime could not load the model to calibrate: {_first_line(error)}") from error


class _Moments:
    """The first pass over one tensor: extremes, sums and sums of squares, of the whole and of its channels."""

    def __init__(self) -> None:
        self.count = 0
        self.low, self.high, self.total, self.squares = np.inf, -np.inf, 0.0, 0.0
        self.channels: tuple[Floats, Floats, Floats] | None = None  # lows, highs, totals
        self._has_channels = True

    def add(self, array: Array, name: str) -> None:
        """Take in one batch.

        Raises:
            QuantizationError: a value is not finite.
        """
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max pass a NaN on
            raise QuantizationError(
                f"{name}: holds values that are not finite on calibration images; the float model overflows or divides "
                "by zero there, so mend it first"
            )
        self.count += array.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        for block in _blocks(array):
            wide = block.astype(np.float64)
            self.total += float(wide.sum())
            self.squares += float(wide @ wide)
        self._add_channels(array)

    def _add_channels(self, array: Array) -> None:
        known = self.channels
        self._has_channels &= array.ndim > 1 and (known is None or known[0].size == array.shape[1])
        if not self._has_channels:
            self.channels = None
            return
        planes = array.reshape(array.shape[0], array.shape[1], -1)
        lows, highs = planes.min(axis=(0, 2)).astype(np.float64), planes.max(axis=(0, 2)).astype(np.float64)
        totals = planes.sum(axis=(0, 2), dtype=np.float64)
        if known is not None:
            lows, highs, totals = np.minimum(lows, known[0]), np.maximum(highs, known[1]), totals + known[2]
        self.channels = lows, highs, totals


class _Counter:
    """The second pass over one tensor: how many values lie in each bin, and on the spikes."""

    def __init__(self, moments: _Moments, bins: int, name: str) -> None:
        if not moments.count:
            raise QuantizationError(f"{name}: held no values on any calibration image; leave it out")
        self._moments = moments
        self._histogram = np.zeros(bins, dtype=np.int64)
        self._spikes = np.zeros(3, dtype=np.int64)

    def add(self, array: Array) -> None:
        """Take in one batch; a value outside of the bins is not counted, and found missing at the end."""
        low, high = self._moments.low, self._moments.high
        for block in _blocks(array):
            inside = block if block.min() >= low and block.max() <= high else block[(block >= low) & (block <= high)]
            indices = bin_of(inside.astype(np.float64), low, high, self._histogram.size)
            self._histogram += np.bincount(indices, minlength=self._histogram.size)
            self._spikes += [np.count_nonzero(inside == value) for value in (0.0, low, high)]

    def observed(self, name: str) -> Observed:
        """Sum up.

        Raises:
            QuantizationError: the second pass did not see what the first saw.
        """
        moments, counted = self._moments, int(self._histogram.sum())
        if counted != moments.count or not self._spikes[1:].all():
            raise QuantizationError(
                f"{name}: took other values when the images were run again; calibration needs feeds that repeat themselves"
            )
        self._histogram.setflags(write=False)
        lows, highs, totals = moments.channels or (None, None, None)
        zeros, at_low, at_high = self._spikes.tolist()
        return Observed(
            low=moments.low,
            high=moments.high,
            mean=moments.total / moments.count,
            rms=float(np.sqrt(moments.squares / moments.count)),
            count=moments.count,
            histogram=self._histogram,
            zeros=zeros,
            at_low=at_low,
            at_high=at_high,
            channel_low=lows,
            channel_high=highs,
            channel_mean=None if totals is None else totals * (totals.size / moments.count),
        )


def bin_of(values: Floats, low: float, high: float, bins: int) -> npt.NDArray[np.intp]:
    """Give the bin of each value in [low, high]: each holds its lower edge, the last one its upper edge too."""
    width = high - low
    if not width:
        return np.zeros(values.shape, dtype=np.intp)
    places = values - low
    places *= bins / width
    return np.minimum(places, bins - 1, out=places).astype(np.intp)


def _blocks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    return (flat[at : at + _BLOCK] for at in range(0, flat.size, _BLOCK))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
