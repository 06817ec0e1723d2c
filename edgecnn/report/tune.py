"""What tuning found, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecnn.device.trials import said
from edgecnn.report.text import table

if TYPE_CHECKING:
    from edgecnn.device.racing import Interval
    from edgecnn.device.trials import Row
    from edgecnn.device.tune import Tuning

_HEADER = ["candidate", "us an image", "of default", "rounds", "stopped", "why"]


def tune_text(found: Tuning) -> str:
    """Write a row for each candidate, fastest first, then what was chosen, by how much, and under which conditions."""
    raced = sorted((row for row in found.rows if row.us is not None), key=lambda row: row.us or 0.0)
    out = [row for row in found.rows if row.us is None]
    lines = [table([_row(row, said(found.default)) for row in raced], _HEADER), ""]
    lines += [f"out: {row.said}: {row.verdict.value} in parity: {row.reason}" for row in out]
    lines += [f"not usable: {name}: {reason}" for name, reason in found.unusable]
    lines += [_verdict(found)]
    if found.gain is not None and found.noise is not None:
        lines += [f"a second copy of the default against the default: {_times(found.noise)} of its time"]
    if not found.complete:
        lines += ["time ran out before the race was decided: a longer --seconds may find more"]
    lines += [f"careful: {warning}" for warning in found.warnings]
    machine = found.host
    lines += [
        f"{len(found.rows)} candidates in {found.taken_seconds:.1f} s, {found.parity_seconds:.1f} s of it parity; {machine.cpu}, "
        f"{machine.usable_threads} usable of {machine.cores} cores; ONNX Runtime {found.key.onnxruntime}"
    ]
    return "\n".join(lines)


def _verdict(found: Tuning) -> str:
    gain = f"{_times(found.gain)} of the time" if found.gain is not None else ""
    if found.settings is not None:
        return f"{found.purpose}: {said(found.settings)} takes {gain} of {said(found.default)}"
    other = f"; the best other takes {gain}" if gain else ""
    return f"{found.purpose}: the defaults are as good ({said(found.default)}){other}"


def _row(row: Row, default: str) -> list[str]:
    return [
        row.said,
        f"{row.us:.1f}",
        _times(row.ratio) if row.ratio is not None else "",
        str(row.rounds),
        "" if row.stopped is None else f"{row.stopped:.1f} s",
        row.why or ("the default" if row.said == default else "stayed to the end"),
    ]


def _times(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.median:.3f} ({interval.low:.3f} to {interval.high:.3f})"
