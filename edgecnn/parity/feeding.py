"""What an ONNX model is fed: the same sources that `edgecnn quantize` takes, or random inputs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgecnn.errors import MissingPackageError
from edgecnn.parity.random_inputs import RANDOM_INPUTS, random_samples
from edgecnn.parity.samples import Samples, fed_samples
from edgecnn.parity.subject import Subject, answer_size, prepared_model

if TYPE_CHECKING:
    from edgecnn.quantization.conversion import InputOptions


def model_samples(
    subject: Subject, data: str | None, random: int | None, options: InputOptions | None, seed: int = 0
) -> Samples:
    """Open a labelled source, a folder of pictures or of .npz feeds; without one, make random inputs.

    Raises:
        MissingPackageError: there is data and onnx is not installed.
        DataError: there is nothing to open, or its classes are not the model's.
        UsageError: the images do not fit the model's input.
    """
    if data is None:
        return random_samples(subject, random or RANDOM_INPUTS, options, seed)
    if find_spec("onnx") is None:
        raise MissingPackageError("images are prepared for an ONNX file by the package onnx, which is not installed here: pip install onnx")  # fmt: skip
    from edgecnn.quantization.sources import evaluation_feeds

    feeds = evaluation_feeds(data, prepared_model(subject.path, subject.sha256), options, seed)
    return fed_samples(feeds, data, answer_size(subject))
