"""Random inputs for any ONNX model, where there are no images: of its shapes and types, and said to be what they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecnn.backends.base import Tensors
from edgecnn.errors import DataError, EdgecnnError, UsageError
from edgecnn.images import Pixels
from edgecnn.parity.samples import MadeSamples, random_record
from edgecnn.parity.subject import Subject, prepared_model
from edgecnn.spec import TensorSpec

if TYPE_CHECKING:
    from edgecnn.quantization.conversion import Conversion, InputOptions

RANDOM_INPUTS = 64


def random_samples(
    subject: Subject, count: int = RANDOM_INPUTS, options: InputOptions | None = None, seed: int = 0
) -> MadeSamples:
    """Make inputs for an ONNX model, the same for the same seed; at least `count`, in whole batches.

    An image input of uint8 gets evenly random bytes. So does one of float32 where the options say how pixels are normalised:
    the bytes go through that. Any other float input gets standard normal numbers, of which normalised images have the range,
    but neither the smoothness nor the colours.

    Raises:
        UsageError: a size is free and not given, or an input is of a type for which random numbers mean nothing.
        DataError: none are asked for.
    """
    if count < 1:
        raise DataError("no random inputs to run: nothing was compared")
    batch = next((spec.shape[0] for spec in subject.inputs if spec.shape and spec.shape[0] is not None), None)
    count = -(-count // batch) * batch if batch else count
    conversion = _conversion(subject, options)
    if conversion is not None and _has_pixels(conversion, options):
        record = random_record(
            count, f"{count} random inputs (seed {seed}): even bytes, which are no images", conversion.statement
        )
        return MadeSamples(_converted(conversion, seed), record, batch, lambda index: _bytes(conversion, seed, index))
    shapes = {spec.name: _shape(spec, conversion) for spec in subject.inputs}
    said = f"{count} random inputs (seed {seed}): normal numbers, which are not the range of real inputs"
    kinds = [(spec.name, spec.dtype, shapes[spec.name]) for spec in subject.inputs]

    def make(index: int) -> Tensors:
        rng = np.random.default_rng([seed, index])
        return {name: _numbers(rng, dtype, shape, name) for name, dtype, shape in kinds}

    make(0)
    return MadeSamples(make, random_record(count, said, str(kinds)), batch)


def _conversion(subject: Subject, options: InputOptions | None) -> Conversion | None:
    """Settle how pictures would become the model's input; None where it takes none and nothing was said about them."""
    if find_spec("onnx") is None:
        return None
    from edgecnn.quantization.conversion import InputOptions, conversion_for

    try:
        return conversion_for(prepared_model(subject.path, subject.sha256), options)
    except EdgecnnError as error:
        if options not in (None, InputOptions()):
            raise
        if "free" in str(error):
            raise UsageError(f"{error}: --size") from None
        return None


def _has_pixels(conversion: Conversion, options: InputOptions | None) -> bool:
    given = options is not None and any(one is not None for one in (options.mean, options.std, options.scale))
    return conversion.image.dtype == "uint8" or given


def _converted(conversion: Conversion, seed: int) -> Callable[[int], Tensors]:
    return lambda index: {conversion.image.name: conversion(_bytes(conversion, seed, index)[None])[0]}


def _bytes(conversion: Conversion, seed: int, index: int) -> Pixels:
    rng = np.random.default_rng([seed, index])
    return rng.integers(0, 256, conversion.pictures.shape, dtype=np.uint8)


def _shape(spec: TensorSpec, conversion: Conversion | None) -> tuple[int, ...]:
    """Give the shape of one sample."""
    if conversion is not None and conversion.image.name == spec.name:
        height, width, channels = conversion.pictures.shape
        return (height, width, channels) if conversion.image.layout == "nhwc" else (channels, height, width)
    sizes = spec.shape[1:]
    if not spec.shape or None in sizes:
        raise UsageError(
            f"input {spec.name!r} has shape {spec.shape}, of which a size is free: give .npz feeds with --data"
        )
    return tuple(size or 0 for size in sizes)


def _numbers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], name: str) -> npt.NDArray[Any]:
    if dtype in ("float16", "float32", "float64"):
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    raise UsageError(f"input {name!r} is {dtype}, for which random numbers mean nothing: give .npz feeds with --data")
