"""The steps that make a float model ready to quantize; none may change what it answers by more than rounding."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper, inliner, version_converter

from edgecnn.errors import QuantizationError
from edgecnn.quantization.suitable import opset_of

# Per-channel QuantizeLinear came with opset 13 and HardSwish with 14; 17 is what every ONNX Runtime since 1.12 runs.
FLOOR, LOWEST_FLOOR = 17, 13
IR = 8  # goes with opset 17; more only where a newer opset asks for it
_ONNX = ("", "ai.onnx")
_FOLDED = re.compile(r"^(?:Conv(?:Bn|Mul|Add)Fusion_(?:(?:BN_|Mul_|Add_)?B|W)_)+(.+?)(?:_token_\d+)?$")

Step = Callable[[onnx.ModelProto], onnx.ModelProto]


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights constants, functions part of the graph, and free sizes names of their own.

    Weights listed as inputs could be overridden by a caller, so nothing may be folded into them. A size called `?`
    would count as the same wherever it stands.
    """
    model = inliner.inline_local_functions(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    _keep(model.graph.input, [value for value in model.graph.input if value.name not in weights])
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not (size.dim_value > 0 or re.fullmatch(r"[A-Za-z_]\w*", size.dim_param)):
                size.dim_param = "batch" if axis == 0 else re.sub(r"\W", "_", f"{value.name}_{axis}")
    _name_nodes(model)
    model.ir_version = max(model.ir_version, IR)
    return model


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and batch norms and remove what does nothing: ONNX Runtime's basic optimisations.

    These are the ones that hold for any machine; the higher levels put in operators and layouts of this CPU.
    """
    known = {node.domain for node in model.graph.node} | {*_ONNX}
    with tempfile.TemporaryDirectory(prefix="edgecnn-") as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    foreign = sorted({node.domain for node in folded.graph.node} - known)
    if foreign:
        raise QuantizationError(f"ONNX Runtime put in operators of {', '.join(foreign)}")
    used = {node.domain for node in folded.graph.node} | {""}
    _keep(folded.opset_import, [entry for entry in folded.opset_import if entry.domain in used])
    return folded


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the model up to opset 17 by onnx's converter; one of 13 or more that it cannot convert stays as it is."""
    before = opset_of(model) or 1
    if before >= FLOOR:
        return model
    try:
        converted = version_converter.convert_version(model, FLOOR)
    except Exception:  # the converter raises RuntimeError, or the checker's own type, for what it does not know
        if before >= LOWEST_FLOOR:
            return model
        raise
    if before <= 10:
        _keep_old_resize(converted)
    return fold(converted)  # the converter puts in Constant nodes


def _keep_old_resize(model: onnx.ModelProto) -> None:
    """Write out what Upsample and Resize meant before opset 11, where the converter leaves the new default."""
    for node in model.graph.node:
        if node.op_type == "Resize":
            modes = [entry for entry in node.attribute if entry.name == "mode"]
            _keep(node.attribute, modes)
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))


def fuse_hard_swish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put HardSwish together where it is spelled out as Add, Clip, Mul and Div, by onnxscript's rewrite rules."""
    operators = Counter(node.op_type for node in model.graph.node)
    if (opset_of(model) or 1) < 14 or not (operators["HardSigmoid"] or (operators["Clip"] and operators["Div"])):
        return model
    from onnxscript.rewriter import rewrite  # a second and a half to import, for the nets that need it
    from onnxscript.rewriter.rules.common import fuse_hardswish_rules

    rewritten: onnx.ModelProto = rewrite(model, fuse_hardswish_rules())
    for index, node in enumerate(node for node in rewritten.graph.node if node.op_type == "HardSwish"):
        node.name = f"HardSwish_{index}"  # by place, for the rules' own names depend on which of them matched
    return rewritten


def name_all(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a name of its own, a folded weight the name that it had before, and all entries one order.

    ONNX Runtime writes weights and attributes in an order that differs from run to run, and so would any hash of the model.
    """
    _name_nodes(model)
    _restore_names(model)
    for node in model.graph.node:
        node.ClearField("doc_string")  # torch's exporter notes paths and code lines of its machine in both
        del node.metadata_props[:]
        _keep(node.attribute, sorted(node.attribute, key=lambda entry: str(entry.name)))
    used = dict.fromkeys(name for node in model.graph.node for name in node.input)
    places = {name: place for place, name in enumerate(used)}
    order = sorted(model.graph.initializer, key=lambda tensor: (places.get(tensor.name, len(places)), tensor.name))
    _keep(model.graph.initializer, order)
    return model


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            taken[node.name] -= 1
            name = node.name or f"{node.op_type}_{index}"
            while name in taken:
                name += "'"
            node.name = name
            taken[name] = 1


def _restore_names(model: onnx.ModelProto) -> None:
    names = {tensor.name for tensor in model.graph.initializer}
    names |= {name for node in model.graph.node for name in (*node.input, *node.output)}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        old = _FOLDED.match(tensor.name)
        if old and old[1] not in names:
            names.add(old[1])
            renamed[tensor.name] = tensor.name = old[1]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Note the shape of every tensor, as far as onnx can tell it."""
    del model.graph.value_info[:]  # what tools on the way noted may go by names that are no more
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    imports = [(entry.domain, entry.version) for entry in inferred.opset_import]
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports]
    inferred.ir_version = max(IR, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    return inferred


def average_planes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write an AveragePool over the whole plane as GlobalAveragePool, which is quantized with a range of its own.

    ONNX Runtime's quantizer gives AveragePool its input's range, of which means fill a fifth: 1 to 7 dB of error.
    """
    values = (*model.graph.input, *model.graph.value_info)
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
    for node in model.graph.node:
        if node.op_type != "AveragePool":
            continue
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plane = shapes.get(node.input[0], [])[2:]
        plain = not any(found.get("pads", ())) and found.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        if plane and list(found["kernel_shape"]) == plane and plain:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    return model


STEPS: dict[str, Step] = {
    "reading weights and functions": tidy,
    "folding": fold,
    "converting the opset": raise_opset,
    "putting HardSwish together": fuse_hard_swish,
    "naming": name_all,
    "inferring shapes": infer_shapes,
    "averaging whole planes": average_planes,
}


def _keep(field: Any, entries: list[Any]) -> None:
    """Replace what a repeated protobuf field holds; copied first, because clearing it ends its entries."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)
