"""What a box found of a bundle, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecnn.report.text import table

if TYPE_CHECKING:
    from edgecnn.device.fit import Comparison
    from edgecnn.device.verify import ArtifactCheck, Verification

_HEADER = [
    "artifact",
    "verdict",
    "answers",
    "int8 kernels",
    "saturation",
    "faster",
    "at export",
    "p50 us",
    "of fp32",
    "MB",
]
_NO = "NOT MEASURED"


def verify_text(found: Verification) -> str:
    """Write what was hashed and compared, a row for each artifact and device, and the reasons behind it."""
    lines = [
        f"{found.bundle}: {found.files} files, every hash as recorded; {found.signature}",
        f"decoding {found.decoding.value}: {found.decoding_reason}",
        *(line for one in found.compared if (line := _compared(one))),
        table([_row(one) for one in found.artifacts], _HEADER),
    ]
    for one in found.artifacts:
        lines += [f"{one.name}: {reason}" for reason in (one.made_for, *one.reasons) if reason]
    lines += [f"not verified: {reason}" for reason in found.left]
    return "\n".join([*lines, f"{found.bundle}: {_worst(found)} ({found.seconds:.1f} s)"])


def _worst(found: Verification) -> str:
    """Write the verdict over all of it: what forbids its use, else what was not shown."""
    if found.refused:
        return f"must not be used here: {', '.join(found.refused)}"
    if found.decoding.value == "FAIL":
        return "must not be used here: images are decoded otherwise"
    doubts = [f"{one.name} {one.verdict.value}" for one in found.artifacts if one.verdict.value != "PASS"]
    return f"not shown to be good here: {', '.join(doubts)}" if doubts else "nothing speaks against using it here"


def _compared(one: Comparison) -> str | None:
    """Write one comparison; a decoder's library that nobody recorded is not worth a line."""
    if one.relation == "unknown" and not one.means.startswith("the goldens"):
        return None
    if one.relation == "same":
        return f"{one.what} {one.here}: as at export"
    return f"{one.what} {one.here}, at export {one.there}: {one.relation}; {one.means}"


def _row(one: ArtifactCheck) -> list[str]:
    return [
        one.name,
        one.verdict.value,
        one.computation.value,
        "" if one.fused.here is None else f"{sum(one.fused.here.values())}",
        "" if one.precision != "int8" else one.saturation.verdict.value,
        "" if one.precision == "fp32" and one.speed.value == _NO else one.speed.value,
        one.exported or "",
        "not measured" if one.p50_us is None else f"{one.p50_us:.1f}",
        "" if one.ratio is None else f"{one.ratio.median:.2f}",
        "" if one.memory is None else f"{one.memory.peak_mb:.0f}",
    ]
