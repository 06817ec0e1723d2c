"""What a parity check keeps: every answer of every side, and where it was given, so that it can be judged again without running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgecnn.host import Host
from edgecnn.manifest import SCHEMA_VERSION
from edgecnn.spec import Frozen, Tolerance

Array = npt.NDArray[Any]
SampleKind = Literal["goldens", "data", "feeds", "random"]
# The further runs of one side: the same once more, single samples against a batch, one thread against many.
AGAIN = ("repeat", "batch", "threads")
TORCH_FLOAT32 = "torch float32"
EXPORTED = "its answers where it was exported"
SPECIFIED = "the answers of onnx's evaluator"


class SideRecord(Frozen, frozen=True):
    """One side: which backend ran which file where. `error` says why there are no answers; `sha256` is the file's.

    `quantized` is whether it computes in less than float32, so that its distance from float64 is not rounding noise.
    `recorded_here` says that this machine and runtime are those at which its recorded answers were given. `runtime` is
    the package that ran it with its version, `threads` what it was given. `recorded_from` says whose the recorded answers
    are. `unsteady` says of further runs (`AGAIN`) why they failed.
    """

    ref: str
    artifact: str
    precision: str
    quantized: bool
    sha256: str | None
    device: str
    runtime: str
    threads: int
    recorded_here: bool = False
    error: str | None = None
    recorded_from: str = EXPORTED
    unsteady: dict[str, str] = msgspec.field(default_factory=dict)


class SamplesRecord(Frozen, frozen=True):
    """What was fed: `said` in words, `n` samples with their names; `labels` are indices, None where there are none."""

    kind: SampleKind
    said: str
    n: int
    names: tuple[str, ...]
    labels: tuple[int, ...] | None
    sha256: str


class DecodingRecord(Frozen, frozen=True):
    """How far this machine's decoder is from the exporting one's, in levels, for each golden image; `n` of them."""

    off: tuple[int, ...]


class RecordingHead(Frozen, frozen=True):
    """All of a recording that is not an array.

    `answer` names the output that is judged. `truth` says where float64 is from, None if there is none; it covers the
    samples of `truth_samples` (indices). `reference` is a side's `ref`, or `goldens`, or `float64`. `created` is ISO 8601.
    `unit` says whose float32 error others are measured by. `names_classes` is whether the largest value of the answer
    names a class. `untrue` says why there is no truth.
    """

    subject: str
    subject_sha256: str
    answer: str
    classes: tuple[str, ...]
    tolerance: Tolerance
    reference: str
    sides: tuple[SideRecord, ...]
    samples: SamplesRecord
    truth: str | None
    truth_samples: tuple[int, ...]
    decoding: DecodingRecord | None
    host: Host
    edgecnn: str
    created: str
    schema_version: int = SCHEMA_VERSION
    unit: str = TORCH_FLOAT32
    names_classes: bool = True
    untrue: str = ""


@dataclass(frozen=True)
class SideArrays:
    """The answers of one side, in the samples' order.

    `answers` maps output names to (N, ...). `on_truth` is the answer for the truth's samples, (M, classes).
    `goldens` is the answer for the goldens and `recorded` what it answered where it was exported, None where that is not
    known. `again` maps `repeat`, `batch`, `threads` to a pair: the answer in the plain run and the answer in that one, (K, classes).
    """

    answers: dict[str, Array] = field(default_factory=dict)
    on_truth: Array | None = None
    goldens: Array | None = None
    recorded: Array | None = None
    again: dict[str, tuple[Array, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """Everything that was run: the head, each side's arrays by its `ref`, and the truth.

    `float64` and `float32` (M, classes) are the truth and torch's float32, whose error is the unit. `golden_float64` (G,
    classes) is the truth for the goldens. `pictures` are the samples as uint8 (N, H, W, C) where they are pictures; they
    are for thumbnails, are not written to evidence, and so may be missing.
    """

    head: RecordingHead
    sides: Mapping[str, SideArrays]
    float64: npt.NDArray[np.float64] | None = None
    float32: npt.NDArray[np.floating] | None = None
    golden_float64: npt.NDArray[np.float64] | None = None
    pictures: Mapping[int, npt.NDArray[np.uint8]] | None = None

    @property
    def candidates(self) -> tuple[SideRecord, ...]:
        """All sides but the reference."""
        return tuple(side for side in self.head.sides if side.ref != self.head.reference)
