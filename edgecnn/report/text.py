"""Plain text tables and numbers with their units, the same in a terminal, a pipe and a log."""

from __future__ import annotations

from collections.abc import Sequence

from edgecnn.metrics import Accuracy


def table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Align columns: the first to the left, numbers to the right, with a rule under the header."""
    lines = [list(map(str, header))] if header else []
    lines += [list(map(str, row)) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    numeric = [
        column > 0 and all(line[column][:1] in "0123456789+-<" or not line[column] for line in lines[bool(header) :])
        for column in range(len(widths))
    ]
    written = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    if header:
        written.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(written)


def percent(accuracy: Accuracy) -> str:
    """Write an accuracy with its interval."""
    return (
        f"{accuracy.value:.2%} (95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}, "
        f"{accuracy.correct} of {accuracy.n})"
    )


def size(count: int) -> str:
    """Write a number of bytes in kB or MB."""
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.2f} MB"


def thousands(count: int) -> str:
    """Write a whole number with its thousands apart."""
    return f"{count:,}"
