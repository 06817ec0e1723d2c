"""Which artifact becomes the default, and how failures are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from assemble.quick import LOOSE, Run

from edgecnn import assemble
from edgecnn.assemble import failures
from edgecnn.bundle import Bundle
from edgecnn.parity import ParityReport, Verdict, compare, default_refs


@pytest.fixture(scope="module")
def report(bundle_folder: Path, run: Run) -> ParityReport:
    bundle = Bundle.open(bundle_folder)
    reference, candidates = default_refs(bundle)
    tolerance = msgspec.structs.replace(bundle.manifest.tolerance, max_drop=LOOSE)
    return compare(bundle, reference, candidates, run[2].test, tolerance)


def verdicts(report: ParityReport, **cells: tuple[str, str | None]) -> ParityReport:
    """Give a report's cells these verdicts: computation and decisions, the latter None where not asked."""
    changed = []
    for cell in report.cells:
        computation, decisions = cells.get(cell.artifact, ("PASS", "PASS"))
        assert cell.decisions is not None
        changed.append(
            msgspec.structs.replace(
                cell,
                computation=msgspec.structs.replace(cell.computation, verdict=Verdict(computation)),
                decisions=None
                if decisions is None
                else msgspec.structs.replace(cell.decisions, verdict=Verdict(decisions)),
            )
        )
    return msgspec.structs.replace(report, cells=tuple(changed))


def latency(low: float, median: float, high: float) -> dict[str, Any]:
    first = {"ratio_to_first": {"median": 1.0, "low": 1.0, "high": 1.0}}
    return {"fp32": first, "int8": {"ratio_to_first": {"median": median, "low": low, "high": high}}}


@pytest.mark.parametrize(
    ("cells", "ratio", "expected"),
    [
        ({}, (0.5, 0.6, 0.7), "int8"),
        ({}, (0.92, 0.94, 0.99), "int8"),
        ({}, (0.96, 0.97, 0.98), "fp32"),
        ({}, (0.8, 0.9, 1.0), "fp32"),
        ({}, (0.5, 0.6, 1.3), "fp32"),
        ({}, (1.1, 1.2, 1.3), "fp32"),
        ({"int8": ("PASS", "INCONCLUSIVE")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("PASS", "FAIL")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("FAIL", "PASS")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("NOT MEASURED", "PASS")}, (0.5, 0.6, 0.7), "fp32"),
        ({"int8": ("PASS", None)}, (0.5, 0.6, 0.7), "fp32"),
        ({"fp32": ("FAIL", "FAIL")}, (0.5, 0.6, 0.7), "int8"),
        ({"fp32": ("FAIL", "FAIL"), "int8": ("FAIL", "FAIL")}, (0.5, 0.6, 0.7), "fp32"),
    ],
)
def test_the_default_is_the_fastest_that_passed(
    cells: dict[str, tuple[str, str | None]], ratio: tuple[float, float, float], expected: str, report: ParityReport
) -> None:
    """Int8 becomes the default only where it passed both questions and is clearly faster than the first."""
    assert assemble._default(verdicts(report, **cells), latency(*ratio)) == expected


def test_a_first_artifact_that_failed_is_not_the_default_beside_one_that_passed(report: ParityReport) -> None:
    """Forced, a bundle whose first artifact failed takes one that passed, even a slower one."""
    broken = verdicts(report, fp32=("FAIL", "FAIL"))
    assert assemble._default(broken, latency(1.1, 1.2, 1.3)) == "int8"


def test_failures_are_listed_one_sentence_each(report: ParityReport) -> None:
    """Every FAIL, and only a FAIL, is listed with candidate, question and reason."""
    assert failures(verdicts(report)) == []
    assert failures(verdicts(report, int8=("PASS", "INCONCLUSIVE"))) == []
    found = failures(verdicts(report, fp32=("FAIL", "PASS"), int8=("FAIL", "FAIL")))
    assert [line.split(":")[1] for line in found] == ["fp32 computation", "int8 computation", "int8 decisions"]
    decoding = msgspec.structs.replace(report.decoding, verdict=Verdict.FAIL, reason="other pixels")
    assert failures(msgspec.structs.replace(report, decoding=decoding)) == ["decoding: other pixels"]
