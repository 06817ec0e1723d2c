"""What came of a deployment, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgecnn.report.text import size
from edgecnn.spec import to_json

if TYPE_CHECKING:
    from edgecnn.device.deploy import Deployed


def report_text(found: Deployed) -> str:
    """Write what `edgecnn verify` found there as it writes it itself; a report of another version's is left as it is."""
    from edgecnn.device.verify import Verification
    from edgecnn.report.verify import verify_text

    try:
        return verify_text(msgspec.convert(found.report, Verification))
    except msgspec.ValidationError:
        return to_json(found.report).decode().rstrip("\n")


def deploy_text(found: Deployed) -> str:
    """Say what is in place now."""
    copied = f"{size(found.copied.bytes)} in {found.copied.files} files copied, {size(found.copied.there)} were there"
    before = f", {found.previous} is kept" if found.previous else ""
    if not found.swapped:
        return f"{found.box}: {copied}; {found.previous or 'nothing'} is in place, as before"
    return f"{found.box}: {copied}; {found.release} is in place as {found.bundle}{before}"
