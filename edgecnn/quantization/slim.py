"""Making a quantized file as small as it can be: in a small net names and zero points take as much as the weights."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Collection, Iterator

import onnx

from edgecnn.quantization.graph import makers, readers
from edgecnn.quantization.qdq import quantized_layers

# What these operators do where an attribute is absent, by the ONNX specification.
_USUAL: dict[str, Callable[[onnx.AttributeProto], bool]] = {
    "dilations": lambda value: set(value.ints) == {1},
    "strides": lambda value: set(value.ints) == {1},
    "pads": lambda value: set(value.ints) == {0},
    "group": lambda value: bool(value.i == 1),
    "auto_pad": lambda value: bool(value.s == b"NOTSET"),
    "ceil_mode": lambda value: bool(value.i == 0),
    "count_include_pad": lambda value: bool(value.i == 0),
    "storage_order": lambda value: bool(value.i == 0),
}
_SLIDING = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the same computation in fewer bytes.

    Initializers with the same values become one, what the quantizer named gets short names, and inferred shapes and
    attributes that say what is so anyway go.
    Inputs, outputs, weights and all nodes but QuantizeLinear and DequantizeLinear keep the names by which people and
    reports know them.
    """
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    _share(copy)
    _rename(copy)
    _drop_defaults(copy)
    del copy.graph.value_info[:]
    return copy


def file_size(model: onnx.ModelProto) -> int:
    """Count the bytes that a quantized model takes as a file."""
    return len(slim(model).SerializeToString())


def _share(model: onnx.ModelProto) -> None:
    """Let equal initializers be one; weights and their zero points are left alone, and the former give layers their names."""
    weights, kept = set(quantized_layers(model).values()), []
    # ONNX Runtime rewrites int8 weights on x86 without VNNI, each with its zero point, and fails where two share one.
    alone = weights | {
        node.input[2]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights and len(node.input) > 2
    }
    first, renamed = dict[bytes, str](), dict[str, str]()
    for tensor in model.graph.initializer:
        content = onnx.TensorProto.FromString(tensor.SerializeToString())
        content.ClearField("name")
        key = content.SerializeToString(deterministic=True)
        if tensor.name in alone or key not in first:
            if tensor.name not in alone:
                first[key] = tensor.name
            kept.append(tensor.SerializeToString())
        else:
            renamed[tensor.name] = first[key]
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.TensorProto.FromString(data) for data in kept)
    _replace(model, renamed)


def _rename(model: onnx.ModelProto) -> None:
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    fixed |= set(quantized_layers(model).values())
    made, reading, names = makers(model), readers(model), dict[str, str]()
    names |= {name: name.removesuffix("_quantized") for name in quantized_layers(model).values()}
    taken = fixed | set(made) | {tensor.name for tensor in model.graph.initializer}
    names = {old: new for old, new in names.items() if new not in taken}
    fresh = _letters(taken | set(names.values()))
    for tensor in model.graph.initializer:
        users = reading.get(tensor.name, [])
        if tensor.name not in fixed and users and all(user.op_type in _PAIRS for user in users):
            names[tensor.name] = next(fresh)
    for name, node in made.items():
        if node.op_type in _PAIRS and name not in fixed:
            names[name] = next(fresh)
    _replace(model, names)
    nodes = _letters({node.name for node in model.graph.node})
    for node in model.graph.node:
        if node.op_type in _PAIRS:
            node.name = next(nodes)


def _letters(taken: Collection[str]) -> Iterator[str]:
    """Give `a`, `b`, ..., `Z`, `aa`, ..., but for names that are taken."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "".join(letters)
            if name not in taken:
                yield name


def _drop_defaults(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type not in _SLIDING:
            continue
        kept = [
            attribute.SerializeToString()
            for attribute in node.attribute
            if attribute.name not in _USUAL or not _USUAL[attribute.name](attribute)
        ]
        del node.attribute[:]
        node.attribute.extend(onnx.AttributeProto.FromString(data) for data in kept)


def _replace(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give tensors other names wherever they stand."""
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
