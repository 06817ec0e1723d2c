"""What a network is made of, as plain data: its layers, and the shapes, costs and receptive fields that follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from edgecnn.errors import UsageError
from edgecnn.spec import Frozen

Count = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Side = Annotated[int, msgspec.Meta(ge=1, le=64)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=64)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Activation = Literal["relu", "relu6", "none"]
MOST = 50_000_000  # parameters of a net, and values that a layer gives for one image: more is a slip of the finger


class Conv(Frozen, frozen=True, tag_field="kind", tag="conv"):
    """A convolution with batch norm and activation, which int8 kernels fuse into one.

    `padding` "same" is half the kernel, so that a stride of 1 keeps the size where the kernel is odd.
    """

    filters: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Margin | Literal["same"] = "same"
    norm: bool = True
    activation: Activation = "relu"


class Depthwise(Frozen, frozen=True, tag_field="kind", tag="depthwise"):
    """A convolution of each channel by itself (Howard et al. 2017); a `conv` of kernel 1 usually follows."""

    kernel: Side = 3
    stride: Side = 1
    padding: Margin | Literal["same"] = "same"
    norm: bool = True
    activation: Activation = "relu"


class Pool(Frozen, frozen=True, tag_field="kind", tag="pool"):
    """The maximum or the average of each window; kernel "all" takes the whole plane, `stride` None is the kernel's."""

    pooling: Literal["max", "average"] = "max"
    kernel: Side | Literal["all"] = 2
    stride: Side | None = None
    padding: Margin = 0


class Linear(Frozen, frozen=True, tag_field="kind", tag="linear"):
    """A fully connected layer; planes before it are flattened."""

    units: Count
    activation: Activation = "relu"


class Dropout(Frozen, frozen=True, tag_field="kind", tag="dropout"):
    """Zeroes each value, while training, with the probability `rate`."""

    rate: Share = 0.2


class Residual(Frozen, frozen=True, tag_field="kind", tag="residual"):
    """Layers around which their input is added again (He et al. 2016).

    Where the shape changes the shortcut is a 1x1 convolution with batch norm. `activation` follows the sum.
    """

    layers: tuple[Conv | Depthwise | Pool, ...]
    activation: Activation = "none"


Layer = Conv | Depthwise | Pool | Linear | Dropout | Residual


class ModelConfig(Frozen, frozen=True):
    """A network: the name it was asked for by, and its layers; the linear layer to the classes follows them.

    A network of someone else's has no layers here but the `function`, `package.module:name`, that makes it.
    """

    net: str
    layers: tuple[Layer, ...] = ()
    function: str | None = None

    def __post_init__(self) -> None:
        """Refuse a network that is made of nothing, or in two ways."""
        if bool(self.layers) == (self.function is not None):
            raise ValueError("a net has either layers or a function that makes it")


class UnfitError(UsageError):
    """A layer whose shape does not fit; `path` leads to it: its index, and its index inside a residual."""

    def __init__(self, message: str, path: tuple[int, ...]) -> None:
        super().__init__(message)
        self.path = path


class TooLargeError(UnfitError):
    """A layer that would take more memory than any net for an edge box."""


@dataclass(frozen=True)
class Shape:
    """What flows between layers: `size` is (channels, height, width), or (units,) once flattened.

    `field` is the side of the receptive field in pixels of the image, None where that is all of it, and `jump` the
    image pixels from one value to the next.
    """

    size: tuple[int, ...]
    field: int | None = 1
    jump: int = 1


class Row(Frozen, frozen=True):
    """One line of a network's table: a layer, the shape it gives, what it costs, and how many pixels it sees.

    `macs` are multiply-accumulates for one image. `field` is the side of the receptive field in pixels, None where
    that is as large as the image or larger.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    field: int | None


def trace(layers: Sequence[Layer], image: tuple[int, int, int], classes: int) -> list[Row]:
    """Follow an image of (channels, height, width) through the layers and the final linear one.

    Raises:
        UnfitError: a layer does not fit what comes before it, or the net is too large to be meant.
    """
    shape = Shape(image)
    rows: list[Row] = []
    for index, layer in enumerate((*layers, Linear(units=classes, activation="none"))):
        shape, found = _apply(layer, shape, (index,))
        rows += found
        _check_size(rows, found, (index,))
    return [msgspec.structs.replace(row, field=_within(row.field, image)) for row in rows]


def _check_size(rows: Sequence[Row], found: Sequence[Row], path: tuple[int, ...]) -> None:
    """Refuse a layer, `found`, that takes the net so far, `rows`, beyond what can be meant."""
    parameters = sum(row.parameters for row in rows)
    if parameters > MOST:
        raise TooLargeError(f"up to here the net has {parameters:,} parameters, and {MOST:,} is the most", path)
    values = max(math.prod(row.shape) for row in found)
    if values > MOST:
        raise TooLargeError(f"for one image {values:,} values come out of this, and {MOST:,} is the most", path)


def _within(field: int | None, image: tuple[int, int, int]) -> int | None:
    return None if field is None or field >= max(image[1:]) else field


def _grown(field: int | None, pixels: int) -> int | None:
    return None if field is None else field + pixels


def outputs(layers: Sequence[Layer], image: tuple[int, int, int]) -> Iterator[Shape]:
    """Give the shape before the first layer and after each."""
    shape = Shape(image)
    yield shape
    for index, layer in enumerate(layers):
        shape, _ = _apply(layer, shape, (index,))
        yield shape


def _apply(layer: Layer, shape: Shape, path: tuple[int, ...]) -> tuple[Shape, list[Row]]:
    if isinstance(layer, Residual):
        return _residual(layer, shape, path)
    if isinstance(layer, Linear):
        return _linear(layer, shape)
    if isinstance(layer, Dropout):
        return shape, [_row(f"dropout {layer.rate:g}", shape)]
    if len(shape.size) == 1:
        raise UnfitError(f"{_named(layer)} needs planes, but a linear layer before it has flattened them", path)
    if isinstance(layer, Pool):
        return _pool(layer, shape, path)
    return _convolution(layer, shape, path)


def _convolution(layer: Conv | Depthwise, shape: Shape, path: tuple[int, ...]) -> tuple[Shape, list[Row]]:
    channels = shape.size[0]
    filters = layer.filters if isinstance(layer, Conv) else channels
    after = _slide(layer, shape, layer.kernel, layer.stride, margin(layer), filters, path)
    weights = layer.kernel**2 * filters * (channels if isinstance(layer, Conv) else 1)
    macs = weights * after.size[1] * after.size[2]
    return after, [_row(_named(layer), after, weights + (2 * filters if layer.norm else filters), macs)]


def _pool(layer: Pool, shape: Shape, path: tuple[int, ...]) -> tuple[Shape, list[Row]]:
    channels = shape.size[0]
    if layer.kernel == "all":
        if layer.stride is not None or layer.padding:
            raise UnfitError(f"{_named(layer)}: one window has neither stride nor padding", path)
        after = Shape((channels, 1, 1), None, shape.jump)
        return after, [_row(_named(layer), after)]
    if layer.padding * 2 > layer.kernel:
        raise UnfitError(f"{_named(layer)}: a padding of {layer.padding} is more than half of the kernel", path)
    after = _slide(layer, shape, layer.kernel, layer.stride or layer.kernel, layer.padding, channels, path)
    return after, [_row(_named(layer), after)]


def _slide(
    layer: Layer, shape: Shape, kernel: int, stride: int, padding: int, channels: int, path: tuple[int, ...]
) -> Shape:
    _, height, width = shape.size
    if min(height, width) + 2 * padding < kernel:
        seen = f"{width}x{height}" + (f", after strides of {shape.jump} in all" if shape.jump > 1 else "")
        raise UnfitError(f"{_named(layer)} does not fit: what comes in is {seen}", path)
    after = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return Shape((channels, *after), _grown(shape.field, (kernel - 1) * shape.jump), shape.jump * stride)


def _linear(layer: Linear, shape: Shape) -> tuple[Shape, list[Row]]:
    inputs = math.prod(shape.size)
    after = Shape((layer.units,), None)
    name = f"linear {layer.units}" + ("" if layer.activation == "none" else f" {layer.activation}")
    return after, [Row(name=name, shape=after.size, parameters=(inputs + 1) * layer.units, macs=inputs * layer.units, field=None)]  # fmt: skip


def _residual(layer: Residual, shape: Shape, path: tuple[int, ...]) -> tuple[Shape, list[Row]]:
    if len(shape.size) == 1 or not layer.layers:
        why = "needs planes, but a linear layer before it has flattened them" if layer.layers else "holds no layers"
        raise UnfitError(f"residual {why}", path)
    inner, rows = shape, []
    for index, part in enumerate(layer.layers):
        inner, found = _apply(part, inner, (*path, index))
        rows += [msgspec.structs.replace(row, name=f"  {row.name}") for row in found]
    if needs_projection(shape.size, inner.size):
        stride = projection_stride(shape.size, inner.size)
        if stride is None:
            raise UnfitError(
                f"residual: its layers make {_text(inner.size)} of {_text(shape.size)}, and no stride makes a shortcut of that",
                path,
            )
        projection = Conv(filters=inner.size[0], kernel=1, stride=stride, padding=0, activation="none")
        _, found = _convolution(projection, shape, path)
        rows += [msgspec.structs.replace(row, name=f"  shortcut {row.name}", field=inner.field) for row in found]
    total = "add" if layer.activation == "none" else f"add {layer.activation}"
    return inner, [*rows, _row(f"residual {total}", inner)]


def needs_projection(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Say whether a shortcut has to change the shape."""
    return before != after


def projection_stride(before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Find the stride by which a 1x1 convolution takes one plane's size to the other's."""
    for stride in range(1, max(before[1:]) + 1):
        if tuple((side - 1) // stride + 1 for side in before[1:]) == after[1:]:
            return stride
    return None


def margin(layer: Conv | Depthwise) -> int:
    """Give the padding in pixels."""
    return layer.kernel // 2 if layer.padding == "same" else layer.padding


def _row(name: str, shape: Shape, parameters: int = 0, macs: int = 0) -> Row:
    return Row(name=name, shape=shape.size, parameters=parameters, macs=macs, field=shape.field)


def _named(layer: Layer) -> str:
    if isinstance(layer, Conv | Depthwise):
        filters = f" {layer.filters}" if isinstance(layer, Conv) else ""
        stride = f"/{layer.stride}" if layer.stride > 1 else ""
        norm = "" if layer.norm else " without norm"
        act = "" if layer.activation == "none" else f" {layer.activation}"
        kind = "conv" if isinstance(layer, Conv) else "depthwise"
        return f"{kind} {layer.kernel}x{layer.kernel}{stride}{filters}{norm}{act}"
    if isinstance(layer, Pool):
        kernel = "all" if layer.kernel == "all" else f"{layer.kernel}x{layer.kernel}"
        stride = f"/{layer.stride}" if layer.stride else ""
        return f"{layer.pooling} pool {kernel}{stride}"
    return type(layer).__name__.lower()


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
