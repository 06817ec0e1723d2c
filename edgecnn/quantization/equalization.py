"""Cross-layer equalization: the same function, with channels that one 8-bit step can serve alike.

Between two layers f(W1 x + b1) -> W2, where f(a / s) = f(a) / s for every s > 0, channel i of the first may be divided by
any s_i and what the second multiplies it by multiplied by s_i (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1). The float function stays; the ranges change.

Which s? Let r_i be the largest magnitude of the activation's channel and w_i that of the second layer's weights for it,
u_i = r_i / s_i and v_i = s_i w_i what becomes of them, and p_i = u_i v_i = r_i w_i, which no s changes. The first layer's
weights have a step for each output channel, so their relative error is the same under every s. What depends on s is, up to
constant factors,

- the activation's rounding, with one step for the whole tensor: max_i(u_i)^2 * sum_i(v_i^2);
- the second layer's weights' rounding, with one step for all inputs of an output channel: max_i(v_i)^2 * sum_i(u_i^2).

With s_i = r_i the first is at its least, sum(p^2), and the second at its worst, n max(p)^2; with s_i = 1 / w_i it is the
other way round. With s_i = sqrt(r_i / w_i) both u_i and v_i are sqrt(p_i) and both sums max(p) * sum(p): together, by
Cauchy and Schwarz, never above what either extreme gives. That is the paper's formula with the activation's range in place
of the first layer's weights, and SmoothQuant's (Xiao et al. 2023) with alpha = 1/2. As each output channel has its own step,
w_i is taken relative to the largest weight of that channel; and as its square stands in a sum over outputs, w_i is the root
mean square over them. So neither r_i nor w_i depends on another pair's scales, and one pass is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import makers, weights_of
from edgecnn.quantization.kernels import Floats, laid_out, own
from edgecnn.quantization.pairs import Link, links_of

Ranges = Mapping[str, tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]

ITERATIONS = 100
SETTLED = 1e-4
# A channel that calibration hardly saw may be loud on another image, and would then be clipped. None is amplified as if it
# were fainter than one 8-bit step of an ordinary one.
FAINTEST = 1 / 256


@dataclass(frozen=True)
class Pair:
    """Two weighted layers, by name, and what was done between them.

    `tensor` is the activation, channels on axis 1, that `equalize` looks for in `activations`. `scales` are the s of the
    module's docstring, one for each of its channels.
    """

    first: str
    second: str
    tensor: str
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Equalized:
    """A model of the same float function, and the pairs that were rescaled, in graph order."""

    model: onnx.ModelProto
    pairs: tuple[Pair, ...]


def tensors_between(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the activations, channels on axis 1, whose observed ranges `equalize` can use."""
    return tuple(link.tensor for link in links_of(model))


def equalize(model: onnx.ModelProto, iterations: int = ITERATIONS, activations: Ranges | None = None) -> Equalized:
    """Rescale every pair of layers of a float model with folded batch norms; the model given stays as it is.

    Where `activations` holds a pair's tensor, as the lowest and highest value seen in each channel, both float (C,), the
    scales are the ones derived above. Where it does not, they are the paper's equation 11, from the weights alone,
    repeated until no scale moves or `iterations` are done; with a depthwise layer in between, that ends in the paper's
    formula for three layers.

    Raises:
        QuantizationError: ranges of another number of channels than the tensor has, or not finite.
    """
    links, given = links_of(model), activations or {}
    sizes = _sizes(model, links)
    scales = {link.first.output: np.ones(link.channels) for link in links}
    for number in range(iterations):
        moved = 0.0
        for link in links:
            if link.tensor not in given:
                step = _step_by_weights(sizes, link)
            elif not number:
                step = _step_by_activation(sizes, link, _loudness(link, *given[link.tensor]))
            else:
                continue
            _apply(sizes, link, step)
            scales[link.first.output] *= step
            moved = max(moved, float(np.abs(np.log(step)).max()))
        if moved < SETTLED:
            break
    done = onnx.ModelProto.FromString(model.SerializeToString())
    for link in links:
        _rescale(done, link, scales[link.first.output])
    pairs = (
        Pair(link.first.name, link.second.name, link.tensor, tuple(scales[link.first.output].tolist()))
        for link in links
    )
    return Equalized(model=done, pairs=tuple(pairs))


def _loudness(link: Link, low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> Floats:
    """Take the largest magnitude seen in each channel."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if {low.shape, high.shape} != {(link.channels,)} or not np.isfinite(low + high).all():
        raise QuantizationError(
            f"{link.tensor}: ranges of shape {list(low.shape)} to {list(high.shape)} for {link.channels} channels, or not "
            "finite; give the lowest and the highest value seen in each channel"
        )
    loudness: Floats = np.maximum(np.abs(low), np.abs(high))
    return loudness


def _sizes(model: onnx.ModelProto, links: tuple[Link, ...]) -> dict[str, Floats]:
    """Take the largest weight of each kernel, float64 (groups, outputs, inputs), by the layer's output."""
    made, weights = makers(model), weights_of(model)
    layers = {layer.output: layer for link in links for layer in (link.first, link.second)}
    arrays = {name: numpy_helper.to_array(weights[layer.weight]).astype(np.float64) for name, layer in layers.items()}
    return {name: np.abs(laid_out(array, made[name])).max(axis=3) for name, array in arrays.items()}


def _step_by_weights(sizes: dict[str, Floats], link: Link) -> Floats:
    """Find a pair's scales as things stand by the paper's equation 11, float64 (channels,)."""
    first, second = sizes[link.first.output], sizes[link.second.output]
    scales: Floats = np.sqrt(_audible(first.max(axis=2).ravel()) / _audible(_by_channel(second, link)))
    return scales


def _step_by_activation(sizes: dict[str, Floats], link: Link, loudness: Floats) -> Floats:
    """Find a pair's scales by the module's derivation, float64 (channels,)."""
    second = sizes[link.second.output]
    rows = second.max(axis=2, keepdims=True)
    shares = np.sqrt(np.square(second / np.where(rows > 0, rows, 1.0)).mean(axis=1, keepdims=True))
    scales: Floats = np.sqrt(_audible(loudness) / _audible(_by_channel(shares, link)))
    return scales


def _by_channel(table: Floats, link: Link) -> Floats:
    """Take the largest over the outputs, and over the inputs that belong to one channel."""
    largest: Floats = table.max(axis=1).reshape(link.channels, link.repeat).max(axis=1)
    return largest


def _audible(ranges: Floats) -> Floats:
    """Raise the faintest to what counts. A range of zero says nothing, and is taken for an ordinary one."""
    there = ranges[ranges > 0]
    if not there.size:
        return np.ones_like(ranges)
    ordinary = np.median(there)
    raised: Floats = np.where(ranges > 0, np.maximum(ranges, FAINTEST * ordinary), ordinary)
    return raised


def _apply(sizes: dict[str, Floats], link: Link, scales: Floats) -> None:
    """Rescale the two layers' tables of sizes, or in the same layout their weights."""
    first, second = sizes[link.first.output], sizes[link.second.output]
    outputs, inputs = first.shape[:2], (second.shape[0], second.shape[2])
    first /= scales.reshape(*outputs, 1, *([1] * (first.ndim - 3)))
    second *= np.repeat(scales, link.repeat).reshape(inputs[0], 1, inputs[1], *([1] * (second.ndim - 3)))


def _rescale(model: onnx.ModelProto, link: Link, scales: Floats) -> None:
    """Rescale a pair's weights and biases, in place, with one rounding to their own type."""
    made, weights = makers(model), weights_of(model)
    tensors = [weights[layer.weight] for layer in (link.first, link.second)]
    arrays = [np.array(numpy_helper.to_array(tensor), np.float64, order="C") for tensor in tensors]
    names = (link.first.output, link.second.output)
    views = {name: laid_out(array, made[name]) for name, array in zip(names, arrays, strict=True)}
    _apply(views, link, scales)
    for tensor, array in zip(tensors, arrays, strict=True):
        _write(tensor, array)
    if link.first.bias is not None:
        bias = own(model, made[link.first.output], 2)
        _write(bias, numpy_helper.to_array(bias) / scales)
    for added in link.added:
        constant = own(model, made[added.node], added.slot)
        axes = np.repeat(scales, added.repeat).reshape(-1, *([1] * added.trailing))
        _write(constant, numpy_helper.to_array(constant) / axes)


def _write(tensor: onnx.TensorProto, array: Floats) -> None:
    """Put values into an initializer, of the type it had."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), tensor.name))
