"""What `data check` found as one HTML file, with pictures of every class and every finding."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from edgecnn.data.dataset import LabelledImages
from edgecnn.data.quality import Case, DataReport, Finding
from edgecnn.images import Pixels
from edgecnn.report.data import class_rows, remedy, summary, verdict
from edgecnn.report.html import Html, note, page, paragraph, section, table, text
from edgecnn.report.text import thousands

_CASES, _IMAGES = 40, 8  # of a finding, and of a case
_OF_CLASS, _CLASSES = 6, 200
_SIDE = 64  # of a thumbnail at most, in pixels
_AT_ONCE = 64

_STYLE = Html("""<style>
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr)); gap: .5rem 1.5rem; }
.case { display: flex; flex-wrap: wrap; align-content: flex-start; gap: .4rem .8rem; padding: .5rem 0;
  border-bottom: 1px solid var(--line); }
.case.many { grid-column: 1 / -1; }
.case figure { margin: 0; width: 8rem; } .case figcaption { font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }
.case p { margin: 0; flex-basis: 100%; font-size: .85rem; overflow-wrap: anywhere; }
.thumb { width: 72px; height: 72px; object-fit: contain; background: none; image-rendering: pixelated;
  border: 1px solid var(--line); }
td .thumb { width: 40px; height: 40px; margin-right: 3px; }
</style>""")


def data_page(report: DataReport, images: LabelledImages) -> str:
    """Write the page; `images` are all that the report is about.

    Raises:
        DataError: a streamed file cannot be read any more.
    """
    places = {images.name(index): index for index in range(len(images))}
    of_class = _of_classes(report, images)
    found = [
        places[image.name]
        for finding in report.findings
        for case in finding.cases[:_CASES]
        for image in case.images[:_IMAGES]
    ]
    thumbnails = _thumbnails(images, [*found, *(index for row in of_class for index in row)])
    header, rows = class_rows(report)
    shown = [
        [*row, Html("".join(thumbnails[index] for index in some))] for row, some in zip(rows, of_class, strict=True)
    ]
    says = note(verdict(report)) if report.weighty() else paragraph(verdict(report))
    parts = [_STYLE, says, table(summary(report))]
    for finding in report.findings:
        cases = [
            _case(case, places, thumbnails) for case in finding.cases[: None if finding.kind == "broken" else _CASES]
        ]
        left = len(finding.cases) - len(cases)
        more = [paragraph(f"and {thousands(left)} more: see --json")] if left else []
        parts.append(
            section(
                _title(finding), paragraph(remedy(finding)), Html(f'<div class="cases">{"".join(cases)}</div>'), *more
            )
        )
    seen = paragraph("The pictures are as the network would see them.")
    return page(f"Data check of {report.source}", *parts, section("Classes", seen, table(shown, [*header, "some"])))


def _title(finding: Finding) -> str:
    return finding.title[0].upper() + finding.title[1:]


def _case(case: Case, places: dict[str, int], thumbnails: dict[int, Html]) -> Html:
    figures = []
    for image in case.images[:_IMAGES]:
        split = f", {image.split}" if image.split else ""
        name = text(image.name).replace("/", "/<wbr>")  # long paths break where a folder ends
        caption = Html(f"{name}<br><b>{text(image.label)}</b>{text(split)}")
        figures.append(f"<figure>{thumbnails[places[image.name]]}<figcaption>{caption}</figcaption></figure>")
    rest = len(case.images) - len(figures)
    words = "; ".join([*([f"and {rest} more images"] if rest > 0 else []), *([case.note] if case.note else [])])
    wide = " many" if len(figures) > 2 or not figures else ""
    return Html(f'<div class="case{wide}">{"".join(figures)}{paragraph(words) if words else ""}</div>')


def _of_classes(report: DataReport, images: LabelledImages) -> list[list[int]]:
    """Choose some images of every class, from end to end."""
    chosen = []
    for label in range(len(report.classes)):
        members = np.flatnonzero(images.labels == label) if label < _CLASSES else np.zeros(0, dtype=np.int64)
        some = np.unique(np.linspace(0, max(0, len(members) - 1), min(_OF_CLASS, len(members))).astype(np.int64))
        chosen.append(members[some].tolist())
    return chosen


def _thumbnails(images: LabelledImages, indices: Iterable[int]) -> dict[int, Html]:
    """Encode each image once, small."""
    wanted = np.unique(np.array(list(indices), dtype=np.int64))
    made: dict[int, Html] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        for index, pixels in zip(some.tolist(), images.take(some), strict=True):
            made[index] = Html(f'<img class="thumb" src="{_uri(pixels)}" alt="{text(images.name(index))}">')
    return made


def _uri(pixels: Pixels) -> str:
    """Write a picture as an address that carries it: small ones as PNG, larger ones as JPEG, which is shorter then."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_SIDE, _SIDE))
    kind = "PNG" if max(image.size) <= 32 else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
