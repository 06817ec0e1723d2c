"""What a box found of a bundle, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecnn.report.text import table

if TYPE_CHECKING:
    from edgecnn.device.verify import ArtifactCheck, Verification

_HEADER = ["artifact", "verdict", "answers", "faster", "at export", "p50 us", "of fp32"]


def verify_text(found: Verification) -> str:
    """Write what was hashed, a row for each artifact, and the reasons behind it."""
    lines = [
        f"{found.bundle}: {found.files} files, every hash as recorded; decoding {found.decoding.value}: {found.decoding_reason}",
        table([_row(one) for one in found.artifacts], _HEADER),
    ]
    lines += [f"{one.artifact}: {reason}" for one in found.artifacts for reason in one.reasons]
    return "\n".join(lines)


def _row(one: ArtifactCheck) -> list[str]:
    return [
        one.artifact,
        one.verdict.value,
        one.computation.value,
        one.speed.value,
        one.exported or "",
        "" if one.p50_us is None else f"{one.p50_us:.1f}",
        "" if one.ratio is None else f"{one.ratio.median:.2f}",
    ]
