"""A parity report as JUnit XML, which Jenkins, GitLab and others show as tests.

The form is that of Jenkins' schema (jenkinsci/xunit-plugin, junit-10.xsd), which GitLab and GitHub's actions read as well. A
testcase is one question to one candidate. FAIL is a failure, and so is INCONCLUSIVE, with that as its type; what was not
measured is skipped, with the reason. As a run of skipped tests is green, the last testcase is the verdict on the whole:
it fails wherever `edgecnn parity` leaves with 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from edgecnn.host import Host
from edgecnn.parity.decisions import Flip
from edgecnn.parity.judge import Cell, ParityReport
from edgecnn.parity.verdict import Verdict

# All that XML 1.0 allows in no form (section 2.2); tabs and ends of lines are written as references by ElementTree.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Case(NamedTuple):
    """One question to `asked`; `more` is what stands behind the answer."""

    asked: str
    question: str
    verdict: Verdict
    reason: str
    more: str = ""


def junit_xml(report: ParityReport) -> str:
    """Write the report as one test suite, with its declaration; the text is to be encoded as UTF-8.

    Characters that XML cannot hold are written as backslash escapes.
    """
    cases = list(_cases(report))
    failed = sum(case.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) for case in cases)
    skipped = sum(case.verdict is Verdict.NOT_MEASURED for case in cases)
    counts = {"tests": len(cases), "failures": failed, "errors": 0}
    name = f"edgecnn parity {report.bundle}"
    root = _element(None, "testsuites", name=name, **counts, time="0")
    suite = _element(root, "testsuite", name=name, **counts, skipped=skipped, time="0")
    properties = _element(suite, "properties")
    for key, value in _properties(report):
        _element(properties, "property", name=key, value=value)
    for case in cases:
        _write(suite, case)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _cases(report: ParityReport) -> Iterator[_Case]:
    if report.decoding is not None:
        yield _Case(report.bundle, "decoding", report.decoding.verdict, report.decoding.reason)
    for cell in report.cells:
        yield from _of_cell(f"{report.bundle}.{cell.candidate}", cell)
    whole = Verdict.PASS if report.verdict is Verdict.PASS else Verdict.FAIL
    yield _Case(report.bundle, "verdict", whole, f"parity of {report.bundle}: {report.verdict.value}")


def _of_cell(asked: str, cell: Cell) -> Iterator[_Case]:
    computation, decisions, agreement = cell.computation, cell.decisions, cell.agreement
    changed = "" if agreement is None else f"{agreement.changed} of {agreement.n} answers changed"
    listed = [
        changed,
        *(_flip(flip) for flip in (agreement.flips if agreement else decisions.flips if decisions else ())),
    ]
    yield _Case(asked, "computation", computation.verdict, computation.reason)
    if decisions is None:
        reason = "there are no labels to judge by, or no answers"
        yield _Case(asked, "decisions", Verdict.NOT_MEASURED, reason, "\n".join(filter(None, listed)))
    else:
        yield _Case(asked, "decisions", decisions.verdict, decisions.reason, "\n".join(filter(None, listed)))
    for one in cell.steadiness:
        yield _Case(asked, one.what, one.verdict, one.reason)


def _flip(flip: Flip) -> str:
    truth = "" if flip.truth is None else f"is {flip.truth}, "
    return f"{flip.image}: {truth}reference {flip.reference}, candidate {flip.candidate}"


def _properties(report: ParityReport) -> Iterator[tuple[str, str]]:
    tolerance = report.tolerance
    yield from (("verdict", report.verdict.value), ("reference", report.reference), ("samples", report.samples))
    if report.data is not None:
        yield "data", report.data
    yield from _host(report.host, "")
    yield from _host(report.reference_host, "reference_") if report.reference_host else ()
    yield from ((f"tolerance.{name}", f"{getattr(tolerance, name):g}") for name in tolerance.__struct_fields__)
    for cell in report.cells:
        if cell.where is not None:
            side = cell.where
            yield f"{cell.candidate}.ran", f"{side.runtime}, {side.device}, threads {side.threads}, {side.precision}"
            yield f"{cell.candidate}.sha256", side.sha256 or "unknown"


def _host(host: Host, whose: str) -> Iterator[tuple[str, str]]:
    for key in ("system", "machine", "cpu", "python"):
        yield f"{whose}host.{key}", getattr(host, key)
    yield f"{whose}host.features", " ".join(host.features)
    yield f"{whose}host.usable_threads", str(host.usable_threads)
    yield from ((f"{whose}package.{name}", version) for name, version in host.packages.items())


def _write(suite: ElementTree.Element, case: _Case) -> None:
    element = _element(suite, "testcase", classname=case.asked, name=case.question, time="0")
    if case.verdict is Verdict.NOT_MEASURED:
        _element(element, "skipped", message=case.reason)
    elif case.verdict is not Verdict.PASS:
        failure = _element(element, "failure", type=case.verdict.value, message=case.reason)
        failure.text = _allowed("\n".join(filter(None, (f"{case.verdict.value}: {case.reason}", case.more))))
        return
    said = case.more if case.verdict is Verdict.NOT_MEASURED else "\n".join(filter(None, (case.reason, case.more)))
    if said:
        _element(element, "system-out").text = _allowed(said)


def _element(parent: ElementTree.Element | None, tag: str, **attributes: object) -> ElementTree.Element:
    written = {name: _allowed(str(value)) for name, value in attributes.items()}
    return ElementTree.Element(tag, written) if parent is None else ElementTree.SubElement(parent, tag, written)


def _allowed(words: str) -> str:
    return _FORBIDDEN.sub(lambda found: repr(found.group())[1:-1], words)
