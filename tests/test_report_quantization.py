"""The reports of a quantization and of sensitivity: what they say, what their pictures show, and what they escape."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgecnn.parity.decisions import Decisions, judge_decisions
from edgecnn.quantization.fusion import Fusion, LayerFusion
from edgecnn.quantization.gate import judge
from edgecnn.quantization.ladder import Rung
from edgecnn.quantization.placement import Placement, Search
from edgecnn.quantization.race import Speed
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.run import Report
from edgecnn.quantization.saturation import LayerSaturation
from edgecnn.quantization.sensitivity import Advice, LayerSensitivity, NodeSensitivity, Sensitivity
from edgecnn.quantization.values import Channels, Values
from edgecnn.report import quantization_plots, sensitivity_plots
from edgecnn.report.quantization import quantization_text, write_quantization_page
from edgecnn.report.quantization_page import quantization_page
from edgecnn.report.sensitivity import sensitivity_page, sensitivity_text
from edgecnn.spec import Tolerance

HOSTILE = """<script>alert('x')</script>"><img src=http://evil/x.png onerror=y> $\\frac{ \x1b[31m"""
NAMES = ("cat", "dog")


def decisions(lost: int, images: int = 200, name: str = "image") -> Decisions:
    """Judge images of which the float model has all and the quantized one all but `lost`, within 5 points."""
    truth = np.arange(images) % 2
    answers = truth.copy()
    answers[:lost] ^= 1
    listed = [f"{name} {index}" for index in range(images)]
    return judge_decisions(truth, answers, truth, listed, NAMES, Tolerance(max_drop=0.05))


def speed(ratio: float) -> Speed:
    return Speed(ratio=ratio, low=ratio - 0.01, high=ratio + 0.02, rounds=50, p50_us=100 * ratio, reference_us=100)


def report(name: str = "net.first", timed: bool = True, **changes: Any) -> Report:
    """Make a report of three rungs, the second of which is taken and the third was not made."""
    fast = (lambda ratio: speed(ratio)) if timed else (lambda ratio: None)
    bad, good = decisions(40, name=name), decisions(1, name=name)
    rungs = (
        Rung(name="min-max", sqnr_db=11.25, bytes=900, speed=fast(0.5), decisions=bad),
        Rung(name=f"{name} in float", floats=("node_a",), sqnr_db=31.5, bytes=1500, speed=fast(0.625), decisions=good),
        Rung(name="QAT", note=f"no images: {name}"),
    )
    placements = (
        Placement(floats=(), sqnr_db=30, bytes=900, speed=fast(0.5), front=True),
        Placement(floats=("node_a",), sqnr_db=33, bytes=1500, speed=fast(0.45), front=True),
        Placement(floats=("node_a", "node_b"), sqnr_db=36, bytes=2500, speed=fast(0.7), front=True),
        Placement(floats=("node_b",), sqnr_db=29, bytes=1900, speed=fast(0.9)),
    )
    layers = (
        LayerFusion(name=name, node="node_a", op="Conv", kernel="Conv", int8=False, why=f"left in float: {name}"),
        LayerFusion(name="net.second", node="node_b", op="Conv", kernel="QLinearConv", int8=True),
        LayerFusion(name="net.head", node="node_c", op="Gemm", kernel="QGemm", int8=True),
    )
    others = (LayerFusion(name="add", node="add", op="Add", kernel="QLinearAdd", int8=True),)
    made = Report(
        edgecnn="1.2.3",
        onnxruntime="1.32.0",
        host={"cpu": "a CPU", "features": ["avx2"], "packages": {"numpy": "2.0"}},
        target="x86-64",
        precision="mixed",
        source_sha256="ab" * 32,
        source_bytes=4000,
        changes=(f"folded {name}",),
        calibration_images=100,
        evaluation_images=200,
        evaluated_on="labels",
        gate=judge(good, fast(0.625), None if timed else "the target is elsewhere", 4000, 1500),
        decisions=good,
        bytes=1500,
        speed=fast(0.625),
        sqnr_db=31.5,
        recipe=Recipe(reduced_range=True),
        rungs=rungs,
        best=1,
        search=Search(tried=placements, chosen=placements[1], reason="the most exact"),
        fusion=Fusion(layers=layers, others=others, operators={"QLinearConv": 1, "Conv": 1}),
        saturation=(LayerSaturation(name, "node_a", "Conv", 1000, 25, 40000, 12.5),),
    )
    return msgspec.structs.replace(made, **changes)


def values(tensor: str, clip: tuple[float, float] | None, clipped: float = 0.0) -> Values:
    channels = Channels(count=3, silent=0, spread=40.0, loudest=1, loudness=20.0)
    counts = tuple([0] * 10 + [100] * 44 + [1] * 10)
    return Values(tensor=tensor, low=-1.0, high=3.0, rms=1.0, counts=counts, clip=clip, clipped=clipped, channels=channels)  # fmt: skip


def found(name: str = "net.first", layers: int = 3) -> Sensitivity:
    """Make the sensitivity of some layers, the first worth keeping and the second hurt, and of a pooling."""
    alone, left_out = [12.0, 14.0, *[30.0] * layers], [25.0, 10.5, *[10.0] * layers]
    made = [
        LayerSensitivity(
            name=name if index == 0 else f"layer {index}", node=f"node_{index}", op="Conv", alone_db=alone[index],
            left_out_db=left_out[index], gain_db=left_out[index] - 10, weights=values("w", None), input=values("in", (-1, 3)),
            output=values("out", (-1, 2), 0.034), saturated=None if index else 0.125,
        )
        for index in range(layers)
    ]  # fmt: skip
    pool = NodeSensitivity(name="pool", node="pool", op="AveragePool", left_out_db=10.0, gain_db=0.0, input=values("in", (-1, 3)), output=values("p", (-1, 3)))  # fmt: skip
    keep = Advice(name=name, node="node_0", op="Conv", share=0.97, gain_db=15.0, why=f"channel 1 of {name} is loud")
    hurt = Advice(name="layer 1", node="node_1", op="Conv", share=0.4, gain_db=0.5, why="nothing stands out")
    return Sensitivity(
        method="mse", recipe=Recipe(), images=100, judged=64, all_db=10.0, layers=tuple(made), others=(pool,), keep=(keep,),
        hurt=(hurt,) if layers > 1 else (),
    )  # fmt: skip


class Reader(HTMLParser):
    """Reads tags with their attributes, and the cells of every row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.cell = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


# The text of a quantization.


def test_rungs_are_told_with_all_their_figures() -> None:
    """Each rung has a line with verdict, accuracy, interval, bound, time, size, SQNR and layers; the taken one has a star."""
    text = quantization_text(report())
    taken = line_of(text, "net.first in float *")
    good = decisions(1)
    share = good.candidate_accuracy
    assert taken.split()[4:] == [
        "PASS", "99.50", f"{share.low * 100:.2f}", "to", f"{share.high * 100:.2f}", f"{good.drop_high * 100:.2f}", "0.625", "0.615", "to",
        "0.645", "1.5", "kB", "31.5", "net.first",
    ]  # fmt: skip
    assert "FAIL" in line_of(text, "min-max")
    assert "*" not in line_of(text, "min-max")
    assert line_of(text, "QAT").split() == ["QAT", "not", "made", "no", "images:", "net.first"]


def test_placements_on_the_front_are_listed_fastest_first() -> None:
    """The front is listed with the chosen one marked, layers by their own names, and what is beaten is left out."""
    text = quantization_text(report())
    lines = text[text.index("in float  ") :].splitlines()
    listed = [line for line in lines if line.endswith(("front", "chosen"))]
    assert [line.rsplit("  ", 1)[-1] for line in listed] == ["chosen", "front", "front"]
    assert listed[0].startswith("net.first  ")
    assert listed[1].startswith("none  ")
    assert listed[2].startswith("net.first, net.second  ")
    assert "29.0" not in text
    assert "chosen: the most exact" in text


def test_the_proof_counts_what_runs_in_int8_and_says_why_the_rest_does_not() -> None:
    """Convolutions, linear layers and other nodes are counted, and each node in float has its reason."""
    text = quantization_text(report())
    assert "1 of 2 convolutions, 1 of 1 linear layers, 1 of 1 other nodes" in text
    assert "  net.first (Conv): left in float: net.first" in text
    assert "net.second (" not in text


def test_saturation_and_the_gate_are_told() -> None:
    """Sums that saturate are counted and their layer named; the gate ends the text."""
    text = quantization_text(report())
    assert "25 of 1,000 saturate; the largest is 40,000" in text
    assert "  net.first (Conv): 2.50% saturate, 12.5 dB" in text
    assert text.endswith("gate: PASS")
    bad = report(gate=judge(decisions(40), speed(1.5), None, 4000, 5000))
    assert quantization_text(bad).endswith("gate: refused for its accuracy and speed and size")


def test_what_was_not_measured_takes_no_column() -> None:
    """Without timing there is no column of times, and a float16 report has no rungs, front or fusion."""
    text = quantization_text(report(timed=False))
    assert "time" not in line_of(text, "rung")
    assert "0.615" not in text
    half = report(precision="fp16", recipe=None, rungs=(), search=None, fusion=None, saturation=(), losses=("w: 3 of 9",), speed=None)  # fmt: skip
    text = quantization_text(half)
    assert "rung" not in text
    assert "float16 loses values of:\n  w: 3 of 9" in text


def test_agreement_is_not_called_accuracy() -> None:
    """Where the float model's own answers are what is right, the text says so."""
    text = quantization_text(report(evaluated_on="the float model's own answers"))
    assert "right is what the float model answers" in text
    assert "99.50% the same answer" in line_of(text, "quantized")


def test_long_lists_are_cut_and_said_to_be() -> None:
    """Of a hundred placements on the front twenty are listed, and how many are left is said."""
    many = tuple(Placement(floats=("node_a",), sqnr_db=30 + index, bytes=900, speed=speed(0.5 + index / 200), front=True) for index in range(100))  # fmt: skip
    text = quantization_text(report(search=Search(tried=many, chosen=many[0], reason="of many")))
    assert "... and 80 more: see --json" in text
    assert sum(line.endswith("front") for line in text.splitlines()) == 19


# The pages.


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pages as where matplotlib is not installed."""
    monkeypatch.setattr("edgecnn.report.quantization_page.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


PAGES: dict[str, Callable[[str], str]] = {
    "quantization": lambda name: quantization_page(report(name)),
    "sensitivity": lambda name: sensitivity_page(found(name), name),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_escapes_hostile_names_and_fetches_nothing(kind: str) -> None:
    """Names that are markup stay text, in tables and in pictures; every picture is in the file, and nothing is loaded."""
    page = PAGES[kind](HOSTILE)
    reader = Reader(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    assert not [key for _, attributes in reader.tags for key in attributes if key.startswith("on") or key in ("href", "srcset")]  # fmt: skip
    sources = [str(attributes["src"]) for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 2
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        picture.load()
        assert picture.width > 500
    assert "url(" not in page
    assert "@import" not in page
    assert "<script>alert('x')</script>" in reader.text
    assert "\x1b" not in page


@pytest.mark.usefixtures("bare")
def test_the_page_of_a_quantization_has_the_tables_of_the_text() -> None:
    """Gate, rungs, placements, reasons, kernels, saturation and changed answers are rows of the page."""
    made = report()
    rows = [[cell.strip() for cell in row] for row in Reader(quantization_page(made)).rows]
    text = quantization_text(made)
    for check in made.gate.checks:
        assert [check.what, check.verdict.value, check.reason] in rows
    for start in ("min-max", "net.first in float *"):
        row = next(row for row in rows if row[0] == start)
        assert " ".join(cell for cell in row if cell) == " ".join(line_of(text, start).split())
    assert ["net.first", "Conv", "left in float: net.first"] in rows
    assert ["QLinearConv", "1"] in rows
    assert ["net.first", "Conv", "2.500%", "40,000", "12.5"] in rows
    flip = made.decisions.flips[0]
    assert [flip.image, flip.truth, flip.reference, flip.candidate] in rows
    assert sum(row[-1] in ("chosen", "front") for row in rows) == 3


def test_a_refused_model_is_set_apart() -> None:
    """The page of a refused model says so in a note; that of an accepted one has no note."""
    assert '<p class="note">gate: refused for its size</p>' in quantization_page(report(gate=judge(decisions(1), speed(0.5), None, 10, 20)))  # fmt: skip
    assert 'class="note"' not in quantization_page(report())


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("kind", PAGES)
def test_without_matplotlib_a_page_has_its_tables_and_says_why(kind: str) -> None:
    """Where matplotlib is not installed the page is written without pictures."""
    reader = Reader(PAGES[kind]("net.first"))
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert "pip install 'edgecnn[train]'" in reader.text
    assert len(reader.rows) > 5


@pytest.mark.usefixtures("bare")
def test_the_page_is_written_where_the_command_looks_for_it(tmp_path: Any) -> None:
    """The page of a quantization is report.html in the folder."""
    write_quantization_page(tmp_path, report())
    assert (tmp_path / "report.html").read_text() == quantization_page(report())


# The pictures, by what they are made of.


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the figures that are drawn from here on."""
    figures: list[Any] = []

    def keep(figure: Any) -> bytes:
        figures.append(figure)
        figure.canvas.draw()
        return b""

    monkeypatch.setattr(quantization_plots, "figure_png", keep)
    monkeypatch.setattr(sensitivity_plots, "figure_png", keep)
    return figures


def test_the_ladder_shows_accuracy_and_time_of_every_rung(drawn: list[Any]) -> None:
    """Dots lie at the rungs' accuracies and times, coloured by verdict, and names stand beside them from above."""
    made = report()
    quantization_plots.plot_ladder(made)
    accuracy, time = drawn[0].axes
    dots = [[(line.get_xdata()[0], line.get_ydata()[0], line.get_color()) for line in one.lines if line.get_marker() == "o"] for one in (accuracy, time)]  # fmt: skip
    assert dots[0] == [(pytest.approx(80), 0, "tab:red"), (pytest.approx(99.5), 1, "tab:green")]
    assert [dot[:2] for dot in dots[1]] == [(0.5, 0), (0.625, 1)]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["min-max", "net.first in float *", "QAT"]
    assert accuracy.get_ylim()[0] > accuracy.get_ylim()[1]
    assert "not made" in [text.get_text() for text in accuracy.texts]
    quantization_plots.plot_ladder(report(timed=False))
    assert len(drawn[1].axes) == 1


def test_the_front_shows_every_placement_with_size_as_area(drawn: list[Any]) -> None:
    """Markers lie at time and SQNR, the larger the file, the line joins the front, the star is the chosen one."""
    made = report()
    assert made.search is not None
    quantization_plots.plot_placements(made)
    (axes,) = drawn[0].axes
    (markers,) = axes.collections
    assert markers.get_offsets().tolist() == [[0.5, 30], [0.45, 33], [0.7, 36], [0.9, 29]]
    areas = markers.get_sizes().tolist()
    assert sorted(range(4), key=areas.__getitem__) == [0, 1, 3, 2]  # as the files' sizes
    by_marker = {line.get_marker(): line for line in axes.lines}
    assert (by_marker["*"].get_xdata()[0], by_marker["*"].get_ydata()[0]) == (0.45, 33)
    assert (by_marker["D"].get_xdata()[0], by_marker["D"].get_ydata()[0]) == (0.5, 30)
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [0.45, 0.7],
        [33, 36],
    )  # nothing in float is beaten
    quantization_plots.plot_placements(report(timed=False))
    assert drawn[1].axes[0].get_xlabel().startswith("file, kB")


def test_bars_show_both_errors_of_every_layer(drawn: list[Any]) -> None:
    """Bars reach from the SQNR of the whole to that of each node, coloured as the advice has it; no error is said."""
    made = found()
    layers = (*made.layers[:2], msgspec.structs.replace(made.layers[2], alone_db=float("inf")))
    sensitivity_plots.plot_errors(msgspec.structs.replace(made, layers=layers))
    alone, left_out = drawn[0].axes
    ends = [[round(bar.get_x() + bar.get_width(), 6) for bar in one.patches] for one in (alone, left_out)]
    assert ends == [[12, 14, 14], [25, 10.5, 10, 10]]
    assert [text.get_text() for text in alone.texts] == ["12.0", "14.0", "no error"]
    colours = [bar.get_facecolor() for bar in left_out.patches]
    assert len(set(colours)) == 3
    assert colours[2] == colours[3]
    assert [label.get_text() for label in alone.get_yticklabels()] == ["net.first", "layer 1", "layer 2", "pool"]


def test_histograms_mark_what_is_clipped(drawn: list[Any]) -> None:
    """Each node's output has its counts between its ends and lines at its quantizer's; its weights have no lines."""
    sensitivity_plots.plot_values(found().layers)
    shown = [axes for axes in drawn[0].axes if axes.patches]
    assert len(shown) == 6
    output, weights = shown[:2]
    counts, edges, _ = output.patches[0].get_data()
    expected = np.array(found().layers[0].output.counts)
    assert np.round(10 ** counts[expected > 0]).tolist() == expected[expected > 0].tolist()
    assert (counts[expected == 0] < 0).all()
    assert (edges[0], edges[-1]) == (-1, 3)
    assert [line.get_xdata()[0] for line in output.lines] == [-1, 2]
    assert not weights.lines


def test_large_nets_get_several_pictures() -> None:
    """More than twenty nodes make several pictures of histograms, each node in one of them."""
    page = sensitivity_page(found(layers=21), "net")
    described = re.findall(r"Histograms of outputs and weights, nodes (\d+) to (\d+)", page)
    assert described == [("1", "20"), ("21", "22")]


# The text of sensitivity.


def test_sensitivity_is_told_node_by_node_with_its_advice() -> None:
    """Errors and values of each node stand in its rows, and the advice says what to keep in float and what is only hurt."""
    text = sensitivity_text(found())
    lines = text.splitlines()
    rows = [line.split() for line in lines if line.startswith("net.first ")]
    assert rows[0] == ["net.first", "Conv", "12.0", "25.0", "+15.0", "12.50%"]
    assert rows[1] == ["net.first", "-1", "to", "3", "40", "-1", "to", "3", "40", "-1", "to", "3", "3.40%", "40"]
    assert line_of(text, "pool  ").split() == ["pool", "AveragePool", "10.0", "+0.0"]
    assert "net.first (Conv): leaving it in float gains 15.0 dB on 10.0, 97% of the error; channel 1 of net.first is loud" in lines  # fmt: skip
    assert "layer 1 (Conv): alone it makes 40% of the error, but leaving it in float gives +0.5 dB; nothing stands out" in lines  # fmt: skip
    nothing = sensitivity_text(msgspec.structs.replace(found(), keep=(), hurt=()))
    assert nothing.splitlines()[-1].startswith("Nothing is worth keeping in float")


@pytest.mark.usefixtures("bare")
def test_the_page_of_sensitivity_has_the_ranges_that_clip() -> None:
    """The page's table has what the quantizer covers beside what was seen, and states the rule."""
    reader = Reader(sensitivity_page(found(), "net.onnx"))
    row = [cell.strip() for cell in next(row for row in reader.rows if row[0] == "net.first" and "Conv" not in row)]
    assert row == ["net.first", "-1 to 3", "40", "-1 to 3", "-1 to 3", "40", "-1 to 3", "-1 to 2", "3.40%", "40"]
    assert "What int8 costs in net.onnx" in reader.text
    assert "falls by a fifth" in reader.text
