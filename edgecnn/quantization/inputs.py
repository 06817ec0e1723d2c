"""Which of a model's inputs is the image, and how its pixels lie in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import numpy_helper

from edgecnn.errors import UsageError
from edgecnn.quantization.graph import readers, weights_of

Layout = Literal["nchw", "nhwc"]

_CHANNELS = (1, 3, 4)
_TO_PLANES = [0, 3, 1, 2]
# What normalises pixels on their way to the first convolution and leaves the axes as they are.
_ELEMENTWISE = (
    "Add", "BatchNormalization", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "Gather", "Identity", "Mul", "Pad",
    "QuantizeLinear", "Resize", "Slice", "Sub", "Relu",
)  # fmt: skip


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images; sizes that are free are None. `dtype` is numpy's name, such as `uint8`."""

    name: str
    layout: Layout
    dtype: str
    batch: int | None
    height: int | None
    width: int | None
    channels: int

    @property
    def written(self) -> str:
        """Its shape as people write it, such as `N x 3 x 48 x 192`."""
        height, width = self.height or "H", self.width or "W"
        sizes = (self.channels, height, width) if self.layout == "nchw" else (height, width, self.channels)
        return " x ".join(map(str, (self.batch or "N", *sizes)))


def image_input(model: onnx.ModelProto, name: str | None = None, layout: Layout | None = None) -> ImageInput:
    """Find the input with four axes and 1, 3 or 4 channels; `name` chooses among several, or one of other channels.

    `layout` overrules what the model tells.

    Where the channels are is told by what reads the input: a convolution takes planes (NCHW), so an input that is
    transposed to planes first has its channels last. Only where that says nothing is it told by the sizes.

    Raises:
        UsageError: there is no such input, more than one, or none of this name; the message lists what there is.
    """
    weights = weights_of(model)
    values = {value.name: value for value in model.graph.input if value.name not in weights}
    listed = ", ".join(f"{one} {_written(value)}" for one, value in values.items())
    if name is not None:
        if name not in values:
            raise UsageError(f"the model has no input {name!r}; it has {listed}")
        found = _as_image(model, values[name], layout)
        if found is None:
            raise UsageError(
                f"input {name} {_written(values[name])} takes no images: four axes are needed; give .npz feeds"
            )
        return found
    images = [
        image for value in values.values() if (image := _as_image(model, value, layout)) and image.channels in _CHANNELS
    ]
    if len(images) == 1:
        return images[0]
    if not images:
        raise UsageError(
            f"no input takes images of 1, 3 or 4 channels; there are {listed}: give .npz feeds, or name one"
        )
    candidates = ", ".join(f"{image.name} ({image.written})" for image in images)
    raise UsageError(f"more than one input could take the images: {candidates}; name the one")


def sizes_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Give an input's sizes, None for free ones."""
    return [size.dim_value if size.dim_value > 0 else None for size in value.type.tensor_type.shape.dim]


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """Give numpy's name of an input's type."""
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _as_image(model: onnx.ModelProto, value: onnx.ValueInfoProto, wanted: Layout | None) -> ImageInput | None:
    sizes = sizes_of(value)
    if len(sizes) != 4:
        return None
    traced, channels = _traced(model, value.name)
    layout = wanted or traced
    first, last = sizes[1], sizes[3]
    if layout is None:
        if (first in _CHANNELS) == (last in _CHANNELS):
            return None
        layout = "nchw" if first in _CHANNELS else "nhwc"
    channels = (first if layout == "nchw" else last) or channels
    if channels is None:
        return None
    height, width = sizes[2:] if layout == "nchw" else sizes[1:3]
    return ImageInput(value.name, layout, dtype_of(value), sizes[0], height, width, channels)


def _traced(model: onnx.ModelProto, name: str) -> tuple[Layout | None, int | None]:
    """Follow the image to the first convolution; tell the layout, and the channels that this convolution takes."""
    weights = weights_of(model)
    layout: Layout | None = None
    for node in _onward(model, name):
        if node.op_type == "Transpose":
            layout = "nhwc"
        elif node.input[1] in weights:
            group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            return layout or "nchw", numpy_helper.to_array(weights[node.input[1]]).shape[1] * group
        else:
            return layout or "nchw", None
    return layout, None


def _onward(model: onnx.ModelProto, name: str) -> Iterator[onnx.NodeProto]:
    """Give the transposes to planes on the way, then the first convolution, going through what leaves the axes alone."""
    read_by, seen, waiting = readers(model), {name}, [name]
    while waiting:
        for node in read_by.get(waiting.pop(0), []):
            planes = node.op_type == "Transpose" and _perm(node) == _TO_PLANES
            if planes or node.op_type == "Conv":
                yield node
            if node.op_type == "Conv":
                return
            if planes or node.op_type in _ELEMENTWISE:
                waiting += [one for one in node.output if one not in seen]
                seen |= set(node.output)


def _perm(node: onnx.NodeProto) -> list[int]:
    return next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [])


def _written(value: onnx.ValueInfoProto) -> str:
    sizes = [str(size or "?") for size in sizes_of(value)]
    return f"({dtype_of(value)} {' x '.join(sizes)})"
