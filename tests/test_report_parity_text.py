"""The report of a parity check as text: the matrix, the reasons and answers behind it, and both machines of a replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from recordings import FP32, HOST, INT8, TORCH, recording, side

from edgecnn.parity.judge import Decoding, ParityReport, judge
from edgecnn.parity.recording import Recording, SideArrays
from edgecnn.parity.replay import compare_recordings
from edgecnn.parity.steadiness import Steadiness
from edgecnn.parity.verdict import Verdict
from edgecnn.report.parity import different_packages, parity_text

GONE = "openvino:a-backend-of-a-very-long-name-that-is-cut"


def changed_recording(labels: bool = True) -> Recording:
    """Record 400 samples, of which int8 answers every fortieth otherwise, and a backend that was not there."""
    made = recording(n=400, labels=labels)
    del made.sides[FP32].answers["kinds"]
    logits = made.sides[INT8].answers["logits"]
    logits[::40] = np.roll(logits[::40], 1, axis=1)
    given = (*made.head.sides, side(GONE, error="openvino is not installed"))
    return replace(made, sides={**made.sides, GONE: SideArrays()}, head=msgspec.structs.replace(made.head, sides=given))


def changed_places() -> list[int]:
    """Find by numpy which samples int8 answers otherwise than torch."""
    made = changed_recording()
    ours, theirs = (made.sides[ref].answers["logits"].argmax(axis=1) for ref in (TORCH, INT8))
    return np.flatnonzero(ours != theirs).tolist()


@pytest.fixture(scope="module")
def report() -> ParityReport:
    """Return its report."""
    return judge(changed_recording())


def matrix(words: str) -> dict[str, list[str]]:
    """Read the table by the places of its columns' rules."""
    lines = words.splitlines()
    rule = next(index for index, line in enumerate(lines) if line and set(line) <= {"-", " "})
    ends = [place for place, letter in enumerate(lines[rule] + " ") if letter == " "]
    starts = [0, *(place for place in range(1, len(lines[rule])) if lines[rule][place - 1 : place + 1] == " -")]
    widths = [(start, next(end for end in ends if end > start)) for start in starts]
    rows = {}
    for line in (lines[rule - 1], *lines[rule + 1 :]):
        if line.startswith("error: times"):
            break
        cells = [line[start:end].strip() for start, end in widths]
        rows[cells[0]] = cells[1:]
    return rows


def test_the_matrix_has_the_reports_figures(report: ParityReport) -> None:
    """Each candidate has a row with its verdicts, its error in its unit, its changed answers and the bound on its drop."""
    rows = matrix(parity_text(report))
    assert list(rows["candidate"]) == ["computation", "error", "SQNR dB", "max abs", "agree", "decisions", "accuracy", "flips", "drop <", "steady"]  # fmt: skip
    float32, int8 = report.cells[:2]
    for cell in (float32, int8):
        assert cell.decisions is not None
        assert cell.computation.distance is not None
        row = rows[cell.candidate]
        assert (row[0], row[5]) == (cell.computation.verdict.value, cell.decisions.verdict.value)
        assert float(row[2]) == pytest.approx(cell.computation.distance.sqnr_db, abs=0.05)
        assert float(row[3]) == pytest.approx(cell.computation.distance.max_abs, rel=0.01)
        assert float(row[8]) == pytest.approx(cell.decisions.drop_high * 100, abs=0.005)
        assert float(row[6].rstrip("%")) / 100 == pytest.approx(cell.decisions.candidate_accuracy.value, abs=5e-5)
    assert len(changed_places()) >= 10
    assert rows[INT8][7] == str(len(changed_places()))
    assert rows[INT8][4] == f"{1 - len(changed_places()) / 400:.2%}"
    assert rows[FP32][1] == f"{float32.computation.multiple:.2g}x"
    assert rows[INT8][1] == f"{int8.computation.share:.1%}"
    assert rows[FP32][9] == "=~-", "repeated to the bit, one at a time within tolerance, threads not run"


def test_a_long_name_is_cut_in_the_table_and_whole_below(report: ParityReport) -> None:
    """The table's first column stays narrow; where the reason stands the whole name does."""
    words = parity_text(report)
    (name,) = [name for name in matrix(words) if name.startswith("openvino")]
    assert len(name) == 30
    assert (name[:12], name[-15:]) == (GONE[:12], GONE[-15:])
    assert f"{GONE} computation: openvino is not installed" in words.splitlines()


def test_reasons_flips_and_the_verdict_follow(report: ParityReport) -> None:
    """Behind the table stand every reason and each listed flip with truth and margins; the last line is the verdict."""
    lines = parity_text(report).splitlines()
    assert lines[0] == f"reference {TORCH}; 400 labelled images"
    assert lines[-1] == "parity: FAIL"
    decisions = report.cells[1].decisions
    assert decisions is not None
    assert f"{INT8} computation: {report.cells[1].computation.reason}" in lines
    assert f"{INT8} decisions: {decisions.reason}" in lines
    flips = [line for line in lines if line.startswith("  images/")]
    assert [line.split(":")[0].strip() for line in flips] == [f"images/{index:03d}.png" for index in changed_places()]
    flip = decisions.flips[0]
    assert flips[0] == (
        f"  images/000.png: is {flip.truth}, reference {flip.reference} (by {flip.reference_margin:.3g}), "
        f"candidate {flip.candidate} (by {flip.candidate_margin:.3g})"
    )


def test_without_labels_agreement_is_told() -> None:
    """Without labels changed answers are counted and listed, and of the quantized file is said what only labels show."""
    lines = parity_text(judge(changed_recording(labels=False))).splitlines()
    assert f"{INT8} agreement: {len(changed_places())} of 400 answers are others" in lines
    assert f"{INT8} decisions: not measured; only labelled images show what quantization costs (--data)" in lines
    assert not [line for line in lines if line.startswith(f"{FP32} decisions")]
    assert sum(line.startswith("  images/") for line in lines) == len(changed_places())


@pytest.mark.parametrize(
    ("verdict", "bit_equal", "mark", "told"),
    [
        (Verdict.PASS, True, "=", False),
        (Verdict.PASS, False, "~", False),
        (Verdict.FAIL, False, "!", True),
        (Verdict.INCONCLUSIVE, False, "?", True),
        (Verdict.NOT_MEASURED, False, "-", False),
    ],
)
def test_steadiness_has_a_mark(verdict: Verdict, bit_equal: bool, mark: str, told: bool, report: ParityReport) -> None:
    """Each answer to a further run has a mark of its own, and one that is no pass its reason."""
    one = Steadiness(what="batch", verdict=verdict, reason="one sample at a time: so and so", n=8, bit_equal=bit_equal)
    cell = msgspec.structs.replace(report.cells[0], steadiness=(one,))
    words = parity_text(msgspec.structs.replace(report, cells=(cell,)))
    assert matrix(words)[FP32][9] == mark
    assert (f"{FP32} batch: one sample at a time: so and so" in words.splitlines()) == told


def test_random_samples_and_decoding_are_told(report: ParityReport) -> None:
    """Made-up samples are warned of, and decoding has its verdict above and its reason below."""
    decoding = Decoding(verdict=Verdict.FAIL, reason="off by 3 levels", n=8)
    made: Any = msgspec.structs.replace(report, random=True, decoding=decoding, data=None, samples="8 random inputs")
    lines = parity_text(made).splitlines()
    assert lines[0] == f"reference {TORCH}; 8 random inputs; decoding FAIL"
    assert "decoding: off by 3 levels" in lines
    assert "the samples are random: they do not span what real images do; give --data" in lines
    assert "the samples are random" not in parity_text(report)


def test_both_machines_of_a_replay_are_told(report: ParityReport) -> None:
    """A replay of two recordings names both machines and the packages of which they have other versions, and no others."""
    box = msgspec.structs.replace(HOST, cpu="Box CPU", packages={"numpy": "2.0.0", "onnxruntime": "1.31.0", "pillow": "12.0.0"})  # fmt: skip
    after = recording(n=400)
    lines = parity_text(
        compare_recordings(recording(n=400), replace(after, head=msgspec.structs.replace(after.head, host=box)))
    ).splitlines()
    assert "first machine: Made-up CPU, Linux 6.1, x86_64, Python 3.11.2" in lines
    assert "second machine: Box CPU, Linux 6.1, x86_64, Python 3.11.2" in lines
    assert "their packages differ: onnxruntime 1.30.0 and 1.31.0, pillow none and 12.0.0" in lines
    same = parity_text(compare_recordings(recording(n=400), recording(n=400))).splitlines()
    assert "their packages are the same" in same
    assert different_packages(box, HOST) == {"onnxruntime": ("1.31.0", "1.30.0"), "pillow": ("12.0.0", "none")}
    assert "machine:" not in parity_text(report)
