"""The common skeleton of the one-file HTML pages: everything inside, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence


class Html(str):
    """Markup, as opposed to text: what is not an `Html` is escaped when it is put into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a value's text; an `Html` passes as it is.

    Control characters and broken surrogates, which file names may hold, are written as backslash escapes.
    """
    if isinstance(value, Html):
        return value
    printable = "".join(
        letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in str(value)
    )
    return Html(html.escape(printable))


def page(title: str, *parts: Html) -> str:
    """Write a whole page: the title as its heading, then the parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may run or be fetched, even if a text got in unescaped.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: Html) -> Html:
    """Put parts under a heading of the second level."""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(parts) + "\n</section>")


def paragraph(content: object) -> Html:
    """Write one paragraph."""
    return Html(f"<p>{text(content)}</p>")


def note(content: object) -> Html:
    """Write one paragraph that is set apart, for warnings."""
    return Html(f'<p class="note">{text(content)}</p>')


def table(rows: Sequence[Sequence[object]], header: Sequence[object] | None = None) -> Html:
    """Write a table; cells are text unless they are `Html`. After the first, text columns of numbers are set right."""
    columns = enumerate(zip(*rows, strict=True))
    right = [index > 0 and any(column) and all(map(_is_number, column)) for index, column in columns]
    if header and not rows:
        right = [False] * len(header)
    head = f"<thead>{_row(header, 'th', right)}</thead>\n" if header else ""
    body = "\n".join(_row(row, "td", right) for row in rows)
    return Html(f'<div class="wide"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>')


def data_uri(png: bytes) -> str:
    """Write a PNG as an address that carries the picture itself (RFC 2397)."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def picture(png: bytes, description: str, caption: object = "") -> Html:
    """Show a PNG; `description` is for those who cannot see it, the caption stands below it."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img src="{data_uri(png)}" alt="{text(description)}">{below}</figure>')


def _row(cells: Sequence[object], tag: str, right: Sequence[bool]) -> str:
    written = [
        f'<{tag} class="n">{text(cell)}</{tag}>' if number else f"<{tag}>{text(cell)}</{tag}>"
        for cell, number in zip(cells, right, strict=True)
    ]
    return f"<tr>{''.join(written)}</tr>"


def _is_number(cell: object) -> bool:
    return not isinstance(cell, Html) and _NUMBER.fullmatch(str(cell)) is not None


# Also ranges, shares and nothing at all, so that a gap in a column of numbers does not turn it around.
_NUMBER = re.compile(r"–|[-+]?[\d,.]*( ?(%|s|kB|MB))?( to [-+]?[\d,.]+ ?%?)?")

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --note: #c60; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; unicode-bidi: isolate; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { border-left: .3rem solid var(--note); padding-left: .7rem; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; }
@media print { :root { font-size: 11px; } body { margin: 0; max-width: none; font-size: 1rem; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .wide { overflow: visible; } }
"""
