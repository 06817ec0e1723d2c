"""The proof that a quantized file runs in int8: which layers ONNX Runtime fuses, and why each other one stayed in float."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgecnn.backends.onnxruntime import import_onnxruntime
from edgecnn.device.fused import INT8_KERNELS
from edgecnn.errors import QuantizationError
from edgecnn.quantization.graph import WEIGHTED, layers_of, makers, readers, weights_of
from edgecnn.spec import Frozen

_SAME_SCALE = 0.02  # by which a bias's scale may differ from the products'; ONNX Runtime 1.32 takes it, but not 0.05
_FUSABLE = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")


class LayerFusion(Frozen, frozen=True):
    """What became of one node: `kernel` in the optimised graph, whether it computes in int8, and if not why."""

    name: str
    node: str
    op: str
    kernel: str
    int8: bool
    why: str | None = None


class Fusion(Frozen, frozen=True):
    """What ONNX Runtime's optimised graph for this machine's CPU holds; `operators` counts its nodes by type."""

    layers: tuple[LayerFusion, ...]
    others: tuple[LayerFusion, ...]
    operators: dict[str, int]

    def count(self, op: str, int8: bool) -> int:
        """Count the layers of one operator that run in int8, or in float."""
        return sum(layer.op == op and layer.int8 is int8 for layer in self.layers)


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the graph that ONNX Runtime makes of a model for this CPU; to be looked at only.

    It is never kept: it holds this CPU's layouts and gives wrong answers on another.

    Raises:
        QuantizationError: ONNX Runtime does not load the model.
    """
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise QuantizationError(f"ONNX Runtime does not load the quantized model: {reason}") from error
        return onnx.load(options.optimized_model_filepath)


def prove_fusion(quantized: onnx.ModelProto, floats: Collection[str] = ()) -> Fusion:
    """Look up every weighted layer of a QDQ model in the optimised graph, and say why those not in int8 are not.

    `floats` are the nodes that were left in float on purpose.
    """
    graph = optimised(quantized).graph
    kernels = {re.sub(r"_token_\d+$", "", node.name): node.op_type for node in graph.node}
    layers = []
    for layer in layers_all(quantized):
        kernel = kernels.get(layer.node, layer.op)
        fused = kernel in INT8_KERNELS
        why = None if fused else _why(quantized, layer.node, layer.op, floats)
        layers.append(LayerFusion(name=layer.name, node=layer.node, op=layer.op, kernel=kernel, int8=fused, why=why))
    others = []
    for node in quantized.graph.node:
        if node.op_type in _FUSABLE and node.op_type not in WEIGHTED:
            kernel = kernels.get(node.name, node.op_type)
            fused = kernel.startswith("QLinear")
            why = None if fused else _why(quantized, node.name, node.op_type, floats)
            others.append(
                LayerFusion(name=node.name, node=node.name, op=node.op_type, kernel=kernel, int8=fused, why=why)
            )
    operators = Counter(node.op_type for node in graph.node)
    return Fusion(layers=tuple(layers), others=tuple(others), operators=dict(sorted(operators.items())))


def layers_all(quantized: onnx.ModelProto) -> list[LayerFusion]:
    """List the weighted layers of a QDQ model, whether their weights are quantized or not, by their own names."""
    names = {layer.node: layer.name for layer in layers_of(quantized)}
    made, constant = makers(quantized), weights_of(quantized)
    found = []
    for node in quantized.graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            continue
        source = made.get(node.input[1])
        weight = _stored_weight(node.input[1], source, made, constant)
        if node.name not in names and weight is None:
            continue  # it multiplies two activations
        name = names.get(node.name)
        if name is None and weight is not None:
            name = weight.rpartition(".")[0] if weight.endswith("weight") and "." in weight else node.name
        found.append(LayerFusion(name=name or node.name, node=node.name, op=node.op_type, kernel="", int8=False))
    return found


def _stored_weight(
    tensor: str,
    source: onnx.NodeProto | None,
    made: Mapping[str, onnx.NodeProto],
    constant: Mapping[str, onnx.TensorProto],
) -> str | None:
    """Give the name of the float weight that was quantized, or is int8 on disk only; None if it is no weight."""
    if source is None:
        return None
    if source.op_type == "DequantizeLinear" and source.input[0] in constant:
        return str(source.input[0]).removesuffix("_quantized")
    cast = made.get(source.input[0]) if source.op_type == "Mul" else None
    return tensor if cast is not None and cast.op_type == "Cast" and cast.input[0] in constant else None


def _why(model: onnx.ModelProto, name: str, op: str, floats: Collection[str]) -> str:
    """Find the reason why a node computes in float."""
    if name in floats:
        return "left in float on purpose"
    node = next(node for node in model.graph.node if node.name == name)
    made, reading = makers(model), readers(model)
    inputs = node.input[: 2 if op in WEIGHTED else len(node.input)]
    for place, tensor in enumerate(inputs):
        source = made.get(tensor)
        if source is None or source.op_type != "DequantizeLinear":
            what = "its weight" if place and op in WEIGHTED else f"its input {tensor}"
            made_by = f", made by {source.op_type} {source.name}" if source is not None else ""
            return f"{what} is not quantized{made_by}"
    outputs = {value.name for value in model.graph.output}
    last, after = node.output[0], reading.get(node.output[0], [])
    if len(after) == 1 and after[0].op_type in ("Relu", "Clip"):
        last, after = after[0].output[0], reading.get(after[0].output[0], [])
    wrong = _bias_fault(model, node, made) if op in WEIGHTED else None
    if wrong is not None:
        return wrong
    if last in outputs:
        return "its output is the model's, which is float"
    strange = sorted({reader.op_type for reader in after} - {"QuantizeLinear"})
    if strange:
        return f"its output is read in float by {', '.join(strange)}"
    return "ONNX Runtime has no int8 kernel for it here, though all its tensors are quantized"


def _bias_fault(model: onnx.ModelProto, node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> str | None:
    """Say why a layer's bias cannot be added to its integer products, whose scale is its input's times its weight's."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    source = made.get(node.input[2])
    if source is None or source.op_type != "DequantizeLinear":
        return "its bias is not quantized" if node.op_type == "Gemm" else None  # a convolution rounds it itself
    constants = weights_of(model)
    names = [made[name].input[1] for name in node.input[:3]]
    if any(name not in constants for name in names):
        return None
    by_input, by_weight, own = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in names)
    fits = np.allclose(own, by_input * by_weight, rtol=_SAME_SCALE, atol=0)
    return None if fits else "its bias has another scale than its input's times its weight's"
