"""What every plot shares: names that can be drawn, and a figure as PNG bytes."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 34  # letters of a name


def drawable(name: str, longest: int = LONGEST) -> str:
    """Make a name drawable: one line, the middle left out where it is long, and no dollars that begin a formula."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(plain) > longest:
        half = (longest - 1) // 2
        plain = f"{plain[:half]}…{plain[-half:]}"
    return plain.replace("$", r"\$")


def figure_png(figure: Figure) -> bytes:
    """Draw a figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Scripts that matplotlib's own font lacks become boxes; the pages have the names in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
