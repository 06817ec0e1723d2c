"""The gate: every combination of what can be found, held to a table of rules written out here."""

from __future__ import annotations

import itertools

import pytest
from quantization import small

from edgecnn.parity import Verdict
from edgecnn.quantization.gate import judge
from edgecnn.quantization.race import Speed

PASS, FAIL, INCONCLUSIVE, NOT_MEASURED = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_MEASURED
DECISIONS = {PASS: small.decided(0), FAIL: small.decided(200), INCONCLUSIVE: small.decided(20)}


def speed(low: float, ratio: float, high: float) -> Speed:
    return Speed(ratio=ratio, low=low, high=high, rounds=100, p50_us=ratio * 80, reference_us=80.0)


SPEEDS = {
    PASS: speed(0.5, 0.6, 0.7), FAIL: speed(1.0, 1.1, 1.2), INCONCLUSIVE: speed(0.9, 0.95, 1.0), NOT_MEASURED: None,
}  # fmt: skip
SIZES = {PASS: (1000, 999), FAIL: (1000, 1000)}


def test_the_cases_are_what_they_say() -> None:
    """The decisions above have the verdicts they stand for."""
    assert {verdict: decisions.verdict for verdict, decisions in DECISIONS.items()} == {
        PASS: PASS, FAIL: FAIL, INCONCLUSIVE: INCONCLUSIVE,
    }  # fmt: skip


@pytest.mark.parametrize("here", [None, "the target is arm64 and this machine is x86-64"])
@pytest.mark.parametrize(
    ("accuracy", "quick", "size"), list(itertools.product(DECISIONS, SPEEDS, SIZES)), ids=lambda verdict: verdict.value
)
def test_every_combination_of_verdicts(accuracy: Verdict, quick: Verdict, size: Verdict, here: str | None) -> None:
    """Refused is what fails or is not shown; what was not measured, or binds nobody, neither passes nor refuses."""
    gate = judge(DECISIONS[accuracy], SPEEDS[quick], here, *SIZES[size])
    expected = {"accuracy": accuracy, "speed": quick if here is None else NOT_MEASURED, "size": size}
    assert {check.what: check.verdict for check in gate.checks} == expected
    refused = [what for what, verdict in expected.items() if verdict in (FAIL, INCONCLUSIVE)]
    assert [sentence.partition(":")[0] for sentence in gate.refusals] == refused
    assert all(check.reason and "\n" not in check.reason for check in gate.checks)


def test_refusals_hold_the_numbers() -> None:
    """Each says what was measured: flips, the ratio with its interval and microseconds, bytes."""
    accuracy, quick, large = judge(small.decided(200), speed(1.0, 1.1, 1.2), None, 1000, 1500).refusals
    assert "200 lost" in accuracy
    assert "1.100 of the float model's time" in quick
    assert "(1.000 to 1.200)" in quick
    assert "88 against 80 us: not faster" in quick
    assert large == "size: 1,500 bytes, 1.500 of the float model's 1,000"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.9, 0.999, PASS), (0.9, 1.0, INCONCLUSIVE), (0.999, 1.3, INCONCLUSIVE), (1.0, 1.3, FAIL)]
)  # fmt: skip
def test_faster_is_what_the_whole_interval_says(low: float, high: float, verdict: Verdict) -> None:
    """An interval that touches one proves nothing, and one that begins there proves the contrary."""
    gate = judge(small.decided(0), speed(low, (low + high) / 2, high), None, 2, 1)
    assert gate.checks[1].verdict is verdict


def test_what_binds_nobody_is_told_all_the_same() -> None:
    """A speed measured on another machine than the target stands there with the reason why it is not asked for."""
    check = judge(small.decided(0), SPEEDS[FAIL], "measure on the box", 2, 1).checks[1]
    assert "1.100 of the float model's time" in check.reason
    assert check.reason.endswith("which binds nobody: measure on the box")
    assert (
        judge(small.decided(0), None, "measure on the box", 2, 1).checks[1].reason == "not measured: measure on the box"
    )
    assert judge(small.decided(0), None, None, 2, 1).checks[1].reason == "not measured: nothing ran"
