"""A parity report as text."""

from __future__ import annotations

from edgecnn.parity import ParityReport
from edgecnn.parity.compare import Cell
from edgecnn.report.text import table

_HEADER = ["candidate", "computation", "SQNR dB", "max abs", "decisions", "accuracy", "flips", "drop below"]


def parity_text(report: ParityReport) -> str:
    """Write the matrix of verdicts, then the reason and the flips behind each."""
    lines = [
        f"reference {report.reference}; {report.data or 'goldens only'}; decoding {report.decoding.verdict.value}",
        table([_row(cell) for cell in report.cells], _HEADER),
        f"decoding: {report.decoding.reason}",
    ]
    for cell in report.cells:
        lines.append(f"{cell.candidate} computation: {cell.computation.reason}")
        if cell.decisions:
            lines.append(f"{cell.candidate} decisions: {cell.decisions.reason}")
            lines += [
                f"  {flip.image}: is {flip.truth}, reference {flip.reference}, candidate {flip.candidate}"
                for flip in cell.decisions.flips
            ]
    return "\n".join([*lines, f"parity: {report.verdict.value}"])


def _row(cell: Cell) -> list[str]:
    far, decisions = cell.computation.distance, cell.decisions
    return [
        cell.candidate,
        cell.computation.verdict.value,
        f"{far.sqnr_db:.1f}" if far and far.sqnr_db is not None else "",
        f"{far.max_abs:.2e}" if far else "",
        decisions.verdict.value if decisions else "NOT MEASURED",
        f"{decisions.candidate_accuracy.value:.2%}" if decisions else "",
        f"{decisions.changed}" if decisions else "",
        f"{decisions.drop_high * 100:.2f}" if decisions else "",
    ]
