"""A parity report as text."""

from __future__ import annotations

from edgecnn.host import Host
from edgecnn.parity import ParityReport, Verdict
from edgecnn.parity.decisions import Flip
from edgecnn.parity.judge import Cell
from edgecnn.parity.steadiness import Steadiness
from edgecnn.report.text import table

_HEADER = [
    "candidate", "computation", "error", "SQNR dB", "max abs", "agree", "decisions", "accuracy", "flips", "drop <", "steady",
]  # fmt: skip
_LEGEND = (
    "error: times float32's own (x), or of the quantization error (%)\n"
    "steady, when repeated, one at a time, with other threads: = to the bit, ~ within tolerance, ! not, ? no unit, - not run"
)
_WIDEST = 30
_RANDOM = "the samples are random: they do not span what real images do; give --data"


def parity_text(report: ParityReport) -> str:
    """Write the matrix of verdicts, then the reason and the flips behind each."""
    fed = report.data or report.samples or "goldens only"
    decoding = f"; decoding {report.decoding.verdict.value}" if report.decoding else ""
    lines = [f"reference {report.reference}; {fed}{decoding}"]
    lines += [table([_row(cell) for cell in report.cells], _HEADER), _LEGEND]
    lines += [_RANDOM] if report.random else []
    lines += [f"decoding: {report.decoding.reason}"] if report.decoding else []
    lines += _machines(report.reference_host, report.host) if report.reference_host else []
    for cell in report.cells:
        lines += _reasons(cell)
    return "\n".join([*lines, f"parity: {report.verdict.value}"])


def different_packages(first: Host, second: Host) -> dict[str, tuple[str, str]]:
    """List the packages of which two machines have other versions, or that one of them lacks."""
    names = sorted({*first.packages, *second.packages})
    both = {name: (first.packages.get(name, "none"), second.packages.get(name, "none")) for name in names}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def _machines(first: Host, second: Host) -> list[str]:
    """Say of two recordings where each was made, and what else they differ in."""
    told = [f"{which} machine: {host.cpu}, {host.system}, {host.machine}, Python {host.python}" for which, host in (("first", first), ("second", second))]  # fmt: skip
    packages = different_packages(first, second)
    listed = ", ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in packages.items())
    return [*told, f"their packages differ: {listed}" if packages else "their packages are the same"]


def _reasons(cell: Cell) -> list[str]:
    lines = [f"{cell.candidate} computation: {cell.computation.reason}"]
    if cell.decisions:
        lines.append(f"{cell.candidate} decisions: {cell.decisions.reason}")
        lines += [_flip(flip) for flip in cell.decisions.flips]
    elif cell.where is not None and cell.where.quantized:
        lines.append(
            f"{cell.candidate} decisions: not measured; only labelled images show what quantization costs (--data)"
        )
    if cell.agreement and not cell.decisions:
        lines.append(f"{cell.candidate} agreement: {cell.agreement.changed} of {cell.agreement.n} answers are others")
        lines += [_flip(flip) for flip in cell.agreement.flips]
    passing = (Verdict.PASS, Verdict.NOT_MEASURED)
    lines += [f"{cell.candidate} {one.what}: {one.reason}" for one in cell.steadiness if one.verdict not in passing]
    return lines


def _flip(flip: Flip) -> str:
    truth = f"is {flip.truth}, " if flip.truth is not None else ""
    ours, theirs = (
        "" if margin is None else f" (by {margin:.3g})" for margin in (flip.reference_margin, flip.candidate_margin)
    )
    return f"  {flip.image}: {truth}reference {flip.reference}{ours}, candidate {flip.candidate}{theirs}"


def _row(cell: Cell) -> list[str]:
    far, decisions = cell.computation.distance, cell.decisions
    name = cell.candidate
    return [
        name if len(name) <= _WIDEST else f"{name[:12]}...{name[15 - _WIDEST :]}",
        cell.computation.verdict.value,
        _error(cell),
        f"{far.sqnr_db:.1f}" if far and far.sqnr_db is not None else "",
        f"{far.max_abs:.2e}" if far else "",
        f"{cell.agreement.share:.2%}" if cell.agreement else "",
        decisions.verdict.value if decisions else "NOT MEASURED",
        f"{decisions.candidate_accuracy.value:.2%}" if decisions else "",
        f"{decisions.changed}" if decisions else "",
        f"{decisions.drop_high * 100:.2f}" if decisions else "",
        "".join(map(_mark, cell.steadiness)),
    ]


def _error(cell: Cell) -> str:
    if cell.computation.multiple is not None:
        return f"{cell.computation.multiple:.2g}x"
    return f"{cell.computation.share:.1%}" if cell.computation.share is not None else ""


def _mark(one: Steadiness) -> str:
    marks = {Verdict.FAIL: "!", Verdict.INCONCLUSIVE: "?", Verdict.NOT_MEASURED: "-"}
    return marks.get(one.verdict, "=" if one.bit_equal else "~")
