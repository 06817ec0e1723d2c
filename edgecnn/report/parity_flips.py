"""The changed answers on the page of a parity check: which samples, with their pictures, and by what margins."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from edgecnn.images import Pixels
from edgecnn.parity.decisions import Flip
from edgecnn.parity.judge import Cell
from edgecnn.report.html import Html, data_uri, paragraph, text
from edgecnn.report.text import thousands

_FLIPS = 40  # shown, of a candidate
_SIDE = 96  # of a thumbnail, in pixels: smaller pictures are enlarged


def flips(number: int, cell: Cell, pictures: Mapping[int, Pixels]) -> list[Html]:
    """Show the samples on which reference and candidate name different classes."""
    same, found = cell.agreement, cell.decisions
    if same is None and found is None:
        return []
    changes = same.flips if same is not None else found.flips if found is not None else ()
    changed, n = (
        (same.changed, same.n) if same is not None else (found.changed, found.n) if found is not None else (0, 0)
    )
    head = Html(f'<h3 id="c{number}-agreement">Changed answers: {thousands(changed)} of {thousands(n)}</h3>')
    if not changed:
        return [head, paragraph("Reference and candidate name the same class on every sample.")]
    lead = paragraph(
        "The margin is the value of the answer less that of the next best. A change where both margins are small is a coin that "
        "fell on the other side; one where the reference's is large is a fault."
    )
    shown = changes[:_FLIPS]
    left = changed - len(shown)
    more = [paragraph(f"And {thousands(left)} more.")] if left > 0 else []
    figures = "".join(_flip(flip, pictures.get(flip.index)) for flip in shown)
    return [head, lead, Html(f'<div class="flips">{figures}</div>'), *more]


def _flip(flip: Flip, pixels: Pixels | None) -> str:
    encoded = None if pixels is None else _thumbnail(pixels)
    shown = (
        f'<img src="{data_uri(encoded)}" alt="{text(flip.image)}">'
        if encoded
        else '<span class="none">no picture</span>'
    )
    lines = [
        f"<b>{breakable(flip.image)}</b>",
        *([] if flip.truth is None else [f"is {text(flip.truth)}"]),
        f"reference: {text(flip.reference)}{_right(flip, flip.reference)}{_margin(flip.reference_margin)}",
        f"candidate: {text(flip.candidate)}{_right(flip, flip.candidate)}{_margin(flip.candidate_margin)}",
    ]
    return f"<figure>{shown}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _right(flip: Flip, answer: str) -> str:
    return "" if flip.truth is None else " ✓" if answer == flip.truth else " ✗"


def _margin(value: float | None) -> str:
    return "" if value is None else f", margin {value:.3g}"


def _thumbnail(pixels: Pixels) -> bytes | None:
    """Encode a picture as PNG, small ones enlarged by a whole factor; None where it is no grey or colour picture."""
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        return None
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = _SIDE // max(image.size)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def breakable(name: str) -> Html:
    """Let a long name break where a part of it ends."""
    written = text(name)
    for end in ("/", ":"):
        written = Html(written.replace(end, f"{end}<wbr>"))
    return written
