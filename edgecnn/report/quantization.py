"""What a quantization came to: text for the terminal, and the rows that its page shows too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.files import write_atomic
from edgecnn.report.text import size, table, thousands

if TYPE_CHECKING:
    from edgecnn.quantization.fusion import Fusion, LayerFusion
    from edgecnn.quantization.ladder import Rung
    from edgecnn.quantization.placement import Placement, Search
    from edgecnn.quantization.race import Speed
    from edgecnn.quantization.run import Report
    from edgecnn.quantization.saturation import LayerSaturation

PAGE = "report.html"
RUNG_HEADER = (
    "rung",
    "verdict",
    "right %",
    "interval",
    "drop below",
    "time",
    "interval",
    "size",
    "SQNR dB",
    "in float",
    "note",
)
PLACEMENT_HEADER = ("in float", "SQNR dB", "time", "interval", "size", "")
_NAMED = 3  # layers in float that a cell names
_LISTED = 20  # placements, and nodes in float, that the text lists; the page and --json have all
_KINDS = {
    "Conv": "convolutions", "ConvTranspose": "transposed convolutions", "Gemm": "linear layers", "MatMul": "matrix products",
}  # fmt: skip


def quantization_text(report: Report) -> str:
    """Write what was made of what, the rungs, the placements on the front, the proof of fusion, and the gate's checks."""
    parts = [table(facts(report))]
    if report.rungs:
        header, rows = filled(RUNG_HEADER, rung_rows(report))
        parts.append(f"{table(rows, header)}\n{rung_legend(report)}")
    if report.search is not None:
        header, rows = filled(PLACEMENT_HEADER, placement_rows(report.search, names_of(report)))
        listed = f"{table(rows[:_LISTED], header)}{_more(rows)}"
        parts.append(f"{listed}\nchosen: {report.search.reason}")
    if report.fusion is not None:
        floats = [f"  {layer.name} ({layer.op}): {layer.why}" for layer in in_float(report.fusion)]
        parts.append("\n".join([fusion_line(report.fusion), *floats[:_LISTED]]) + _more(floats))
    if report.saturation:
        parts.append("\n".join([saturation_line(report.saturation), *_saturating_lines(report.saturation)]))
    if report.losses:
        parts.append("\n".join(["float16 loses values of:", *(f"  {loss}" for loss in report.losses)]))
    parts.append(f"{table(check_rows(report))}\n{verdict_line(report)}")
    return "\n\n".join(parts)


def write_quantization_page(folder: Path, report: Report) -> None:
    """Write the page as `report.html` into a folder."""
    from edgecnn.report.quantization_page import quantization_page

    write_atomic(folder / PAGE, quantization_page(report).encode())


def facts(report: Report) -> list[tuple[str, str]]:
    """List what was quantized, for which target, on which images, and what it gained, as names and values."""
    decisions, speed, machine = report.decisions, report.speed, report.host
    called = "right" if report.evaluated_on == "labels" else "the same answer"
    before, after = (f"{share.value:.2%} {called}" for share in (decisions.reference_accuracy, decisions.candidate_accuracy))  # fmt: skip
    before_us, after_us = (f", {speed.reference_us:,.0f} us", f", {speed.p50_us:,.0f} us") if speed else ("", "")
    error = f", SQNR {decibels(report.sqnr_db)} dB" if decibels(report.sqnr_db) else ""
    rows = [
        ("target", f"{report.target}, {report.precision}{_types(report)}"),
        (
            "images",
            f"{thousands(report.calibration_images)} calibrated on, {thousands(report.evaluation_images)} judged by; "
            f"right is what the {'labels say' if report.evaluated_on == 'labels' else 'float model answers'}",
        ),
        ("float model", f"{before}, {size(report.source_bytes)}{before_us}"),
        ("quantized", f"{after}, {size(report.bytes)}{after_us}{error}"),
        (
            "machine",
            f"{machine.get('cpu', 'unknown')}; onnxruntime {report.onnxruntime}, edgecnn {report.edgecnn}; one thread, batch 1",
        ),
    ]
    return rows + [("made ready", change) for change in report.changes]


def rung_rows(report: Report) -> list[list[str]]:
    """Give a row for each rung; the one whose model was taken has a star."""
    names = names_of(report)
    return [_rung_row(rung, index == report.best, names) for index, rung in enumerate(report.rungs)]


def rung_legend(report: Report) -> str:
    """Say what the columns of the rungs are."""
    judged = "" if report.evaluated_on == "labels" else " (as the float model answers)"
    timed = "; time: of the float model's" if any(rung.speed for rung in report.rungs) else ""
    return f"* taken. right{judged}; drop below: the accuracy lost is less, in points{timed}; intervals are 95 %"


def placement_rows(search: Search, names: Mapping[str, str]) -> list[list[str]]:
    """Give a row for each placement on the front, the chosen one and the one with nothing in float, the fastest first."""
    shown = [one for one in search.tried if one.front or one == search.chosen or not one.floats]
    return [_placement_row(one, one == search.chosen, names) for one in sorted(shown, key=_slowness)]


def filled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out columns in which no row has anything, as that of times where nothing could be timed."""
    kept = [place for place in range(len(header)) if any(row[place] for row in rows)]
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]


def names_of(report: Report) -> dict[str, str]:
    """Map nodes to what their layers are called, as far as the proof of fusion tells."""
    return {} if report.fusion is None else {layer.node: layer.name for layer in report.fusion.layers}


def named(nodes: Iterable[str], names: Mapping[str, str], most: int = _NAMED) -> str:
    """Write a set of layers in one cell."""
    every = [names.get(node, node) for node in nodes]
    left = len(every) - most
    return ", ".join(every[:most]) + (f" and {left} more" if left > 0 else "") if every else "none"


def fusion_line(fusion: Fusion) -> str:
    """Say how many layers of each kind run in int8."""
    kinds = dict.fromkeys(layer.op for layer in fusion.layers)
    counts = [
        f"{fusion.count(op, int8=True)} of {fusion.count(op, int8=True) + fusion.count(op, int8=False)} {_KINDS.get(op, op)}"
        for op in kinds
    ]
    others = sum(one.int8 for one in fusion.others)
    more = [f"{others} of {len(fusion.others)} other nodes"] if fusion.others else []
    return f"run in int8 here: {', '.join([*counts, *more]) or 'nothing'}"


def in_float(fusion: Fusion) -> list[LayerFusion]:
    """List all that does not run in int8, the layers first."""
    return [one for one in (*fusion.layers, *fusion.others) if not one.int8]


def saturation_line(layers: Iterable[LayerSaturation]) -> str:
    """Sum up what happens to the 16-bit sums of x86 without VNNI."""
    every = list(layers)
    sums, bad, worst = (
        sum(one.pairs for one in every),
        sum(one.saturated for one in every),
        max(one.worst for one in every),
    )
    if not sums:
        return "16-bit sums of x86 without VNNI, had weights all eight bits: no layer adds products in pairs"
    counted = f"{thousands(bad)} of {thousands(sums)} saturate" if bad else f"none of {thousands(sums)} saturates"
    return f"16-bit sums of x86 without VNNI, had weights all eight bits: {counted}; the largest is {thousands(worst)}, 32,767 fit"


def saturating(layers: Iterable[LayerSaturation]) -> list[LayerSaturation]:
    """List the layers in which a sum saturates, the worst first."""
    return sorted((one for one in layers if one.saturated), key=lambda one: -one.fraction)


def check_rows(report: Report) -> list[list[str]]:
    """Give a row for each check of the gate."""
    return [[check.what, check.verdict.value, check.reason] for check in report.gate.checks]


def verdict_line(report: Report) -> str:
    """Say in one line whether the model may be shipped."""
    refused = [check.what for check in report.gate.checks if check.verdict.value in ("FAIL", "INCONCLUSIVE")]
    return f"gate: refused for its {' and '.join(refused)}" if refused else "gate: PASS"


def decibels(value: float | None) -> str:
    """Write an SQNR; nothing where there is none, or it is infinite."""
    return "" if value is None or not math.isfinite(value) else f"{value:.1f}"


def _types(report: Report) -> str:
    if report.recipe is None:
        return ""
    bits = "seven bits of int8" if report.recipe.reduced_range else "int8"
    return f": {report.recipe.activations} activations, weights in {bits}"


def _rung_row(rung: Rung, best: bool, names: Mapping[str, str]) -> list[str]:
    name = f"{rung.name}{' *' if best else ''}"
    judged = rung.decisions
    if judged is None:
        return [name, "not made", *[""] * 8, rung.note or ""]
    share = judged.candidate_accuracy
    return [
        name,
        judged.verdict.value,
        f"{share.value * 100:.2f}",
        f"{share.low * 100:.2f} to {share.high * 100:.2f}",
        f"{judged.drop_high * 100:.2f}",
        *_times(rung.speed),
        size(rung.bytes) if rung.bytes else "",
        decibels(rung.sqnr_db),
        named(rung.floats, names),
        rung.note or "",
    ]


def _placement_row(one: Placement, chosen: bool, names: Mapping[str, str]) -> list[str]:
    said = "chosen" if chosen else "front" if one.front else ""
    return [named(one.floats, names), decibels(one.sqnr_db), *_times(one.speed), size(one.bytes), said]


def _times(speed: Speed | None) -> list[str]:
    return [f"{speed.ratio:.3f}", f"{speed.low:.3f} to {speed.high:.3f}"] if speed else ["", ""]


def _slowness(one: Placement) -> tuple[float, float]:
    return (one.speed.ratio if one.speed else 0.0, -one.sqnr_db)


def _saturating_lines(layers: Iterable[LayerSaturation]) -> list[str]:
    lines = [
        f"  {one.name} ({one.op}): {one.fraction:.2%} saturate, {decibels(one.sqnr_db)} dB"
        for one in saturating(layers)
    ]
    return [*lines[:_LISTED], *_more(lines).splitlines()[1:]]


def _more(lines: Sequence[object]) -> str:
    left = len(lines) - _LISTED
    return f"\n... and {left} more: see --json" if left > 0 else ""
