"""Whether a changed model still answers as the file did: both are run on the same random inputs.

**Tolerance.** Folding a batch norm rounds each weight anew, and a fold or a fusion sums in another order. Each costs some
units of float32's last place, 6e-8 of the values at hand, and over a hundred layers that comes to about 1e-6 of an output's
largest value. A converter that misreads an attribute is off by a hundredth or more. `TOLERANCE` lies between, at 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecnn.errors import QuantizationError

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
BATCHES = (1, 3)
# Sides tried where height and width are free, until the file runs: what a pooling or a fixed head asks for varies.
SIDES = (64, 224, 32, 28, 48, 96, 128, 256, 299, 512)
_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(uint16)": np.uint16, "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32, "tensor(int64)": np.int64, "tensor(uint64)": np.uint64, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """Inputs, and what the file answers to them, by output name."""

    feeds: Arrays
    outputs: Arrays


def open_plain(model: str | bytes) -> Any:
    """Open a file or its bytes in ONNX Runtime, on the CPU, one thread, with every graph optimisation off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answers_of(session: Any, name: str) -> list[Answer]:
    """Run a session on random inputs: two kinds of numbers, and two batch sizes where the batch is free.

    Raises:
        QuantizationError: it runs with none of the sizes tried, or only infinite numbers and NaN come out.
    """
    given = session.get_inputs()
    unknown = sorted({value.type for value in (*given, *session.get_outputs())} - set(_DTYPES))
    if unknown:
        raise QuantizationError(f"{name}: takes or gives {', '.join(unknown)}, which no image classifier does")
    failure: Exception | None = None
    found = []
    for batch in BATCHES if any(_is_free(value.shape[:1]) for value in given) else BATCHES[:1]:
        for side in SIDES if any(_is_free(value.shape[1:]) for value in given) else SIDES[:1]:
            try:
                tried = [_answer(session, _inputs(given, batch, side, seed)) for seed in (0, 1)]
            except Exception as error:  # ONNX Runtime's exceptions have no common type
                failure = error
                continue
            found += tried
            break
    finite = [answer for answer in found if _is_finite(answer)]
    if not found:
        raise QuantizationError(f"{name}: ONNX Runtime cannot run it on random inputs ({first_line(failure)})")
    if not finite:
        raise QuantizationError(f"{name}: its outputs are not finite on any random input, so nothing can be compared")
    return finite


def difference(answers: list[Answer], model: bytes) -> float:
    """Give the largest difference of a model's outputs from `answers`, as a share of each output's largest value."""
    session = open_plain(model)
    worst = 0.0
    for answer in answers:
        got = _answer(session, answer.feeds).outputs
        if set(got) != set(answer.outputs):
            return np.inf
        worst = max(worst, *(_apart(array, got[name]) for name, array in answer.outputs.items()))
    return worst


def first_line(error: Exception | None) -> str:
    """Shorten an exception of ONNX Runtime or onnx to one line without its prefix."""
    text = " ".join(str(error).split())
    return (text.rpartition("[ONNXRuntimeError] : ")[2] or type(error).__name__)[:300]


def _apart(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return np.inf
    if not wanted.size:
        return 0.0
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    error, scale = float(np.abs(a - b).max()), float(np.abs(a).max())
    if not np.isfinite(error):
        return np.inf
    return error / scale if scale else np.inf if error else 0.0


def _answer(session: Any, feeds: Arrays) -> Answer:
    names = [value.name for value in session.get_outputs()]
    return Answer(feeds, dict(zip(names, session.run(names, feeds), strict=True)))


def _is_finite(answer: Answer) -> bool:
    return all(bool(np.isfinite(array).all()) for array in answer.outputs.values())


def _is_free(sizes: list[Any]) -> bool:
    return any(not isinstance(size, int) or size < 1 for size in sizes)


def _inputs(given: list[Any], batch: int, side: int, seed: int) -> Arrays:
    """Make inputs: with seed 0 of normal numbers, as normalised images are, with seed 1 from 0 to 255, as pixels are."""
    random = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    for value in given:  # a name that several inputs share is one size
        sizes |= {size: side for size in value.shape[1:] if isinstance(size, str)}
    for value in given:
        sizes |= {size: batch for size in value.shape[:1] if isinstance(size, str)}
    return {value.name: _numbers(value, _shape(value.shape, sizes, batch, side), random, seed) for value in given}


def _shape(shape: list[Any], sizes: Mapping[str, int], batch: int, side: int) -> list[int]:
    free = [batch, *[side] * (len(shape) - 1)]
    return [
        size if isinstance(size, int) and size > 0 else sizes.get(size, other)
        for size, other in zip(shape, free, strict=False)
    ]


def _numbers(value: Any, shape: list[int], random: np.random.Generator, seed: int) -> npt.NDArray[Any]:
    dtype = np.dtype(_DTYPES[value.type])
    if dtype.kind == "f":
        return (random.uniform(0, 255, shape) if seed else random.normal(size=shape)).astype(dtype)
    top = 256 if dtype == np.uint8 else 128 if dtype == np.int8 else 2
    return random.integers(0, top, shape).astype(dtype)
