"""Predicts where int8 goes wrong on x86 without VNNI: sums of two products that do not fit 16 bits.

ONNX Runtime's kernels for AVX2, and for AVX-512 without VNNI, multiply by `vpmaddubsw`: uint8 activations times int8
weights, each two neighbours along the inner dimension added with saturation at 16 bits, and only then in 32 bits
(MLAS, QgemmU8X8KernelAvx2 and ConvSymKernelAvx2). Two products reach 2 * 255 * 128, twice what fits. A convolution's
inner dimension is its patch with the channels innermost, and what the padding adds there is the zero point. Depthwise
convolutions have a kernel of their own, which does not add in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WeightedLayer
from edgecnn.quantization.int8_layers import Int8Layer, int8_layers
from edgecnn.quantization.products import products

if TYPE_CHECKING:
    from edgecnn.quantization.feeds import FeedSet

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

LOWEST, HIGHEST = -(2**15), 2**15 - 1
BATCH = 8  # images at a time: a patch repeats every pixel, nine times for a 3x3 kernel


@dataclass(frozen=True)
class LayerSaturation:
    """What one layer's products do in 16 bits.

    `name` is the layer's own, `node` the ONNX node's. `pairs` counts the sums of two products over all images and
    outputs, none for a depthwise convolution, `saturated` those that 16 bits do not hold, `worst` is the largest
    magnitude among them all. `sqnr_db` compares the layer's sums, before the bias, with and without saturation, on
    inputs that are right: None where nothing saturates.
    """

    name: str
    node: str
    op: str
    pairs: int
    saturated: int
    worst: int
    sqnr_db: float | None

    @property
    def fraction(self) -> float:
        """The share of the sums that saturates."""
        return self.saturated / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class PairSums:
    """The sums of two products each in a matrix product (M, K) x (K, N): how many, how they fit, what is lost.

    `lost` (M, N) is what saturation takes from each element of the product.
    """

    pairs: int
    saturated: int
    worst: int
    lost: Floats


def saturation(model: onnx.ModelProto, feeds: FeedSet, images: int = 64) -> list[LayerSaturation]:
    """Count, for each layer of a QDQ model that runs in int8, the 16-bit sums that saturate on x86 without VNNI.

    Listed are the layers of `int8_layers`; those that do not multiply in pairs, depthwise convolutions and layers
    whose input stays int8, have no sums.

    Args:
        model: a QDQ model; its constants are initializers.
        feeds: what to run it on.
        images: how many of them at most, chosen evenly.

    Returns:
        One entry a layer, in graph order.

    Raises:
        QuantizationError: no layer runs in int8, or a quantizer's parameter is not constant.
        DataError: there are too few images for a single batch.
    """
    layers = int8_layers(model)
    if not layers:
        raise QuantizationError(
            "nothing can saturate: no layer has int8 weights and quantized inputs; give the quantized model"
        )
    totals = [_Total() for _ in layers]
    for tensors in _quantized_inputs(model, sorted({layer.weighted.input for layer in layers}), feeds.sample(images)):
        for layer, total in zip(layers, totals, strict=True):
            total.add(layer, tensors[layer.weighted.input])
    return [total.of(layer.weighted) for layer, total in zip(layers, totals, strict=True)]


def pair_sums(rows: Array, weights: Array) -> PairSums:
    """Form the sums of two products as `vpmaddubsw` does: inner elements 0 and 1, 2 and 3, and so on.

    Args:
        rows: uint8 (M, K).
        weights: int8 (K, N).
    """
    odd = rows.shape[1] % 2  # an odd element out is paired with zero
    left = np.pad(rows, ((0, 0), (0, odd))).reshape(len(rows), -1, 2).transpose(1, 0, 2).astype(np.float32)
    right = np.pad(weights, ((0, odd), (0, 0))).reshape(-1, 2, weights.shape[1]).astype(np.float32)
    bounds = _bounds(left, right)
    worst, saturated, lost = 0, 0, np.zeros((len(rows), weights.shape[1]))
    # The most promising first: what can neither saturate nor be the worst need not be formed at all.
    for pair in np.argsort(-bounds.max(axis=1), kind="stable"):
        columns = np.flatnonzero(bounds[pair] > min(worst, HIGHEST))
        if not columns.size:
            break
        sums = left[pair] @ right[pair][:, columns]  # exact: float32 holds integers up to 2**24
        worst = max(worst, int(np.abs(sums).max()))
        excess = sums - sums.clip(LOWEST, HIGHEST)
        saturated += int(np.count_nonzero(excess))
        lost[:, columns] += excess
    return PairSums(pairs=len(rows) * bounds.size, saturated=saturated, worst=worst, lost=lost)


def _bounds(left: Array, right: Array) -> Floats:
    """Bound the magnitude of each pair's sum (pairs, N): the largest inputs, times the weights of one sign."""
    largest = left.max(axis=1)[:, :, None]
    up, down = ((largest * np.maximum(sign * right, 0)).sum(axis=1) for sign in (1, -1))
    bounds: Floats = np.maximum(up, down)
    return bounds


@dataclass
class _Total:
    """The sums over all batches."""

    pairs: int = 0
    saturated: int = 0
    worst: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, layer: Int8Layer, tensor: Array) -> None:
        """Count one batch of a layer's quantized input."""
        zero = layer.zero
        if not layer.unsigned:
            return
        if tensor.dtype == np.int8:
            tensor, zero = tensor.view(np.uint8) ^ 0x80, zero + 128
        for rows, weights, columns in products(layer.node, layer.weights, tensor, zero):
            found = pair_sums(rows, weights)
            self.pairs += found.pairs
            self.saturated += found.saturated
            self.worst = max(self.worst, found.worst)
            scale, offset = (part[columns] if part.size > 1 else part for part in (layer.scale, layer.offset))
            exact = (rows.astype(np.float64) - zero) @ (weights.astype(np.float64) - offset)
            self.signal += float(np.square(exact * scale).sum())
            self.noise += float(np.square(found.lost * scale).sum())

    def of(self, layer: WeightedLayer) -> LayerSaturation:
        """Sum up as a result."""
        sqnr = 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else None
        return LayerSaturation(
            name=layer.name, node=layer.node, op=layer.op, pairs=self.pairs, saturated=self.saturated,
            worst=self.worst, sqnr_db=sqnr,
        )  # fmt: skip


def _quantized_inputs(model: onnx.ModelProto, names: list[str], feeds: FeedSet) -> Iterator[dict[str, Array]]:
    """Run the model batch by batch and give the quantized tensors by name.

    Without any optimisation QDQ is computed in float, so that this machine's own integer kernels have no say in it.
    """
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    fed = {value.name for value in exposed.graph.input}
    wanted = [name for name in names if name not in fed]
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = (
        onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        if wanted
        else None
    )
    for batch in feeds.batches(BATCH):
        values = session.run(wanted, batch) if session is not None else []
        yield {**batch, **dict(zip(wanted, values, strict=True))}
