"""What to do about a difference, from where it is and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecnn.parity.localize.fingerprint import fingerprint, turned
from edgecnn.parity.localize.judge import Measured
from edgecnn.parity.localize.result import BlockDifference, root_mean_square
from edgecnn.parity.localize.rounding import as_values

Array = npt.NDArray[Any]
_PROPOSED = 3  # layers to leave in float
_ADDS_UP = 6.0  # dB by which the answer is worse than the worst block alone


def advise(
    found: Sequence[BlockDifference],
    first: BlockDifference | None,
    measured: Sequence[Measured],
    candidate: str,
    reproduced: bool,
) -> list[str]:
    """Give the advice for the first block at fault, or for a model whose error no block stands out in."""
    said = []
    if not reproduced:
        said.append(
            "cut up, the model answers differently than in one piece, at every width tried: a fusion over more than one "
            "block may be at fault; compare with the optimisations of the backend off"
        )
    if first is None:
        return [*said, *_quantization(found)]
    own = next((one for one in measured if one.block.point.tensor == first.output and first.nodes), None)
    if own is None:
        return said
    said += {
        "preprocessing": [
            f"what the first layer reads differs already ({first.name}): preprocessing is at fault, not the model; "
            "compare mean, std, scale and the order of channels with those of training"
        ],
        "model file": _file(first),
        "kernel": _kernel(own, first, candidate),
    }.get(first.blame, [])
    if own.alone is not None:
        said += fingerprint(own.truth, own.alone, 1)
    if first.blame in ("model file", "preprocessing") and own.alone is not None:
        said += turned(own.block, own.fed, own.truth, partial(as_values, point=own.block.point))
    rest = [one.name for one in found if one.culprit and one is not first]
    return [*said, *([f"also at fault, each by itself: {', '.join(rest[:5])}"] if rest else [])]


def input_advice(feeds: Mapping[str, Array], own: Mapping[str, Array]) -> list[str]:
    """Say how the candidate's inputs differ from the reference's."""
    name = next(name for name in feeds if not np.array_equal(feeds[name], own[name]))
    truth, found = feeds[name], own[name]
    channels_last = truth.ndim == 4 and truth.shape[-1] <= 4
    patterns = fingerprint(truth, found, truth.ndim - 1 if channels_last else 1)
    return [
        f"input {name} differs before the model begins: preprocessing is at fault, not the model; compare decoding, size, "
        "mean, std, scale and the order of channels",
        *patterns,
    ]


def _file(first: BlockDifference) -> list[str]:
    head = (
        f"{first.name}: the model file itself says something else than the reference, in float64 too, whatever runs it"
    )
    if not first.quantized:
        return [f"{head}: its weights or attributes differ; export it again, from the very checkpoint"]
    return [f"{head}: its int8 weights, scales or ranges do not fit; quantize again, with images like those it meets"]


def _kernel(own: Measured, first: BlockDifference, candidate: str) -> list[str]:
    """Blame a kernel, and say who computes the same block rightly."""
    witness = ""
    if own.plain is not None and own.exact is not None and own.plain.shape == own.exact.shape:
        with np.errstate(invalid="ignore"):  # of two infinities
            error = root_mean_square(own.plain - own.exact)
        if np.isfinite(error) and error <= 10 * max(own.expected, 1e-300):
            witness = " and in ONNX Runtime with its optimisations off"
    return [
        f"{first.name}: the file is right, by its operators' definition in float64{witness}; {candidate} computes this block "
        f"wrongly ({first.kernel} here, if it is ONNX Runtime): use another device, version or precision, or leave the "
        "layer out of its optimisations"
    ]


def _quantization(found: Sequence[BlockDifference]) -> list[str]:
    """Propose what to leave in float where many int8 blocks add up to the error."""
    ranked = [one for one in found if one.quantized and one.alone.sqnr_db is not None]
    if not ranked:
        return []
    ranked.sort(key=lambda one: one.alone.sqnr_db or 0.0)
    names = ", ".join(f"{one.name} ({one.alone.sqnr_db:.1f} dB)" for one in ranked[:_PROPOSED])
    last = found[-1].accumulated.sqnr_db
    grows = last is not None and last < (ranked[0].alone.sqnr_db or 0.0) - _ADDS_UP
    lead = (
        "no block is at fault, but rounding adds up along the depth"
        if grows
        else "what is left is rounding to eight bits"
    )
    return [
        f"{lead}: the most of it is made by {names}; if the answers are not good enough leave these in float "
        "(`edgecnn sensitivity` says what that gains, `edgecnn quantize` chooses by it)"
    ]
