"""From uint8 pictures to what a model's image input takes: size, layout, number type, normalisation, channel order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from edgecnn.errors import DataError, UsageError
from edgecnn.images import Pixels
from edgecnn.quantization.inputs import ImageInput, dtype_of, image_input, sizes_of
from edgecnn.spec import Fit, Frozen, Preprocess

PREPROCESS, LABELS = "edgecnn.preprocess", "edgecnn.labels"


class InputOptions(Frozen, frozen=True):
    """How images become the model's input; None and `auto` leave it to the model, or to the usual.

    A float32 input gets `(pixel * scale - mean) / std`, with `scale` 1/255 where none is given: `mean` and `std` are
    then shares of white, one number or one a channel, as torchvision writes them, and 0 and 1 where none are given. With
    a `scale` of 1 they are pixel values. Mean and standard deviation are in the order of the channels as the model sees
    them, RGB, or BGR where `order` says so. A uint8 input gets the pixels as they are. `input` names the image input
    where there are several; `height` and `width` are for a model that leaves them free; `fit` and `background` are as
    in `edgecnn.images`.
    """

    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    order: Literal["rgb", "bgr"] | None = None
    input: str | None = None
    height: int | None = None
    width: int | None = None
    fit: Fit | None = None
    background: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be divided or multiplied by."""
        if self.scale is not None and not 0 < self.scale < 1e6:
            raise ValueError(f"scale {self.scale} is not a positive, finite number")
        if self.std is not None and not all(0 < value < 1e6 for value in self.std):
            raise ValueError(f"std {self.std} has a number that is not positive and finite")
        if self.mean is not None and not all(abs(value) < 1e6 for value in self.mean):
            raise ValueError(f"mean {self.mean} has a number that is not finite")


@dataclass(frozen=True)
class Conversion:
    """Turns pictures of one size, uint8 (n, H, W, C) RGB or grey, into the array that one input takes."""

    image: ImageInput
    pictures: Preprocess
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: Literal["rgb", "bgr"]

    def __call__(self, pixels: Pixels) -> npt.NDArray[Any]:
        """Convert some pictures."""
        turned: npt.NDArray[Any] = pixels[..., ::-1] if self.order == "bgr" else pixels
        if self.image.dtype == "float32":
            mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
            turned = (turned.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(turned if self.image.layout == "nhwc" else turned.transpose(0, 3, 1, 2))

    @property
    def statement(self) -> str:
        """Everything that decides what comes out, for keys and reports."""
        layout = f"{self.image.name} {self.image.layout} {self.image.dtype}"
        numbers = (
            f"scale {self.scale!r} mean {self.mean} std {self.std}" if self.image.dtype == "float32" else "as it is"
        )
        return f"{layout} {msgspec.json.encode(self.pictures).decode()} {self.order} {numbers}"


def conversion_for(model: onnx.ModelProto, options: InputOptions | None = None, fit: Fit = "stretch") -> Conversion:
    """Settle how images are fed to a model; one that edgecnn exported says it all itself.

    `fit` is how pictures are brought to size where neither the model nor the options say.

    Raises:
        UsageError: the image input cannot be told, is of another type than uint8 or float32 or of 4 channels, its size is
            free and none given, or an option contradicts the model.
        DataError: the model has further inputs, for which images say nothing.
    """
    options = options or InputOptions()
    image = image_input(model, options.input, None if options.layout == "auto" else options.layout)
    _refuse_others(model, image)
    notes = next((entry.value for entry in model.metadata_props if entry.key == PREPROCESS), None)
    if notes is not None:
        return _own(image, notes, options)
    _check_type(image, options)
    pictures = _pictures(image, options, fit)
    mean, std = (_a_channel(image, what, given) for what, given in (("mean", options.mean or (0.0,)), ("std", options.std or (1.0,))))  # fmt: skip
    if options.order == "bgr" and image.channels == 1:
        raise UsageError(f"{image.name} takes grey images, so the order of channels cannot be bgr; leave it out")
    scale = 1 / 255 if options.scale is None else options.scale
    return Conversion(image, pictures, scale, mean, std, options.order or "rgb")


def labels_of(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Give the labels that edgecnn wrote into the model's notes, if it did."""
    notes = next((entry.value for entry in model.metadata_props if entry.key == LABELS), None)
    return None if notes is None else tuple(json.loads(notes))


def check_classes(model: onnx.ModelProto, labels: tuple[str, ...], source: str) -> None:
    """Hold a data set's classes to the model's: their names where it notes them, else their number.

    Raises:
        DataError: they are not the model's.
    """
    own = labels_of(model)
    if own is not None and own != labels:
        raise DataError(
            f"{source}: its classes ({', '.join(labels[:5])}, ...) are not the model's ({', '.join(own[:5])}, ...)"
        )
    outputs = {value.name: sizes_of(value) for value in model.graph.output}
    scores = {name: sizes[1] for name, sizes in outputs.items() if len(sizes) == 2 and sizes[1] is not None}
    if scores and len(labels) not in scores.values():
        listed = ", ".join(f"{name} has {size}" for name, size in scores.items())
        raise DataError(
            f"{source}: has {len(labels)} classes, but of the model's outputs {listed}; give the data it was trained on"
        )


def _refuse_others(model: onnx.ModelProto, image: ImageInput) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    others = [value for value in model.graph.input if value.name not in weights and value.name != image.name]
    if others:
        listed = ", ".join(f"{value.name} ({dtype_of(value)} {sizes_of(value)})" for value in others)
        raise DataError(
            f"the model takes more than the image {image.name}, of which images say nothing: {listed}; give .npz feeds"
        )


def _own(image: ImageInput, notes: str, options: InputOptions) -> Conversion:
    """Take the preprocessing that edgecnn noted in the model; what else is asked for must not contradict it."""
    try:
        pictures = msgspec.json.decode(notes, type=Preprocess)
    except msgspec.ValidationError as error:
        raise UsageError(f"the model's note {PREPROCESS} cannot be read ({error}); export it again") from None
    if (image.layout, image.dtype) != ("nhwc", "uint8") or image.channels != pictures.channels:
        raise UsageError(
            f"the model's note {PREPROCESS} is not of its input {image.name} ({image.written} {image.dtype})"
        )
    given = {
        "mean": options.mean, "std": options.std, "scale": options.scale,
        "order": options.order if options.order != "rgb" else None,
        **{
            name: value for name in ("height", "width", "fit", "background")
            if (value := getattr(options, name)) != getattr(pictures, name)
        },
    }  # fmt: skip
    wrong = [f"{name} {value}" for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            f"the model was exported by edgecnn and prepares its images itself; leave out {', '.join(wrong)}"
        )
    return Conversion(image, pictures, 1.0, (0.0,), (1.0,), "rgb")


def _check_type(image: ImageInput, options: InputOptions) -> None:
    if image.dtype not in ("uint8", "float32"):
        raise UsageError(f"{image.name} takes {image.dtype}; images become uint8 or float32: give .npz feeds")
    given = [name for name in ("mean", "std", "scale") if getattr(options, name) is not None]
    if image.dtype == "uint8" and given:
        raise UsageError(f"{image.name} takes uint8 pixels as they are; leave out {', '.join(given)}")


def _pictures(image: ImageInput, options: InputOptions, fit: Fit) -> Preprocess:
    """Settle the size and colour that pictures are brought to."""
    sizes = {}
    for side in ("height", "width"):
        fixed, given = getattr(image, side), getattr(options, side)
        if fixed is None and given is None:
            raise UsageError(f"{image.name} ({image.written}) leaves its {side} free; say the height and width to use")
        if fixed is not None and given not in (None, fixed):
            raise UsageError(f"{image.name} has a {side} of {fixed}, not {given}; leave it out")
        sizes[side] = fixed or given
    if image.channels not in (1, 3):
        raise UsageError(f"{image.name} takes {image.channels} channels, and images have 1 or 3; give .npz feeds")
    rest = {} if options.background is None else {"background": options.background}
    try:
        return msgspec.convert(
            {**sizes, **rest, "channels": image.channels, "fit": options.fit or fit}, type=Preprocess
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"{image.name}: {error}") from None


def _a_channel(image: ImageInput, what: str, values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in (1, image.channels):
        raise UsageError(
            f"{what} has {len(values)} numbers, but {image.name} takes {image.channels} channels; give 1 or as many"
        )
    return values
