"""The frozen value types that every other module speaks in.

They are msgspec structs, so the same definitions validate what is read from JSON, strictly.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgecnn.errors import BackendError, DamagedError, EscapeError, UsageError

Target = Literal["any", "x86-64", "x86-64-vnni", "arm64", "cuda", "tensorrt"]
TARGETS: tuple[Target, ...] = ("any", "x86-64", "x86-64-vnni", "arm64", "cuda", "tensorrt")
Fit = Literal["stretch", "crop", "pad"]
Format = Literal["onnx", "safetensors"]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An immutable record that refuses fields it does not know."""


class TensorSpec(Frozen, frozen=True):
    """One input or output: `None` in `shape` is a dimension that may vary, such as the batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Say whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


class Preprocess(Frozen, frozen=True):
    """From an encoded image to the model's input, uint8 NHWC, and the normalisation inside the graph.

    The network sees `scale * (pixel - zero_point)`. With an integer zero point the uint8 pixel is itself a
    quantized value, so an int8 model needs no float tensor on the way in.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    fit: Fit = "stretch"
    background: int = 255
    scale: float = 1.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes and constants with which nothing could run."""
        if not (1 <= self.height <= 4096 and 1 <= self.width <= 4096):
            raise ValueError(f"image size {self.width}x{self.height} is not within 1 to 4096")
        if not (0 <= self.zero_point <= 255 and 0 <= self.background <= 255):
            raise ValueError("zero_point and background are pixel values, 0 to 255")
        if not (0 < self.scale < 1e6):
            raise ValueError(f"scale {self.scale} is not a positive, finite number")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels


class Tolerance(Frozen, frozen=True):
    """What a parity check lets pass.

    `noise_multiple`: how many times the error of torch float32 against float64 a float32 backend may make.
    `recorded_share`: by how much a quantized artifact may differ, on another machine, from the answers it gave
    where it was exported, as a share of its own quantization error there; `recorded_share_here` is the same for a
    machine of the same CPU and runtime, where it should give the very same answers. `max_drop`: the accuracy that reduced
    precision may lose, as a fraction. `confidence`: of the one-sided bound on that loss.
    """

    noise_multiple: float = 10.0
    recorded_share: float = 0.5
    recorded_share_here: float = 0.05
    max_drop: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse tolerances by which nothing could be judged."""
        if not (0 <= self.max_drop < 1 and 0.5 < self.confidence < 1):
            raise ValueError("max_drop lies from 0 to below 1, confidence between 0.5 and 1")
        if not (0 < self.noise_multiple < 1e4 and 0 < self.recorded_share < 10 and 0 < self.recorded_share_here < 10):
            raise ValueError("a tolerance is not positive, or so large that nothing would be refused")


@dataclass(frozen=True)
class Artifact:
    """One exported file on disk, as a backend is handed it."""

    name: str
    format: str
    path: Path
    precision: str = "fp32"
    target: str = "any"
    sha256: str | None = None
    size: int | None = None

    def read_bytes(self) -> bytes:
        """Read the file whole and compare it with the recorded size and hash, if there are any.

        Raises:
            BackendError: the file cannot be read, or is no whole ONNX model.
            DamagedError: its content is not what was recorded.
            EscapeError: it is an ONNX model that would have other files read.
        """
        try:
            # Without waiting: a pipe in the file's place would keep one for ever.
            with os.fdopen(os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                # What the manifest says is all that is read, whatever the file has grown to.
                data = file.read() if self.size is None else file.read(self.size + 1)
        except OSError as error:
            raise BackendError(
                f"{self.path}: cannot be read ({error.strerror}); copy it again, or see who may read it"
            ) from None
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256:
            raise DamagedError(f"{self.path}: the content is not what the manifest recorded; copy the bundle again")
        if self.format == "onnx":
            _refuse_outside(data, self.path)
        return data


def _refuse_outside(model: bytes, path: Path) -> None:
    from edgecnn.protobuf import outside

    try:
        place = outside(model)
    except ValueError as error:
        raise BackendError(f"{path}: is no whole ONNX model ({error}); export or copy it again") from None
    if place is not None:
        raise EscapeError(
            f"{path}: has {place!r} read from outside itself, which is not done; put all into the one file: "
            "onnx.save(onnx.load(PATH), PATH)"
        )


class BackendRef(Frozen, frozen=True):
    """`BACKEND[:ARTIFACT][@DEVICE]`, for example `onnxruntime:int8@cuda:0`."""

    backend: str
    artifact: str | None = None
    device: str = "cpu"

    @classmethod
    def parse(cls, text: str) -> BackendRef:
        """Read the written form: the device follows the first `@`, the artifact the first `:` before it."""
        rest, at, device = text.partition("@")
        backend, colon, artifact = rest.partition(":")
        if not backend or (at and not device) or (colon and not artifact):
            raise UsageError(f"{text!r} is not BACKEND[:ARTIFACT][@DEVICE], for example onnxruntime:int8@cpu")
        return cls(backend=backend, artifact=artifact or None, device=device or "cpu")

    def __str__(self) -> str:
        artifact = f":{self.artifact}" if self.artifact else ""
        device = f"@{self.device}" if self.device != "cpu" else ""
        return f"{self.backend}{artifact}{device}"


def to_json(value: Any, indent: int = 2) -> bytes:
    """Encode as JSON; `indent` 0 gives one line."""
    data = msgspec.json.encode(value)
    return msgspec.json.format(data, indent=indent) + b"\n" if indent else data
