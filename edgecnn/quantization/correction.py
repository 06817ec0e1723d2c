"""Bias correction: rounding weights and clipping activations moves each channel's mean, and a bias can move it back.

A layer's output in the quantized model differs from the float model's by noise and by a shift that is the same for every
image; the shift goes on through the layers, and costs more than the noise where few levels are left. Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2 and appendix D, measure it on
calibration images and correct layer after layer, each on the quantized model with all earlier ones corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WEIGHTED, layers_of, makers, readers, weights_of
from edgecnn.quantization.kernels import Floats, attribute, own, unused
from edgecnn.quantization.observe import Feeds
from edgecnn.quantization.pairs import shapes_of

Build = Callable[[onnx.ModelProto], onnx.ModelProto]

# Prefixes of what is added to a graph to measure it, and of no tensor that anybody else would name.
_MEAN, _MOVE = "edgecnn.mean/", "edgecnn.move/"


@dataclass(frozen=True)
class _Site:
    """A layer whose output can be shifted.

    `node` makes the output, and its mean in each channel is over `axes`. The initializer `bias` is added to it, `gain`
    times.
    """

    node: str
    axes: tuple[int, ...]
    bias: str
    gain: float


def correct_bias(model: onnx.ModelProto, build: Build, feeds: Feeds) -> onnx.ModelProto:
    """Correct a float model's biases so that each layer's mean output, once quantized, is the float model's.

    Args:
        model: the float model; it stays as it is.
        build: quantizes a float model. Its layers have to keep their nodes' names.
        feeds: calibration images, gone through twice.

    Returns:
        The corrected model, where that makes the quantized model's outputs better on `feeds`, in mean square; if not,
        the model given. Layers without a bias have got one; a MatMul is corrected where a constant is added to it.

    Raises:
        QuantizationError: there are no images, or the quantized model has none of the float model's layers.
    """
    if not feeds.count:
        raise QuantizationError(
            "bias correction needs images and there are none; give a folder or split that holds some"
        )
    ready, sites = _with_biases(model)
    plain = build(ready)
    corrected = _shifted(ready, _mean_shifts(ready, plain, sites, feeds))
    before, after = _errors(model, [plain, build(corrected)], feeds)
    return corrected if after < before else model


def _with_biases(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[_Site]]:
    """Copy a model so that each of its layers has a name and a bias of its own, zero where it had none."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    _name_nodes(copy)
    made, reading, shapes = makers(copy), readers(copy), shapes_of(copy)
    sites = []
    for layer in layers_of(copy):
        node, slot, axes, gain = made[layer.output], 2, (0,), 1.0
        if layer.op == "MatMul":
            following = reading.get(layer.output, [])
            if len(following) != 1 or following[0].op_type != "Add" or len(shapes.get(layer.output, ())) != 2:
                continue
            node = following[0]
            slot = 1 if node.input[0] == layer.output else 0
        elif layer.bias is None:
            _add_bias(copy, node)
        if layer.op == "Gemm":
            gain = attribute(node, "beta", 1.0)
        elif layer.op != "MatMul":
            axes = (0, *range(2, len(weights_of(copy)[layer.weight].dims)))
        if gain and node.input[slot] in weights_of(copy):
            sites.append(_Site(layer.node, axes, own(copy, node, slot).name, gain))
    return copy, sites


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give each node without a name, or with another's, one of its own."""
    taken = set[str]()
    for node in model.graph.node:
        if not node.name or node.name in taken:
            node.name = unused(model, f"{node.op_type}.{node.output[0]}")
        taken.add(node.name)


def _add_bias(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Give a Conv, ConvTranspose or Gemm a bias of zeros."""
    weight = weights_of(model)[node.input[1]]
    if node.op_type == "Gemm":
        outputs = weight.dims[0 if attribute(node, "transB", 0) else 1]
    else:
        outputs = weight.dims[0] if node.op_type == "Conv" else weight.dims[1] * attribute(node, "group", 1)
    name = unused(model, f"{node.input[1]}.bias")
    zeros = np.zeros(outputs, helper.tensor_dtype_to_np_dtype(weight.data_type))
    model.graph.initializer.append(numpy_helper.from_array(zeros, name))
    node.input[2:] = [name]


def _mean_shifts(
    model: onnx.ModelProto, quantized: onnx.ModelProto, sites: list[_Site], feeds: Feeds
) -> dict[_Site, Floats]:
    """Find how far each layer's mean is off once all layers before it are corrected, in one pass over the images.

    The paper corrects a layer, quantizes anew and goes on to the next: as many passes as layers. Here the quantized graph
    gets the float model's means of the batch as inputs and moves each layer's output to them as it runs, so that each
    layer reads what corrected layers give. The moves, averaged over the batches, are the corrections. They also keep ONNX
    Runtime from fusing, so layers are computed in float on rounded values: what 16-bit sums lose is not seen here.
    """
    names = {node.name: node.op_type for node in quantized.graph.node}
    known = [site for site in sites if site.node in names and names[site.node] in WEIGHTED]
    if not known:
        raise QuantizationError(
            "bias correction: no layer of the float model is found by its node's name in the quantized one"
        )
    truth, moved = _session(_with_means(model, known)), _session(_with_moves(quantized, known))
    totals: dict[_Site, Floats] = {}
    for batch in feeds.batches():
        means = truth.run([_MEAN + site.node for site in known], batch)
        targets = {_MEAN + site.node: mean for site, mean in zip(known, means, strict=True)}
        moves = moved.run([_MOVE + site.node for site in known], {**batch, **targets})
        share = len(next(iter(batch.values()))) / feeds.count
        for site, move in zip(known, moves, strict=True):
            totals[site] = totals.get(site, 0.0) + share * move.astype(np.float64).ravel()
    return totals


def _with_means(model: onnx.ModelProto, sites: list[_Site]) -> onnx.ModelProto:
    """Add to the float model an output for each layer's mean."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = {node.name: node for node in copy.graph.node}
    for site in sites:
        copy.graph.node.append(_mean_node(copy, site, nodes[site.node].output[0], _MEAN + site.node))
        copy.graph.output.append(onnx.ValueInfoProto(name=_MEAN + site.node))
    return copy


def _with_moves(quantized: onnx.ModelProto, sites: list[_Site]) -> onnx.ModelProto:
    """Move each layer's output to a mean that is an input, and add an output for how far that was."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(quantized.SerializeToString())
    del copy.graph.node[:]
    at = {site.node: site for site in sites}
    for original in quantized.graph.node:
        node = copy.graph.node.add()
        node.CopyFrom(original)
        if node.name not in at:
            continue
        target, move = _MEAN + node.name, _MOVE + node.name
        node.output[0] = f"{move}/raw"
        copy.graph.node.extend(
            [
                _mean_node(copy, at[node.name], f"{move}/raw", f"{move}/mean"),
                helper.make_node("Sub", [target, f"{move}/mean"], [move]),
                helper.make_node("Add", [f"{move}/raw", move], [original.output[0]]),
            ]
        )
        copy.graph.input.append(helper.make_tensor_value_info(target, onnx.TensorProto.FLOAT, None))
        copy.graph.output.append(onnx.ValueInfoProto(name=move))
    return copy


def _mean_node(model: onnx.ModelProto, site: _Site, tensor: str, output: str) -> onnx.NodeProto:
    """Make the node for a layer's mean in each channel; its axes are an attribute before opset 18 and an input since."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 18:
        return helper.make_node("ReduceMean", [tensor], [output], axes=site.axes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(site.axes, np.int64), f"{output}/axes"))
    return helper.make_node("ReduceMean", [tensor, f"{output}/axes"], [output])


def _errors(model: onnx.ModelProto, candidates: list[onnx.ModelProto], feeds: Feeds) -> list[float]:
    """Measure each candidate's squared error over the float model's squared outputs, summed over the float outputs."""
    truth, others = _session(model), [_session(candidate) for candidate in candidates]
    names = [value.name for value in truth.get_outputs() if value.type == "tensor(float)"]
    power, errors = np.zeros(len(names)), np.zeros((len(others), len(names)))
    for batch in feeds.batches():
        expected = [array.astype(np.float64) for array in truth.run(names, batch)]
        power += [np.square(array).sum() for array in expected]
        for row, other in zip(errors, others, strict=True):
            got = other.run(names, batch)
            row += [np.square(one - array).sum() for one, array in zip(got, expected, strict=True)]
    relative: list[float] = (errors / np.where(power > 0, power, 1.0)).sum(axis=1).tolist()
    return relative


def _session(model: onnx.ModelProto) -> Any:
    """Load a model as it would run on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen types of its own, all meaning: it did not load
        reason = " ".join(str(error).split())[:300]
        raise QuantizationError(f"bias correction: ONNX Runtime could not load the model ({reason})") from error


def _shifted(model: onnx.ModelProto, shifts: dict[_Site, Floats]) -> onnx.ModelProto:
    """Add each site's shift to its bias, in a copy."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    weights = weights_of(copy)
    for site, shift in shifts.items():
        tensor = weights[site.bias]
        bias = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((bias + shift / site.gain).astype(bias.dtype), site.bias))
    return copy
