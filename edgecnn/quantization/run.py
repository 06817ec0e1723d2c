"""From a float ONNX model to a quantized one that has passed its gate, or to the reasons why it has not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxruntime

from edgecnn import __version__, host
from edgecnn.host import target_of_host
from edgecnn.parity import Verdict
from edgecnn.parity.decisions import Decisions
from edgecnn.quantization.evaluation import Evaluation
from edgecnn.quantization.feeds import FeedSet
from edgecnn.quantization.fusion import Fusion, prove_fusion
from edgecnn.quantization.gate import Gate, judge
from edgecnn.quantization.half import half_losses, to_half
from edgecnn.quantization.ladder import Ladder, Rung
from edgecnn.quantization.placement import Search
from edgecnn.quantization.race import Speed
from edgecnn.quantization.recipe import Precision, Recipe, precision_for, recipe_for
from edgecnn.quantization.rungs import Workshop
from edgecnn.quantization.saturation import LayerSaturation, saturation
from edgecnn.quantization.slim import slim
from edgecnn.quantization.source import Source
from edgecnn.quantization.state import State
from edgecnn.quantization.yardstick import Yardstick
from edgecnn.spec import Frozen, Target, Tolerance

_GATE_SECONDS = 2.0
_GPUS = ("cuda", "tensorrt")  # TensorRT knows int8 constants only before DequantizeLinear
_SATURATING = ("x86-64",)  # targets whose 16-bit sums saturate


class QuantizeOptions(Frozen, frozen=True):
    """What is wanted: for which target, in which precision (None: the target's own), within which loss of accuracy.

    `qat_epochs` 0 leaves the last rung out. `stop_after` ends the ladder after the rung of that name.
    """

    target: Target = "any"
    precision: Precision | None = None
    tolerance: Tolerance = msgspec.field(default_factory=Tolerance)
    qat_epochs: int = 2
    stop_after: str | None = None


class Report(Frozen, frozen=True):
    """All that was measured on the way; `gate.refusals` empty means that the model may be shipped.

    `saturation` is of the same model with weights of all eight bits, on an x86 without VNNI.
    """

    edgecnn: str
    onnxruntime: str
    host: dict[str, Any]
    target: Target
    precision: Precision
    source_sha256: str
    source_bytes: int
    changes: tuple[str, ...]
    calibration_images: int
    evaluation_images: int
    evaluated_on: str
    gate: Gate
    decisions: Decisions
    bytes: int
    speed: Speed | None = None
    sqnr_db: float | None = None
    recipe: Recipe | None = None
    rungs: tuple[Rung, ...] = ()
    best: int = 0
    search: Search | None = None
    fusion: Fusion | None = None
    saturation: tuple[LayerSaturation, ...] = ()
    losses: tuple[str, ...] = ()


def quantize_model(
    source: Source,
    calibration: FeedSet,
    evaluation: FeedSet,
    options: QuantizeOptions,
    *,
    train: FeedSet | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[onnx.ModelProto, Report]:
    """Quantize a prepared float model and judge it; whether a refused one is written is the caller's to decide.

    Args:
        source: from `read_source`.
        calibration: images for ranges, placement and error.
        evaluation: other images, by which the ladder climbs and the gate judges.
        options: target, precision and budget.
        train: images for the last rung, or None to leave it out.
        folder: where the climb is kept, so that it can be gone on with; None keeps nothing.
        say: is told of progress.

    Raises:
        QuantizationError: the model cannot be quantized.
        UsageError: the target does not run the precision asked for.
    """
    precision = precision_for(options.target, options.precision)
    judged = Evaluation.of(source.model, evaluation, options.tolerance)
    yardstick = Yardstick(source.model, calibration)
    if precision == "fp16":
        model, found = _half(source, judged, say)
    else:
        model, found = _int8(source, calibration, judged, yardstick, options, precision, train, folder, say)
    size = len(model.SerializeToString())
    decisions: Decisions = found["decisions"]
    gate = judge(decisions, found.get("speed"), _elsewhere(options.target), yardstick.bytes, size)
    report = Report(
        edgecnn=__version__,
        onnxruntime=onnxruntime.__version__,
        host=msgspec.to_builtins(host.fingerprint()),
        target=options.target,
        precision=precision,
        source_sha256=source.sha256,
        source_bytes=yardstick.bytes,
        changes=source.changes,
        calibration_images=calibration.count,
        evaluation_images=evaluation.count,
        evaluated_on="labels" if judged.labelled else "the float model's own answers",
        gate=gate,
        bytes=size,
        sqnr_db=yardstick.sqnr_db(model),
        **found,
    )
    return model, report


def _int8(
    source: Source,
    calibration: FeedSet,
    judged: Evaluation,
    yardstick: Yardstick,
    options: QuantizeOptions,
    precision: Precision,
    train: FeedSet | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    recipe = recipe_for(options.target)
    state = (
        None if folder is None else State(folder, _key(source, calibration, judged, train, recipe, options, precision))
    )
    workshop = Workshop(calibration, recipe, yardstick, train if options.qat_epochs else None, options.qat_epochs)
    timed = options.target in ("any", target_of_host())
    ladder = Ladder(source.model, workshop, judged, precision != "int8", timed, state, say, options.target not in _GPUS)
    climb = ladder.climb(options.stop_after)
    best = climb.rungs[climb.best]
    found: dict[str, Any] = {
        "recipe": recipe,
        "rungs": climb.rungs,
        "best": climb.best,
        "search": climb.search,
        "decisions": best.decisions,
        "speed": ladder.speed(climb.model, _GATE_SECONDS) if timed else None,
    }
    if options.target != "tensorrt":
        found["fusion"] = prove_fusion(climb.model, best.floats)
    if options.target in _SATURATING:
        # What the seven bits are for: with all eight these layers' sums would not fit.
        full = climb.attempt.build(msgspec.structs.replace(recipe, reduced_range=False))
        found["saturation"] = tuple(saturation(full, calibration))
    return slim(climb.model), found


def _half(source: Source, judged: Evaluation, say: Callable[[str], None]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    model = to_half(source.model)
    say("fp16: judging the answers, computed on the CPU")
    losses = tuple(str(loss) for loss in half_losses(source.model))
    return model, {"decisions": judged.judge(model), "losses": losses}


def _elsewhere(target: Target) -> str | None:
    """Say why being faster here is not asked for; None where it is."""
    here = target_of_host()
    if target == here:
        return None
    if target == "any":
        return f"the target is any CPU, and this one is {here}; `edgecnn verify` measures it on the box"
    return f"the target is {target} and this machine is {here}; `edgecnn verify` measures it on the box"


def _key(
    source: Source,
    calibration: FeedSet,
    judged: Evaluation,
    train: FeedSet | None,
    recipe: Recipe,
    options: QuantizeOptions,
    precision: Precision,
) -> str:
    """Hash all that a climb depends on, this machine and its packages included, for latencies are its."""
    machine = host.fingerprint()
    parts = [
        source.sha256,
        calibration.key,
        judged.feeds.key,
        "" if train is None else train.key,
        msgspec.json.encode(recipe).decode(),
        msgspec.json.encode(options.tolerance).decode(),
        f"{options.target} {precision} {options.qat_epochs}",
        f"{__version__} {onnxruntime.__version__} {machine.cpu} {machine.features}",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def verdict_of(report: Report) -> Verdict:
    """Say PASS only if nothing refuses the model."""
    return Verdict.FAIL if report.gate.refusals else Verdict.PASS
