"""Ways to plant a fault into a bundle so that every hash in it is good again, as a faulty exporter would leave it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Edit = Callable[[onnx.ModelProto], None]
Change = Callable[[Array], Array]


def rehash(bundle: Path, name: str) -> None:
    """Write a changed file's size and hash into the manifest."""
    data, manifest = (bundle / name).read_bytes(), json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def plant(bundle: Path, artifact: str, edit: Edit) -> None:
    """Change one ONNX artifact in place."""
    path = bundle / f"{artifact}.onnx"
    model = onnx.load(str(path))
    before = model.SerializeToString(deterministic=True)
    edit(model)
    assert model.SerializeToString(deterministic=True) != before, "the fault was not planted"
    replace(bundle, artifact, model)


def replace(bundle: Path, artifact: str, model: onnx.ModelProto) -> None:
    """Put another model in the place of an ONNX artifact."""
    path = bundle / f"{artifact}.onnx"
    path.write_bytes(model.SerializeToString())
    rehash(bundle, path.name)


def plant_array(bundle: Path, name: str, change: Change) -> None:
    """Change one of the goldens' arrays in place."""
    path = bundle / "goldens" / "arrays.npz"
    with np.load(path) as stored:
        arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
    arrays[name] = change(arrays[name])
    np.savez_compressed(path, **arrays)
    rehash(bundle, "goldens/arrays.npz")


def initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    """Find one constant of a model."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change_constant(model: onnx.ModelProto, name: str, change: Change) -> None:
    """Change one constant; its dtype stays, its shape may not."""
    tensor = initializer(model, name)
    value = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.array(change(value), dtype=value.dtype), name))


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    """List the nodes of one operator, in graph order."""
    return [node for node in model.graph.node if node.op_type == kind]


def largest(value: Array) -> tuple[int, ...]:
    """Find the place of the largest magnitude."""
    return tuple(int(index) for index in np.unravel_index(np.abs(value).argmax(), value.shape))


def put(value: Array, at: tuple[int, ...], to: float) -> Array:
    """Set one element."""
    value[at] = to
    return value


def bump(value: Array, share: float) -> Array:
    """Add a share of the largest magnitude to the element that has it."""
    value[largest(value)] += share * np.abs(value).max()
    return value


def step(value: Array) -> Array:
    """Move the largest element by the smallest step that its type has."""
    at = largest(value)
    return put(value, at, float(np.nextafter(value[at], np.float32(np.inf))))


def layer(model: onnx.ModelProto, which: str) -> onnx.NodeProto:
    """Find the `first` or `last` convolution, or the `head`."""
    return nodes(model, "Gemm")[0] if which == "head" else nodes(model, "Conv")[0 if which == "first" else -1]


def weight(which: str, change: Change) -> Edit:
    """Change the weights of a layer."""
    return lambda model: change_constant(model, layer(model, which).input[1], change)


def bias(which: str, change: Change) -> Edit:
    """Change the bias of a layer."""
    return lambda model: change_constant(model, layer(model, which).input[2], change)


def constant(kind: str, change: Change) -> Edit:
    """Change the second input of the first node of a kind."""
    return lambda model: change_constant(model, nodes(model, kind)[0].input[1], change)


def attribute(which: str, name: str, value: Any) -> Edit:
    """Set an attribute of a layer."""

    def edit(model: onnx.ModelProto) -> None:
        node = layer(model, which)
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def operator(old: str, new: str, at: int = 0, **attributes: Any) -> Edit:
    """Make another operator of one node."""

    def edit(model: onnx.ModelProto) -> None:
        node = nodes(model, old)[at]
        node.op_type = new
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    return edit


def rename(old: str, new: str) -> Edit:
    """Rename an input or output."""

    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.output, *model.graph.input):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit


def behind(output: str, kind: str, extra: Sequence[Array], dtype: int | None = None, **attributes: Any) -> Edit:
    """Put one more operator behind an output."""

    def edit(model: onnx.ModelProto) -> None:
        inner = f"{output}_inner"
        for node in model.graph.node:
            node.output[:] = [inner if name == output else name for name in node.output]
            node.input[:] = [inner if name == output else name for name in node.input]
        names = [f"{output}_extra_{index}" for index in range(len(extra))]
        model.graph.initializer.extend(
            numpy_helper.from_array(value, name) for value, name in zip(extra, names, strict=True)
        )
        model.graph.node.append(helper.make_node(kind, [inner, *names], [output], **attributes))
        value = next(value for value in model.graph.output if value.name == output)
        old = value.type.tensor_type.elem_type
        shape = value.type.tensor_type.shape if kind in ("Cast", "Mul", "Gather") else None
        sides = [side.dim_param or side.dim_value for side in shape.dim] if shape else None
        if kind == "Gather" and sides:
            sides[1] = len(extra[0])
        value.CopyFrom(helper.make_tensor_value_info(output, dtype or old, sides))

    return edit


def int64(*values: int) -> Array:
    """Make a vector of int64."""
    return np.array(values, dtype=np.int64)


def dequantizer(model: onnx.ModelProto, kind: str, place: int) -> onnx.NodeProto:
    """Find what dequantizes an input of the last node of a kind: 0 is the activation, 1 the weights."""
    wanted = nodes(model, kind)[-1].input[place]
    return next(node for node in nodes(model, "DequantizeLinear") if node.output[0] == wanted)


def scale(kind: str, place: int, factor: float, everywhere: bool = False) -> Edit:
    """Change the scale of an input of the last node of a kind, in its first channel or in all."""

    def change(value: Array) -> Array:
        flat = value.reshape(-1)
        flat[: flat.size if everywhere else 1] *= factor
        return flat.reshape(value.shape)

    return lambda model: change_constant(model, dequantizer(model, kind, place).input[1], change)


def int8_weights(kind: str, change: Change) -> Edit:
    """Change the int8 weights of the last node of a kind."""
    return lambda model: change_constant(model, dequantizer(model, kind, 1).input[0], change)
