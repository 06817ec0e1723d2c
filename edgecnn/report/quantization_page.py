"""The page of a quantization: what came of it, the rungs, the placements, the proof and the gate, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgecnn.report.html import Html, note, page, paragraph, picture, section, table, text
from edgecnn.report.quantization import (
    PLACEMENT_HEADER,
    RUNG_HEADER,
    check_rows,
    decibels,
    facts,
    filled,
    fusion_line,
    in_float,
    names_of,
    placement_rows,
    rung_legend,
    rung_rows,
    saturating,
    saturation_line,
    verdict_line,
)
from edgecnn.report.text import thousands

if TYPE_CHECKING:
    from edgecnn.quantization.run import Report

# Words stay whole in narrow columns; a table that is too wide is moved sideways. Names in sentences may break.
WHOLE_WORDS = Html("<style>th, td { overflow-wrap: normal; } p { overflow-wrap: anywhere; }</style>")


def quantization_page(report: Report) -> str:
    """Write the page; without matplotlib it has the tables alone."""
    refused = report.gate.refusals
    said = note(verdict_line(report)) if refused else paragraph(verdict_line(report))
    return page(
        f"Quantized for {'any CPU' if report.target == 'any' else report.target}",
        WHOLE_WORDS,
        *(
            []
            if drawing()
            else [note("Pictures need matplotlib, which is not installed: pip install 'edgecnn[train]'")]
        ),
        section(
            "What came of it", said, table(check_rows(report), ["check", "verdict", "reason"]), table(facts(report))
        ),
        *_ladder(report),
        *_placements(report),
        *_kernels(report),
        *_saturation(report),
        *(
            [section("float16", table([[loss] for loss in report.losses], ["loses values of"]))]
            if report.losses
            else []
        ),
        _answers(report),
        section("Machine and source", table(_settings(report))),
    )


def named_rows(rows: Sequence[Sequence[str]], column: int = 0) -> list[list[object]]:
    """Let the names in one column break where a part of them ends."""
    return [[_breakable(cell) if place == column else cell for place, cell in enumerate(row)] for row in rows]


def _breakable(name: str) -> Html:
    return Html(text(name).replace(".", ".<wbr>").replace("/", "/<wbr>"))


def drawing() -> bool:
    """Say whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def _ladder(report: Report) -> list[Html]:
    if not report.rungs:
        return []
    lead = paragraph(
        "Remedies are tried one after another, each on the best so far, until the accuracy lost is shown to be within the "
        "budget. The more rungs were judged on the same images, the surer each has to be."
    )
    shown = []
    if drawing():
        from edgecnn.report.quantization_plots import plot_ladder

        shown.append(picture(plot_ladder(report), "Accuracy and time of each rung, with intervals"))
    header, rows = filled(RUNG_HEADER, rung_rows(report))
    return [
        section(
            "The ladder",
            lead,
            *shown,
            table(named_rows(rows, list(header).index("in float")), header),
            paragraph(rung_legend(report)),
        )
    ]


def _placements(report: Report) -> list[Html]:
    search = report.search
    if search is None:
        return []
    lead = paragraph(
        f"Which layers stay in float: {len(search.tried)} choices, each measured. Listed are those that no other beats in time, "
        "error and size at once, with nothing in float beside them for comparison."
    )
    shown = []
    if drawing():
        from edgecnn.report.quantization_plots import plot_placements

        shown.append(picture(plot_placements(report), "Time and SQNR of the placements tried, the front and the chosen one"))  # fmt: skip
    header, rows = filled(PLACEMENT_HEADER, placement_rows(search, names_of(report)))
    return [
        section(
            "Layers in float", lead, *shown, table(named_rows(rows), header), paragraph(f"Chosen: {search.reason}.")
        )
    ]


def _kernels(report: Report) -> list[Html]:
    fusion = report.fusion
    if fusion is None:
        return []
    rows = [[one.name, one.op, one.why or ""] for one in in_float(fusion)]
    listed = (
        table(named_rows(rows), ["in float", "operator", "why"]) if rows else paragraph("Nothing is left in float.")
    )
    kernels = table([[name, str(count)] for name, count in fusion.operators.items()], ["kernel", "nodes"])
    lead = paragraph("As ONNX Runtime's own optimised graph has it on this machine, whatever the file's name says.")
    return [section("Proof of int8", paragraph(f"{_capital(fusion_line(fusion))}."), lead, listed, kernels)]


def _saturation(report: Report) -> list[Html]:
    if not report.saturation:
        return []
    rows = [
        [one.name, one.op, f"{one.fraction:.3%}", thousands(one.worst), decibels(one.sqnr_db)]
        for one in saturating(report.saturation)
    ]
    listed = [table(named_rows(rows), ["layer", "operator", "saturate", "largest sum", "SQNR dB"])] if rows else []
    return [section("Saturation", paragraph(f"{saturation_line(report.saturation)}."), *listed)]


def _answers(report: Report) -> Html:
    decisions = report.decisions
    counts = paragraph(
        f"{thousands(decisions.changed)} of {thousands(decisions.n)} images get another answer: {thousands(decisions.lost)} that "
        f"only the float model has right, {thousands(decisions.gained)} that only the quantized one has."
    )
    rows = [[flip.image, flip.truth, flip.reference, flip.candidate] for flip in decisions.flips]
    listed = [table(rows, ["image", "is", "float says", "quantized says"])] if rows else []
    left = decisions.changed - len(rows)
    more = [paragraph(f"And {thousands(left)} more.")] if left > 0 and rows else []
    return section("Changed answers", counts, *listed, *more)


def _settings(report: Report) -> list[tuple[str, str]]:
    packages = report.host.get("packages", {})
    rows: list[tuple[str, str]] = [
        (name, str(report.host[name])) for name in ("system", "cpu", "cores", "usable_threads") if name in report.host
    ]
    rows.append(("CPU features", ", ".join(report.host.get("features", ()))))
    rows += [(name, str(version)) for name, version in packages.items()]
    return [*rows, ("source SHA-256", report.source_sha256), ("source bytes", thousands(report.source_bytes))]


def _capital(line: str) -> str:
    return line[0].upper() + line[1:]
