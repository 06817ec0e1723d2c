"""From a report to the place: which candidates are looked into, by whose graph, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from parity.fakes import ORT, PLUGGED, chain_file, change_weight, fed, plug
from quantization import small

from edgecnn.bundle import Bundle
from edgecnn.errors import BackendError
from edgecnn.parity import ParityReport, Verdict, compare, judge, record
from edgecnn.parity.compare import bundle_samples
from edgecnn.parity.locating import locate
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef

SAMPLES = fed(small.images(20))


def faulty(folder: Path, weight: str) -> BackendRef:
    """Write the chain with one weight off by half, and name it."""
    model = small.chain()
    change_weight(model, weight, 0.5)
    path = folder / f"{weight}.onnx"
    path.write_bytes(model.SerializeToString())
    return BackendRef(backend="onnxruntime", artifact=str(path))


def located(subject: Subject, reference: BackendRef | None, report: ParityReport) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    return locate(subject, reference, SAMPLES, report, said.append), said


@pytest.mark.parametrize("weight", ["a.weight", "b.weight", "g.weight"])
@pytest.mark.parametrize("named", [False, True], ids=["own graph", "reference's file"])
def test_the_block_with_the_planted_weight_is_named(weight: str, named: bool, tmp_path: Path) -> None:
    """The first block at fault is the one whose weight was changed, by the model's own graph or by a reference's file."""
    subject, ref = Subject.of_model(chain_file(tmp_path)), faulty(tmp_path, weight)
    reference = BackendRef(backend="onnxruntime", artifact=str(subject.path)) if named else None
    report = judge(record(subject, reference, [ref, ORT], SAMPLES))
    assert [cell.computation.verdict for cell in report.cells] == [Verdict.FAIL, Verdict.PASS]
    found, said = located(subject, reference, report)
    assert said == []
    assert [(one.candidate, one.failed, one.first is None) for one in found] == [
        (str(ref), True, False),
        ("onnxruntime", False, True),
    ]
    assert found[0].first is not None
    assert weight.removesuffix(".weight") in found[0].first.name, found[0].first


def test_what_passed_is_looked_into_without_alarm(tmp_path: Path) -> None:
    """A candidate that passes is looked into and said to be clean; one whose decisions alone failed is said to have failed."""
    subject = Subject.of_model(chain_file(tmp_path))
    found, said = located(subject, None, judge(record(subject, None, [ORT], SAMPLES)))
    assert ([(one.failed, one.first) for one in found], said) == ([(False, None)], [])
    assert found[0].reason.startswith("no verdict failed")
    labels = tuple(np.zeros(20, int).tolist())
    judged = judge(record(subject, None, [ORT], fed(small.images(20), labels)))
    decisions = judged.cells[0].decisions
    assert decisions is not None
    lost = msgspec.structs.replace(decisions, verdict=Verdict.FAIL)
    cells = (msgspec.structs.replace(judged.cells[0], decisions=lost),)
    found, _ = located(subject, None, msgspec.structs.replace(judged, cells=cells))
    assert [(one.candidate, one.failed) for one in found] == [("onnxruntime", True)]
    assert found[0].first is None, "there is no fault in it"


def test_a_candidate_without_answers_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did not load has no block to look into, is told with its reason, and the next is looked into all the same."""
    plug(monkeypatch, refusal=BackendError("no such kernel"))
    subject, ref = Subject.of_model(chain_file(tmp_path)), faulty(tmp_path, "b.weight")
    report = judge(record(subject, None, [PLUGGED, ref], SAMPLES))
    found, said = located(subject, None, report)
    assert [one.candidate for one in found] == [str(ref)]
    assert len(said) == 1
    assert said[0].startswith("edgecnn: plugged cannot be localized: ")
    assert "no such kernel" in said[0]


def test_a_file_that_went_away_is_said(tmp_path: Path) -> None:
    """A candidate whose file is no longer there is told in one line, and is no crash."""
    subject, ref = Subject.of_model(chain_file(tmp_path)), faulty(tmp_path, "b.weight")
    report = judge(record(subject, None, [ref], SAMPLES))
    Path(str(ref.artifact)).unlink()
    found, said = located(subject, None, report)
    assert found == []
    assert len(said) == 1
    assert "cannot be localized" in said[0]
    assert "is not there" in said[0]


def test_a_checkpoint_is_no_graph_to_look_into(bundle_folder: Path) -> None:
    """In a bundle a failed checkpoint is told to be no ONNX file, and an artifact that failed is held to the checkpoint."""
    bundle = Bundle.open(bundle_folder)
    torch, fp32 = BackendRef(backend="torch"), BackendRef(backend="onnxruntime", artifact="fp32")
    report = compare(bundle, None, [torch, fp32])
    cells = tuple(
        msgspec.structs.replace(
            cell, computation=msgspec.structs.replace(cell.computation, verdict=Verdict.FAIL, reason="planted")
        )
        for cell in report.cells
    )
    said: list[str] = []
    found = locate(
        Subject.of_bundle(bundle),
        None,
        bundle_samples(bundle, None),
        msgspec.structs.replace(report, cells=cells),
        said.append,
    )
    assert said == ["edgecnn: torch cannot be localized: it is no ONNX file"]
    assert [one.candidate for one in found] == ["onnxruntime:fp32"]
    assert found[0].first is None, "there is no fault in it"
