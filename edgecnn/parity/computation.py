"""Same computation? A backend's logits against the model evaluated in float64.

**The noise floor.** No two float32 backends give the same bits, for they sum in another order. How much that is for this net and
these images is not guessed by an `atol`: torch float32 is run too, and its error against float64 is the unit. A right backend sums in
some order as well, so that its error is of about that size. `Tolerance.noise_multiple`, 10, leaves room for an unlucky order
and for other algorithms of convolution. `tests/parity/test_noise_floor.py` holds it to random nets: ONNX Runtime, OpenVINO and
onnx's evaluator are within, and the head's largest weight off by a thousandth is over 100 units. Both the mean square and the
largest error are held to it: the one sees what is wrong a little everywhere, the other what is wrong in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecnn.metrics import Array, Distance, distance
from edgecnn.parity.recording import EXPORTED, TORCH_FLOAT32
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Frozen, Tolerance

# Half a unit in the last place: no float32 answer can be expected to be closer to the truth than its own rounding.
ROUNDING = 2.0**-24
SOFTMAX_ERROR = 1e-5
# Float32's own error on a network is some 1e-7 to 1e-5 of the logits; a unit above this is not noise but a fault.
LARGEST_NOISE = 1e-4
# The same of float16, whose rounding is 5e-4: on the nets that were measured its error is 5e-4 to 7e-4 of the logits.
LARGEST_HALF = 5e-3


@dataclass(frozen=True)
class Truth:
    """What the right logits are: `float64` (N, classes), and `float32` from torch or what `unit` says, whose error is the unit."""

    origin: str
    float64: npt.NDArray[np.float64]
    float32: npt.NDArray[np.floating]
    unit: str = TORCH_FLOAT32


@dataclass(frozen=True)
class Recorded:
    """What a quantized artifact should answer, by `source`, and the truth for the same images."""

    logits: npt.NDArray[np.floating]
    float64: npt.NDArray[np.float64]
    source: str = EXPORTED


class Computation(Frozen, frozen=True):
    """The answer to the first question.

    `distance` is from float64. For float32, `multiple` is the larger of the ratios of root-mean-square and of
    largest error to torch float32's own. For a quantized artifact, `share` is its difference from what it answered
    where it was exported, over its quantization error there. For float16 that nobody recorded, `multiple` is of the error
    that onnx's evaluator makes in float16.
    """

    verdict: Verdict
    reason: str
    n: int
    truth: str
    distance: Distance | None = None
    multiple: float | None = None
    share: float | None = None


def judge_float(logits: Array, truth: Truth, tolerance: Tolerance) -> Computation:
    """Judge logits (N, classes) of a float32 artifact by their error in units of torch float32's own."""
    far, unit = distance(truth.float64, logits), noise_of(truth)
    if unit.broken:
        return Computation(verdict=Verdict.FAIL, reason=unit.broken, n=len(logits), truth=truth.origin, distance=far)
    multiple = unit.multiple(far)
    good = multiple <= tolerance.noise_multiple
    return Computation(
        verdict=Verdict.PASS if good else Verdict.FAIL,
        reason=f"its error against float64 is {multiple:.3g} times {truth.unit}'s own; {tolerance.noise_multiple:g} is allowed",
        n=len(logits),
        truth=truth.origin,
        distance=far,
        multiple=multiple,
    )


@dataclass(frozen=True)
class Noise:
    """The unit of error: float32's own, root mean square and largest; `broken` says why it is none."""

    rms: float
    max_abs: float
    broken: str | None = None

    def multiple(self, far: Distance) -> float:
        """Give a distance in these units, by mean square or at the most, whichever is larger."""
        return max(_ratio(far.rms, self.rms), _ratio(far.max_abs, self.max_abs))


def noise_of(truth: Truth) -> Noise:
    """Measure the unit: at least a rounding of the truth, and none where float32 is itself wrong."""
    noise = distance(truth.float64, truth.float32)
    peak, rms = float(np.abs(truth.float64).max()), float(np.sqrt(np.square(truth.float64).mean()))
    broken = None
    if noise.rms > LARGEST_NOISE * rms:
        broken = (
            f"{truth.unit} is off by {noise.rms / rms if rms else noise.rms:.2g} of the logits' size, which is no rounding "
            "noise: there is no unit to judge by"
        )
    return Noise(max(noise.rms, ROUNDING * rms), max(noise.max_abs, ROUNDING * peak), broken)


def judge_quantized(
    logits: Array, again: Array | None, truth: Truth, recorded: Recorded | None, allowed: float
) -> Computation:
    """Judge a quantized artifact by whether it answers as it did where it was exported.

    `logits` are its answers for the truth's images, `again` those for the recorded ones; `allowed` is the share of
    its own quantization error by which the latter may differ, in mean square and at the most. Whether quantization cost
    accuracy is the second question's business, not this one's.
    """
    far = distance(truth.float64, logits)
    if recorded is None or again is None:
        reason = "no answers were recorded for this artifact, so only its distance from float64 is known"
        return Computation(verdict=Verdict.NOT_MEASURED, reason=reason, n=len(logits), truth=truth.origin, distance=far)
    share = share_of(recorded, recorded.logits, again)
    good = share <= allowed
    return Computation(
        verdict=Verdict.PASS if good else Verdict.FAIL,
        reason=f"it differs from {recorded.source} by {share:.3g} times its quantization error; {allowed:g} is allowed",
        n=len(again),
        truth="its own recorded answers" if recorded.source == EXPORTED else recorded.source,
        distance=far,
        share=share,
    )


def judge_half(logits: Array, again: Array, truth: Truth, recorded: Recorded, tolerance: Tolerance) -> Computation:
    """Judge float16 as float32 is judged: by its error in units of that of another float16, `recorded`.

    A backend may compute in float32 between two roundings and onnx's evaluator does not, so that two right ones differ by as
    much as either errs. `again` are its answers for the samples of `recorded`, `logits` those for the truth's.
    """
    far, own, error = (
        distance(one, other)
        for one, other in ((truth.float64, logits), (recorded.float64, recorded.logits), (recorded.float64, again))
    )
    size = float(np.sqrt(np.square(recorded.float64).mean()))
    if own.rms > LARGEST_HALF * size:
        off = own.rms / size if size else own.rms
        reason = f"{recorded.source} in float16 are off by {off:.2g} of the logits' size: there is no unit to judge by"
        return Computation(
            verdict=Verdict.NOT_MEASURED, reason=reason, n=len(again), truth=recorded.source, distance=far
        )
    multiple = Noise(own.rms, own.max_abs).multiple(error)
    good = multiple <= tolerance.noise_multiple
    return Computation(
        verdict=Verdict.PASS if good else Verdict.FAIL,
        reason=f"its error against float64 is {multiple:.3g} times that of {recorded.source} in float16; {tolerance.noise_multiple:g} is allowed",
        n=len(again),
        truth=truth.origin,
        distance=far,
        multiple=multiple,
    )


def share_of(recorded: Recorded, before: Array, after: Array) -> float:
    """Give the difference of two answers as a share of the quantization error, in mean square or at the most."""
    own, change = distance(recorded.float64, recorded.logits), distance(before, after)
    return max(_ratio(change.rms, own.rms), _ratio(change.max_abs, own.max_abs))


def find_fault(outputs: Mapping[str, Array]) -> str | None:
    """Say what makes outputs unfit for any comparison: values that are not finite, or a wrong softmax."""
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            return f"output {name!r} has {int((~np.isfinite(array)).sum())} values that are not finite"
    if "logits" in outputs and "probabilities" in outputs:
        if outputs["logits"].shape != outputs["probabilities"].shape:
            return f"'probabilities' has shape {outputs['probabilities'].shape} and 'logits' {outputs['logits'].shape}"
        error = float(np.abs(softmax(outputs["logits"]) - outputs["probabilities"]).max())
        if error > SOFTMAX_ERROR:
            return f"'probabilities' is not the softmax of 'logits' (off by up to {error:.3g})"
    return None


def softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Compute probabilities in float64 from logits (N, classes)."""
    exact = logits.astype(np.float64)
    shifted = np.exp(exact - exact.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit else (0.0 if not value else float("inf"))
