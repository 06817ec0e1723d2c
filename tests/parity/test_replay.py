"""Two recordings from two machines: differences are judged in their unit, and what cannot be compared is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from recordings import CLASSES, FP32, HOST, INT8, TORCH, recording, sha, side

from edgecnn.errors import UsageError
from edgecnn.parity.evidence import read_evidence, write_evidence
from edgecnn.parity.judge import Cell, ParityReport
from edgecnn.parity.recording import Recording, SideArrays
from edgecnn.parity.replay import compare_recordings
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import Tolerance

MANY = 400  # as many images without a flip exclude a drop of 0.75 points


def cells(report: ParityReport) -> dict[str, Cell]:
    return {cell.candidate: cell for cell in report.cells}


def head(made: Recording, **changes: Any) -> Recording:
    return replace(made, head=msgspec.structs.replace(made.head, **changes))


def without(made: Recording, ref: str) -> Recording:
    """Leave a side out of a recording."""
    kept = tuple(one for one in made.head.sides if one.ref != ref)
    return head(replace(made, sides={name: one for name, one in made.sides.items() if name != ref}), sides=kept)


def changed(made: Recording, ref: str, **changes: Any) -> Recording:
    """Change what a recording says of a side."""
    sides = tuple(msgspec.structs.replace(one, **changes) if one.ref == ref else one for one in made.head.sides)
    return head(made, sides=sides)


def test_the_same_answers_pass_to_the_bit(tmp_path: Path) -> None:
    """A recording compared with its own file, read back, is equal to the bit in every side, and passes both questions."""
    made = recording(n=MANY)
    write_evidence(tmp_path / "x.zip", made)
    report = compare_recordings(made, read_evidence(tmp_path / "x.zip"))
    assert report.verdict is Verdict.PASS
    assert list(cells(report)) == [TORCH, FP32, INT8]
    for cell in report.cells:
        assert cell.computation.verdict is Verdict.PASS
        assert "to the bit on all 400 samples" in cell.computation.reason
        assert cell.decisions is not None
        assert (cell.decisions.n, cell.decisions.changed) == (MANY, 0)
    assert (cells(report)[FP32].computation.multiple, cells(report)[INT8].computation.share) == (0.0, 0.0)


def test_a_float_side_is_judged_in_units_of_noise() -> None:
    """The multiple is the difference of the two machines over torch float32's own error, by numpy on all samples."""
    before, after = recording(n=MANY), recording(n=MANY, seed=1)
    cell = cells(compare_recordings(before, after))[FP32]
    ours, theirs = (one.sides[FP32].answers["logits"].astype(np.float64) for one in (before, after))
    assert before.float64 is not None
    assert before.float32 is not None
    noise = before.float32 - before.float64
    rms = np.sqrt(((theirs - ours) ** 2).mean()) / np.sqrt((noise**2).mean())
    most = np.abs(theirs - ours).max() / np.abs(noise).max()
    assert cell.computation.multiple == pytest.approx(max(rms, most), rel=1e-9)
    assert 1 < max(rms, most) < 4
    assert (cell.computation.verdict, cell.computation.n) == (Verdict.PASS, MANY)
    assert "times torch float32's own error against float64; 10 is allowed" in cell.computation.reason


def test_one_wrong_sample_outside_of_the_truth_fails() -> None:
    """A single logit that is off by 50 units, on a sample for which there is no float64, fails the float side."""
    before, after = recording(n=MANY), recording(n=MANY)
    after.sides[FP32].answers["logits"][101, 1] += 5e-5
    assert 101 not in before.head.truth_samples
    report = compare_recordings(before, after)
    assert cells(report)[FP32].computation.verdict is Verdict.FAIL
    assert report.verdict is Verdict.FAIL
    loose = compare_recordings(before, after, Tolerance(noise_multiple=100))
    assert cells(loose)[FP32].computation.verdict is Verdict.PASS


def test_a_quantized_side_is_judged_by_its_own_error() -> None:
    """The share is the difference over the quantization error, by numpy; less is allowed on the same CPU and runtime."""
    before, after = recording(n=MANY), recording(n=MANY)
    moved = after.sides[INT8].answers["logits"]
    moved[::5] += np.float32(0.01)
    found = cells(compare_recordings(before, after))[INT8].computation
    assert before.float64 is not None
    own = before.sides[INT8].on_truth - before.float64
    change = moved - before.sides[INT8].answers["logits"]
    share = max(np.sqrt((change**2).mean()) / np.sqrt((own**2).mean()), np.abs(change).max() / np.abs(own).max())
    assert found.share == pytest.approx(share, rel=1e-6)
    assert 0.05 < share < 0.5
    assert (found.verdict, "0.05 is allowed" in found.reason) == (Verdict.FAIL, True)
    other = head(after, host=msgspec.structs.replace(HOST, cpu="Another CPU"))
    elsewhere = cells(compare_recordings(before, other))[INT8]
    assert (elsewhere.computation.verdict, "0.5 is allowed" in elsewhere.computation.reason) == (Verdict.PASS, True)
    newer = cells(compare_recordings(before, changed(after, INT8, runtime="onnxruntime 1.31.0")))[INT8]
    assert "0.5 is allowed" in newer.computation.reason
    flags = [
        one.where.recorded_here for one in (cells(compare_recordings(before, after))[INT8], elsewhere) if one.where
    ]
    assert flags == [True, False]


def test_the_unit_is_taken_from_either_recording() -> None:
    """Where only the second machine had torch its float64 is used, to the same verdict; where neither had, nothing is measured."""
    before, after = recording(n=MANY), recording(n=MANY, seed=1)
    bare = replace(
        head(before, truth=None, truth_samples=()),
        float64=None,
        float32=None,
        sides={ref: replace(one, on_truth=None) for ref, one in before.sides.items()},
    )
    after.sides[INT8].answers["logits"][0, 0] += np.float32(0.001)
    first, second = (cells(compare_recordings(one, after)) for one in (before, bare))
    for ref in (FP32, INT8):
        assert first[ref].computation.verdict is second[ref].computation.verdict is Verdict.PASS
    assert first[FP32].computation.multiple == second[FP32].computation.multiple
    poor = replace(
        head(after, truth=None, truth_samples=()),
        float64=None,
        float32=None,
        sides={ref: replace(one, on_truth=None) for ref, one in after.sides.items()},
    )
    neither = cells(compare_recordings(bare, poor))
    for ref in (FP32, INT8):
        assert neither[ref].computation.verdict is Verdict.NOT_MEASURED
        assert "neither recording has float64" in neither[ref].computation.reason
        assert neither[ref].decisions is not None


def test_changed_answers_are_counted_and_listed() -> None:
    """Answers that the second machine gives otherwise are lost by its labels, and each is listed with both margins."""
    before, after = recording(n=MANY), recording(n=MANY)
    logits = after.sides[INT8].answers["logits"]
    wrong = list(range(0, MANY, 8))
    for index in wrong:
        logits[index] = np.roll(logits[index], 1)
    report = compare_recordings(before, after)
    cell = cells(report)[INT8]
    assert cell.decisions is not None
    assert cell.agreement is not None
    assert before.head.samples.labels is not None
    known = np.array(before.head.samples.labels)
    right = (before.sides[INT8].answers["logits"].argmax(1) == known) & (logits.argmax(1) != known)
    assert (cell.decisions.lost, cell.agreement.changed) == (right.sum(), len(wrong))
    assert cell.decisions.verdict is Verdict.FAIL
    flip = cell.agreement.flips[1]
    assert (flip.index, flip.image) == (8, "images/008.png")
    ordered = np.sort(before.sides[INT8].answers["logits"][8])
    assert flip.reference_margin == pytest.approx(float(ordered[-1]) - float(ordered[-2]))
    assert flip.reference_margin == pytest.approx(flip.candidate_margin)
    assert flip.truth in CLASSES


def test_without_labels_decisions_stay_open() -> None:
    """Without labels in either recording there is agreement and no decision; labels of one of the two are enough."""
    bare = recording(n=MANY, labels=False)
    report = compare_recordings(bare, bare)
    assert (report.verdict, report.data) == (Verdict.PASS, None)
    assert all(cell.decisions is None and cell.agreement is not None for cell in report.cells)
    assert all(cell.decisions for cell in compare_recordings(bare, recording(n=MANY)).cells)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subject_sha256": sha("plants")}, r"different models, animals \(\w{12}\) .*: record the same bundle"),
        ({"answer": "scores"}, "different outputs or classes, 'logits' of 3 and 'scores' of 3"),
        ({"classes": ("a", "b")}, "'logits' of 3 and 'logits' of 2"),
    ],
)
def test_recordings_of_different_things_are_refused(changes: dict[str, Any], said: str) -> None:
    """Another model, output or classes is an error in one line that says which."""
    with pytest.raises(UsageError, match=said) as caught:
        compare_recordings(recording(), head(recording(), **changes))
    assert "\n" not in str(caught.value)


def test_recordings_of_different_samples_are_refused() -> None:
    """Other samples are an error that names both and the decoders' versions; other labels for the same ones as well."""
    made = recording()
    other = msgspec.structs.replace(made.head.samples, said="40 other images", sha256=sha("others"))
    with pytest.raises(UsageError, match=r"40 labelled images and 40 other images: .* \(Pillow unknown and unknown\)"):
        compare_recordings(made, head(made, samples=other))
    labelled = msgspec.structs.replace(made.head.samples, labels=(0,) * 40)
    with pytest.raises(UsageError, match="different labels"):
        compare_recordings(made, head(made, samples=labelled))


def test_a_side_that_one_machine_lacks_is_not_measured() -> None:
    """A candidate of which only one recording has answers is listed with what to do, and keeps the whole from passing."""
    both = recording(n=MANY)
    less = without(both, INT8)
    for report, which, other in (
        (compare_recordings(both, less), "first", "second"),
        (compare_recordings(less, both), "second", "first"),
    ):
        cell = cells(report)[INT8]
        assert (cell.computation.verdict, cell.decisions, cell.agreement) == (Verdict.NOT_MEASURED, None, None)
        assert cell.computation.reason == f"only the {which} recording has it: record it on the {other} machine too"
        assert report.verdict is Verdict.NOT_MEASURED


def test_a_box_needs_not_have_the_reference() -> None:
    """Torch as the reference of the workstation alone is listed as not measured, and the rest may pass."""
    both = recording(n=MANY)
    box = head(without(both, TORCH), reference="goldens")
    report = compare_recordings(both, box)
    assert cells(report)[TORCH].computation.verdict is Verdict.NOT_MEASURED
    assert report.verdict is Verdict.PASS


def test_nothing_in_common_is_no_pass() -> None:
    """Two recordings without a side in common, be they both references, are not measured as a whole."""
    both = recording(n=MANY)
    one = without(without(both, FP32), INT8)
    other = head(without(without(both, TORCH), INT8), reference=FP32)
    assert compare_recordings(one, other).verdict is Verdict.NOT_MEASURED


def test_another_file_under_the_same_name_is_not_compared() -> None:
    """Sides that ran different files are not measured, and both files' hashes are told."""
    made = recording(n=MANY)
    report = compare_recordings(made, changed(made, INT8, sha256=sha("newer")))
    reason = cells(report)[INT8].computation.reason
    assert cells(report)[INT8].computation.verdict is Verdict.NOT_MEASURED
    assert sha("newer")[:12] in reason
    assert sha("int8")[:12] in reason


def _nan(made: Recording) -> Recording:
    made.sides[FP32].answers["logits"][3, 1] = np.nan
    return made


def _failed(made: Recording) -> Recording:
    sides = {**made.sides, FP32: SideArrays()}
    return changed(replace(made, sides=sides), FP32, error="no such device")


def _renamed(made: Recording) -> Recording:
    answers = made.sides[FP32].answers
    answers["sorts"] = answers.pop("kinds")
    return made


def _wide(made: Recording) -> Recording:
    made.sides[FP32].answers["kinds"] = np.zeros((MANY, 2), dtype=np.int64)
    return made


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_nan, "output 'logits' has 1 values that are not finite"),
        (_failed, "no such device"),
        (_renamed, "output 'kinds' is missing; it has logits, sorts"),
        (_wide, r"output 'kinds' has shape \(400, 2\), in the first recording \(400,\)"),
    ],
)
def test_faults_of_the_second_machine_fail_and_of_the_first_are_no_measure(
    damage: Callable[[Recording], Recording], said: str
) -> None:
    """A NaN, an error, a missing or misshapen output of the second is a FAIL; with the first there is then no comparison."""
    report = compare_recordings(recording(n=MANY), damage(recording(n=MANY)))
    assert cells(report)[FP32].computation.verdict is Verdict.FAIL
    assert re.search(said, cells(report)[FP32].computation.reason)
    assert cells(report)[FP32].decisions is None
    assert cells(report)[INT8].computation.verdict is Verdict.PASS
    if damage in (_nan, _failed):
        other = compare_recordings(damage(recording(n=MANY)), recording(n=MANY))
        assert cells(other)[FP32].computation.verdict is Verdict.NOT_MEASURED
        assert "the first recording has nothing to compare with" in cells(other)[FP32].computation.reason


def test_the_report_says_where_both_ran() -> None:
    """The first machine is named in what is compared with, the second is the report's host, and cells say what ran."""
    before, after = recording(n=MANY), recording(n=MANY)
    box = head(after, host=msgspec.structs.replace(HOST, cpu="Box CPU"))
    report = compare_recordings(before, box)
    assert report.reference == "the recording of 2026-11-24T12:00:00Z on Made-up CPU, Linux 6.1 (torch 1.30.0, onnxruntime 1.30.0)"  # fmt: skip
    assert report.host.cpu == "Box CPU"
    assert cells(report)[FP32].where == side(FP32)
    assert msgspec.json.decode(msgspec.json.encode(report), type=ParityReport) == report
