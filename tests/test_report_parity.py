"""The page and the JUnit file of a parity check: what they say, what they escape, and that nothing is fetched."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from PIL import Image
from recordings import FP32, INT8, TORCH, recording, side

from edgecnn.parity.decisions import Agreement, Flip
from edgecnn.parity.judge import Cell, Decoding, ParityReport, judge
from edgecnn.parity.recording import Recording, SideArrays
from edgecnn.parity.steadiness import Steadiness
from edgecnn.parity.verdict import Verdict
from edgecnn.report import parity_flips
from edgecnn.report import parity_page as module
from edgecnn.report.junit import junit_xml
from edgecnn.report.parity_page import parity_page

GONE = "openvino:fp32"
NASTY = "<script>alert(1)</script> & \"'\x00\x1b[31m\udce9\n."


def changed_recording() -> Recording:
    """Record 400 samples, of which int8 answers every eighth otherwise."""
    made = recording(n=400)
    del made.sides[FP32].answers["kinds"]
    logits = made.sides[INT8].answers["logits"]
    logits[::8] = np.roll(logits[::8], 1, axis=1)
    return made


def count_changed() -> int:
    """Count what int8 answers otherwise than torch."""
    made = changed_recording()
    ours, theirs = (made.sides[ref].answers["logits"].argmax(axis=1) for ref in (TORCH, INT8))
    return int((ours != theirs).sum())


def made_report() -> ParityReport:
    """Judge them: float32 passes, int8 fails, and one backend was not there."""
    made = changed_recording()
    sides = {**made.sides, GONE: SideArrays()}
    given = (*made.head.sides, side(GONE, error="openvino was asked for and is not installed"))
    return judge(replace(made, sides=sides, head=msgspec.structs.replace(made.head, sides=given)))


@pytest.fixture(scope="module")
def report() -> ParityReport:
    """Return the small report."""
    return made_report()


def steady(what: Any, verdict: Verdict, reason: str = "a reason") -> Steadiness:
    return Steadiness(what=what, verdict=verdict, reason=reason, n=8, bit_equal=verdict is Verdict.PASS)


def with_cell(report: ParityReport, index: int, **changes: Any) -> ParityReport:
    cells = list(report.cells)
    cells[index] = msgspec.structs.replace(cells[index], **changes)
    return msgspec.structs.replace(report, cells=tuple(cells))


class Reader(HTMLParser):
    """Reads tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, tag: str, attribute: str) -> list[str]:
        return [value for name, found in self.tags if name == tag and (value := found.get(attribute)) is not None]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def rows(page: str, after: str) -> list[list[str]]:
    """Read the cells of the first table after a mark, tags left out."""
    body = page.partition(after)[2].partition("</table>")[0]
    found = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    return [[re.sub(r"<[^>]+>", "|", cell).strip("|") for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)] for row in found]  # fmt: skip


def test_the_matrix_has_each_candidate_and_question(report: ParityReport) -> None:
    """A row a candidate and a column a question that was asked, each with its verdict in words and its figure."""
    matrix = rows(parity_page(report), '<div class="matrix">')
    assert matrix[0] == ["candidate", "computation", "decisions", "agreement", "repeat", "batch", "threads"]
    by_name = {row[0].replace("|", ""): row[1:] for row in matrix[1:]}
    assert list(by_name) == [FP32, INT8, GONE]
    for cell in report.cells:
        shown = by_name[cell.candidate]
        assert cell.computation.verdict.value in shown[0]
        assert (cell.decisions.verdict.value if cell.decisions else "NOT MEASURED") in shown[1]
    multiple = report.cells[0].computation.multiple
    assert f"{multiple:.3g} × noise" in by_name[FP32][0]
    assert f"{count_changed()} of 400 changed" in by_name[INT8][2]
    assert by_name[GONE] == ["✗ FAIL|no answers", "– NOT MEASURED|no answers", "–", "–", "–", "–"]


def test_every_link_of_the_page_has_its_place(report: ParityReport) -> None:
    """Each cell of the matrix links to a place on the page that is there once."""
    reader = Reader(parity_page(report))
    links = reader.values("a", "href")
    places = Counter(value for tag, found in reader.tags if (value := found.get("id")) is not None)
    assert len(links) > 10
    assert all(link.startswith("#") and places[link[1:]] == 1 for link in links)


def test_reasons_figures_and_places_stand_behind_the_verdicts(report: ParityReport) -> None:
    """The page gives every reason, the bounds on the drop, what ran on what, the tolerance and the host."""
    words = Reader(parity_page(report)).text
    for cell in report.cells:
        assert " ".join(cell.computation.reason.split()) in words
        assert cell.where is not None
        assert f"by {cell.where.runtime} on cpu, 1 thread" in words
        if cell.decisions is not None:
            assert cell.decisions.reason in words
            assert f"bounded by {cell.decisions.drop_low * 100:+.2f} and {cell.decisions.drop_high * 100:+.2f}" in words
    assert "Made-up CPU" in words
    assert "in points of accuracy; a larger one" in words
    assert "✗ FAIL: at least one answer is outside" in words


@pytest.mark.parametrize("verdict", list(Verdict))
def test_each_verdict_is_told_in_words_and_mark(report: ParityReport, verdict: Verdict) -> None:
    """The line on the whole names the verdict and has a mark and a class of its own, so that colour is not all."""
    page = parity_page(msgspec.structs.replace(report, verdict=verdict))
    line = re.findall(r'<p class="v (\w+)"[^>]*><b>(.) ([A-Z ]+)</b>', page)
    assert line == [(verdict.name, module._MARKS[verdict], verdict.value)]
    assert len(set(module._MARKS.values())) == len(set(module._COLOURS.values())) == len(Verdict)


def test_flips_are_shown_with_their_pictures(report: ParityReport) -> None:
    """A changed answer has its picture by its index, enlarged by a whole factor, and both answers with their margins."""
    flips = report.cells[1].agreement.flips if report.cells[1].agreement else ()
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    reader = Reader(parity_page(report, {flips[1].index: pixels}))
    shown = [found for tag, found in reader.tags if tag == "img" and found.get("alt") == flips[1].image]
    assert len(shown) == 1
    source = shown[0]["src"] or ""
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert source.startswith("data:image/png;base64,")
    assert picture.shape == (96, 96, 3)
    assert np.array_equal(picture[::12, ::12], pixels)
    assert reader.text.count("no picture") == len(flips) - 1 == 19
    margin = f"reference: {flips[1].reference}"
    assert margin in reader.text
    assert f", margin {flips[1].candidate_margin:.3g}" in reader.text
    assert f"And {count_changed() - 20} more." in reader.text


@pytest.mark.parametrize(
    ("shape", "size"),
    [((300, 200, 1), (64, 96)), ((5, 97, 3), (96, 5)), ((1, 1, 1), (96, 96)), ((96, 96, 3), (96, 96))],
)
def test_thumbnails_keep_their_proportions(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Large pictures are made smaller, small ones larger, to a side of 96 at most."""
    encoded = parity_flips._thumbnail(np.zeros(shape, dtype=np.uint8))
    assert encoded is not None
    assert Image.open(io.BytesIO(encoded)).size == size


def test_what_is_no_picture_is_left_out() -> None:
    """Two channels, no pixels or a flat array make no thumbnail and no error."""
    for shape in ((4, 4, 2), (0, 4, 3), (16,)):
        assert parity_flips._thumbnail(np.zeros(shape, dtype=np.uint8)) is None


def test_no_more_than_forty_flips_are_shown(report: ParityReport) -> None:
    """Of a candidate with fifty listed flips forty are shown, and the rest is counted."""
    flips = tuple(Flip(image=f"{index}.png", index=index, reference="a", candidate="b") for index in range(50))
    agreement = Agreement(n=400, changed=90, share=0.775, flips=flips)
    page = parity_page(with_cell(report, 1, agreement=agreement))
    assert page.count("<figcaption><b>") == 40
    assert "And 50 more." in page


def test_texts_are_escaped_and_nothing_is_fetched(report: ParityReport) -> None:
    """Names, labels and reasons that hold markup and control characters are shown as text; there is no script and no address."""
    flip = Flip(image=NASTY, index=0, truth=NASTY, reference=NASTY, candidate=NASTY)
    cell = Cell(
        candidate=NASTY,
        artifact=NASTY,
        computation=msgspec.structs.replace(report.cells[0].computation, reason=NASTY, truth=NASTY),
        decisions=None,
        agreement=Agreement(n=1, changed=1, share=0.0, flips=(flip,)),
        steadiness=(steady("repeat", Verdict.FAIL, NASTY),),
        where=side(FP32, runtime=NASTY, sha256=NASTY),
    )
    made = msgspec.structs.replace(
        report,
        bundle=NASTY,
        reference=NASTY,
        samples=NASTY,
        cells=(cell,),
        host=msgspec.structs.replace(report.host, cpu=NASTY, packages={NASTY: NASTY}),
        decoding=Decoding(verdict=Verdict.PASS, reason=NASTY, n=1),
    )
    page = parity_page(made, {0: np.zeros((4, 4, 1), dtype=np.uint8)}, b"\x89PNG")
    reader = Reader(page)
    page.encode()
    assert "\x00" not in page
    assert "\x1b" not in page
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "form"}
    assert reader.text.count("<script>alert(1)</script>") > 10
    assert all(source.startswith("data:image/png;base64,") for source in reader.values("img", "src"))
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert not [name for _, found in reader.tags for name in found if name.startswith("on")]


def test_the_plot_is_there_with_matplotlib_only(report: ParityReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """With matplotlib there is one plot, a PNG; without it the page says so and is otherwise whole."""
    drawn = Reader(parity_page(report))
    (source,) = drawn.values("img", "src")
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).width > 500
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    plain = Reader(parity_page(report))
    assert plain.values("img", "src") == []
    assert "matplotlib, which is not installed" in plain.text
    assert plain.values("a", "href") == drawn.values("a", "href")


def test_a_candidate_is_plotted_by_what_it_is_let_pass(report: ParityReport) -> None:
    """The plot's shares are the multiple over the noise allowed, and the share over what this machine is allowed."""
    first, second = report.cells[:2]
    assert first.computation.multiple is not None
    share, words = module._bar(first, report) or (0.0, "")
    assert share == pytest.approx(first.computation.multiple / 10)
    assert "10 allowed" in words
    assert second.computation.share is not None
    share, words = module._bar(second, report) or (0.0, "")
    assert (share, "0.5 allowed" in words) == (pytest.approx(second.computation.share / 0.5), True)
    assert module._bar(report.cells[2], report) is None


def test_infinite_and_absent_figures_do_not_stop_the_page(report: ParityReport) -> None:
    """A multiple without end, no error at all, and cells of which nothing is known are all drawn and written."""
    endless = with_cell(report, 0, computation=msgspec.structs.replace(report.cells[0].computation, multiple=float("inf")))  # fmt: skip
    exact = with_cell(report, 0, computation=msgspec.structs.replace(report.cells[0].computation, multiple=0.0))
    assert "inf × noise" in parity_page(endless)
    assert "0 × noise" in parity_page(exact)
    nothing = msgspec.structs.replace(report, cells=report.cells[2:])
    assert Reader(parity_page(nothing)).values("img", "src") == []


def test_random_samples_and_a_localization_are_said(report: ParityReport) -> None:
    """Made-up samples are warned of, and the picture of the first differing block is shown where there is one."""
    page = parity_page(msgspec.structs.replace(report, random=True), None, b"\x89PNG here")
    assert "not real data" in page
    assert base64.b64encode(b"\x89PNG here").decode() in page
    assert "not real data" not in parity_page(report)


def suite(report: ParityReport) -> ElementTree.Element:
    """Read the file back as bytes, as Jenkins would, and hold it to the schema's rules."""
    root = ElementTree.fromstring(junit_xml(report).encode())
    assert root.tag == "testsuites"
    (found,) = root
    assert found.tag == "testsuite"
    assert [child.tag for child in found] == ["properties", *["testcase"] * (len(found) - 1)]
    for case in found.iter("testcase"):
        assert case.get("name")
        assert case.get("classname")
        assert float(case.get("time", "0")) == 0
        assert {child.tag for child in case} <= {"failure", "skipped", "system-out"}
    names = [(case.get("classname"), case.get("name")) for case in found.iter("testcase")]
    assert len(set(names)) == len(names)
    counts = {"tests": len(names), "failures": len(list(found.iter("failure"))), "errors": 0}
    skipped = len(list(found.iter("skipped")))
    assert set(root.attrib) == {"name", "time", *counts}  # Jenkins' schema knows no other here
    assert {name: int(root.attrib[name]) for name in counts} == counts
    assert {name: int(found.attrib[name]) for name in counts} == counts
    assert found.get("skipped") == str(skipped)
    return found


def case(found: ElementTree.Element, candidate: str, question: str) -> ElementTree.Element:
    name = "animals" + (f".{candidate}" if candidate else "")
    (one,) = [one for one in found.iter("testcase") if (one.get("classname"), one.get("name")) == (name, question)]
    return one


def test_every_question_is_a_testcase(report: ParityReport) -> None:
    """Verdicts become passed, failed and skipped testcases with their reasons, under subject and candidate."""
    found = suite(report)
    passed = case(found, FP32, "computation")
    assert [child.tag for child in passed] == ["system-out"]
    failure = case(found, INT8, "decisions").find("failure")
    assert failure is not None
    assert report.cells[1].decisions is not None
    assert (failure.get("type"), failure.get("message")) == ("FAIL", report.cells[1].decisions.reason)
    assert f"{count_changed()} of 400 answers changed\nimages/000.png: is " in (failure.text or "")
    gone = case(found, GONE, "computation").find("failure")
    assert gone is not None
    assert gone.get("message") == "openvino was asked for and is not installed"
    assert case(found, GONE, "decisions").find("skipped") is not None
    assert {one.get("name") for one in found.iter("testcase")} == {"computation", "decisions", "repeat", "batch", "threads", "verdict"}  # fmt: skip


def test_too_little_evidence_fails_and_none_is_skipped(report: ParityReport) -> None:
    """INCONCLUSIVE is a failure of that type; NOT MEASURED is skipped with its reason and never counts as passed."""
    cell = report.cells[0]
    assert cell.decisions is not None
    made = with_cell(
        report,
        0,
        decisions=msgspec.structs.replace(cell.decisions, verdict=Verdict.INCONCLUSIVE, reason="900 images are needed"),
        steadiness=(steady("repeat", Verdict.NOT_MEASURED, "was not run"), steady("threads", Verdict.PASS)),
    )
    found = suite(made)
    failure, skipped = case(found, FP32, "decisions").find("failure"), case(found, FP32, "repeat").find("skipped")
    assert failure is not None
    assert skipped is not None
    assert (failure.get("type"), failure.get("message")) == ("INCONCLUSIVE", "900 images are needed")
    assert skipped.get("message") == "was not run"


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_whole_is_green_only_where_it_passes(report: ParityReport, verdict: Verdict) -> None:
    """The testcase of the verdict fails unless that is PASS: a suite in which all was skipped must not look like one."""
    found = suite(msgspec.structs.replace(report, verdict=verdict, cells=()))
    assert (case(found, "", "verdict").find("failure") is None) == (verdict is Verdict.PASS)


def test_decoding_and_the_machine_are_in_the_file(report: ParityReport) -> None:
    """Decoding is a testcase of the subject; host, packages, tolerance and what ran are properties."""
    decoding = Decoding(verdict=Verdict.FAIL, reason="off by 3 levels", n=32)
    found = suite(msgspec.structs.replace(report, decoding=decoding))
    failure = case(found, "", "decoding").find("failure")
    assert failure is not None
    assert failure.get("message") == "off by 3 levels"
    properties = {one.get("name"): one.get("value") for one in found.iter("property")}
    assert properties["host.cpu"] == "Made-up CPU"
    assert properties["package.onnxruntime"] == "1.30.0"
    assert properties["tolerance.max_drop"] == "0.01"
    assert properties["reference"] == TORCH
    assert properties[f"{INT8}.ran"] == "onnxruntime 1.30.0, cpu, threads 1, int8"


def test_what_xml_cannot_hold_is_escaped(report: ParityReport) -> None:
    """Markup, quotes, control characters and broken surrogates in names and reasons come back, the latter as escapes."""
    made = with_cell(report, 0, candidate=NASTY, steadiness=(steady("repeat", Verdict.FAIL, NASTY),))
    words = junit_xml(msgspec.structs.replace(made, samples=NASTY))
    found = suite(msgspec.structs.replace(made, samples=NASTY))
    assert "\x00" not in words
    assert "<script>" not in words
    (failure,) = [one for one in found.iter("failure") if "alert" in (one.get("message") or "")]
    assert failure.get("message") == "<script>alert(1)</script> & \"'" + r"\x00\x1b[31m\udce9" + "\n."
