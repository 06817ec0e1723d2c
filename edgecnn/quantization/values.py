"""What the values of one tensor look like to a quantizer: their range, what a narrower one clips, how channels differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgecnn.quantization.kernels import Floats, laid_out
from edgecnn.quantization.observe import Observed, bin_of
from edgecnn.quantization.ranges import Range
from edgecnn.spec import Frozen

BINS = 64


class Channels(Frozen, frozen=True):
    """How far apart a tensor's channels are, by the largest magnitude in each; `silent` ones, all zero, do not count.

    `spread` is the largest over the smallest. `loudest` is the index of the largest, and `loudness` that one over the
    median of the others: near 1 where a single step serves all of them.
    """

    count: int
    silent: int
    spread: float
    loudest: int
    loudness: float


class Values(Frozen, frozen=True):
    """One tensor: its extremes and root mean square, and how many of its values lie in each of 64 equal bins between.

    `clip` is the range that its quantizer covers, None where none does, `clipped` the share of values outside of it.
    `channels` is None where there are not two that ever differ from zero.
    """

    tensor: str
    low: float
    high: float
    rms: float
    counts: tuple[int, ...]
    clip: Range | None = None
    clipped: float = 0.0
    channels: Channels | None = None

    @property
    def crest(self) -> float:
        """The largest magnitude over the root mean square: the steps it costs the others."""
        return max(-self.low, self.high) / self.rms if self.rms else 0.0

    @property
    def used(self) -> float | None:
        """The share of its quantizer's range that a tensor takes, 0 included; None where it has none."""
        if self.clip is None:
            return None
        return min(1.0, (max(0.0, self.high) - min(0.0, self.low)) / (self.clip[1] - self.clip[0]))


def values_of_activation(name: str, observed: Observed, clip: Range | None) -> Values:
    """Sum up what calibration saw of an activation, which is quantized to `clip` if at all."""
    peaks = None
    if observed.channel_low is not None and observed.channel_high is not None:
        peaks = np.maximum(np.abs(observed.channel_low), np.abs(observed.channel_high))
    histogram = observed.histogram
    merged = np.add.reduceat(histogram, np.arange(0, histogram.size, max(1, histogram.size // BINS)))
    return Values(
        tensor=name,
        low=observed.low,
        high=observed.high,
        rms=observed.rms,
        counts=tuple(merged.tolist()),
        clip=clip,
        clipped=0.0 if clip is None else share_outside(observed, clip),
        channels=None if peaks is None else channels_of(peaks),
    )


def values_of_weights(name: str, weights: npt.NDArray[np.floating[Any]], node: onnx.NodeProto) -> Values:
    """Sum up a layer's weights; its channels are those of its output, each of which has a step of its own."""
    counts, _ = np.histogram(weights, bins=BINS)
    groups = _laid_out(weights, node)
    return Values(
        tensor=name,
        low=float(weights.min()),
        high=float(weights.max()),
        rms=float(np.sqrt(np.mean(np.square(weights, dtype=np.float64)))),
        counts=tuple(counts.tolist()),
        channels=channels_of(np.abs(groups).max(axis=(2, 3)).ravel()),
    )


def input_channels_of(weights: npt.NDArray[np.floating[Any]], node: onnx.NodeProto) -> Channels | None:
    """Compare what a layer multiplies its input channels by, relative to the largest weight of each output channel.

    All weights of an output channel share one step, so that is what a loud input channel costs the others. Here a
    channel's magnitude is the root mean square over the outputs, for it costs those alone in which it is loud. None for
    a depthwise convolution, which has one input channel for each output.
    """
    groups = np.abs(_laid_out(weights, node))
    if groups.shape[2] < 2:
        return None
    peaks = groups.max(axis=(2, 3), keepdims=True)
    relative = np.divide(groups, peaks, out=np.zeros_like(groups), where=peaks > 0)
    return channels_of(np.sqrt(np.square(relative).mean(axis=(1, 3))).ravel())


def channels_of(peaks: Floats) -> Channels | None:
    """Compare channels by their largest magnitudes, float64 (C,)."""
    heard = np.flatnonzero(peaks > 0)
    if heard.size < 2:
        return None
    loudest = int(peaks.argmax())
    others = np.delete(peaks, loudest)
    return Channels(
        count=peaks.size,
        silent=peaks.size - heard.size,
        spread=float(peaks[loudest] / peaks[heard].min()),
        loudest=loudest,
        loudness=float(peaks[loudest] / np.median(others[others > 0])),
    )


def share_outside(observed: Observed, clip: Range) -> float:
    """Give the share of the values seen that lie outside of a range around 0.

    Values within a bin that the range cuts are taken to be spread evenly; those that are exactly 0, or the least or
    largest, are counted apart.
    """
    low, high = clip
    spikes = np.array([0.0, observed.low, observed.high])
    masses = np.array([observed.zeros, observed.at_low, observed.at_high])
    spikes, first = np.unique(spikes, return_index=True)  # 0 may be the least, and the least the largest
    masses = masses[first]
    spread = observed.histogram.astype(np.float64)
    inside = (spikes >= observed.low) & (spikes <= observed.high)
    np.subtract.at(spread, bin_of(spikes[inside], observed.low, observed.high, spread.size), masses[inside])
    below = np.interp([low, high], observed.edges, np.concatenate([[0.0], np.cumsum(spread)]))
    beside = masses[(spikes < low) | (spikes > high)].sum()
    return float(below[0] + spread.sum() - below[1] + beside) / observed.count


def _laid_out(weights: npt.NDArray[np.floating[Any]], node: onnx.NodeProto) -> Floats:
    """View weights as (groups, outputs, inputs, positions), float64; a MatMul's stack of matrices as one tall matrix."""
    wide = np.ascontiguousarray(weights, dtype=np.float64)
    return laid_out(wide.reshape(-1, wide.shape[-1]) if node.op_type == "MatMul" else wide, node)
