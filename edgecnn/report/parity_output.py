"""All that `edgecnn parity` gives out: text or JSON with the places that were found, the page and the JUnit file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgecnn.files import write_atomic
from edgecnn.parity import ParityReport
from edgecnn.parity.recording import Recording
from edgecnn.report.parity import parity_text

if TYPE_CHECKING:
    from edgecnn.parity.localize import Localization


def whole_text(report: ParityReport, located: Sequence[Localization]) -> str:
    """Write the places that were found, then the report, whose last line is the verdict."""
    from edgecnn.report.localize import localization_text

    return "\n\n".join([*map(localization_text, located), parity_text(report)])


def whole_json(report: ParityReport, located: Sequence[Localization]) -> dict[str, Any]:
    """Give the report with the places that were found as `localizations`, ready to be written as JSON."""
    return {**msgspec.to_builtins(report), "localizations": located}


def write_files(
    report: ParityReport, recording: Recording, located: Sequence[Localization], html: Path | None, junit: Path | None
) -> list[Path]:
    """Write what is asked for, and return what was written.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    if html is not None:
        from edgecnn.report.localize import localization_png
        from edgecnn.report.parity_page import parity_page

        png = localization_png(located[0]) if located else None
        write_atomic(html, parity_page(report, recording.pictures, png).encode())
        written.append(html)
    if junit is not None:
        from edgecnn.report.junit import junit_xml

        write_atomic(junit, junit_xml(report).encode())
        written.append(junit)
    return written
