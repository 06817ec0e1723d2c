"""The page of a parity check: the matrix of verdicts, and behind each the figures, the changed answers and the place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from edgecnn.host import Host
from edgecnn.images import Pixels
from edgecnn.parity.decisions import Decisions
from edgecnn.parity.judge import Cell, ParityReport
from edgecnn.parity.verdict import Verdict
from edgecnn.report.html import Html, note, page, paragraph, picture, section, table, text
from edgecnn.report.parity_flips import breakable, flips
from edgecnn.report.text import percent, thousands

_QUESTIONS = ("computation", "decisions", "agreement", "repeat", "batch", "threads")
_MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?", Verdict.NOT_MEASURED: "–"}
# Okabe and Ito's colours (2008), which those who are colour-blind tell apart; the word stands beside them all the same.
_COLOURS = {
    Verdict.PASS: "#009e73", Verdict.FAIL: "#d55e00", Verdict.INCONCLUSIVE: "#e69f00", Verdict.NOT_MEASURED: "#888888",
}  # fmt: skip

_STYLE = Html(
    "<style>th, td { overflow-wrap: normal; } p { overflow-wrap: anywhere; }\n"
    ".v { display: block; border-left: .4rem solid; padding: .1rem .4rem; text-decoration: none; color: inherit; white-space: nowrap; }\n"
    ".v small { display: block; white-space: normal; line-height: 1.25; } a.v:hover { text-decoration: underline; }\n"
    ".matrix td { padding: .4rem .4rem .2rem 0; border: 0; max-width: 12rem; } .matrix td:first-child { min-width: 7rem; overflow-wrap: anywhere; }\n"
    + "\n".join(
        f".v.{verdict.name} {{ border-color: {colour}; background: {colour}2e; }}"
        for verdict, colour in _COLOURS.items()
    )
    + """
.flips { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.flips figure { margin: 0; display: flex; gap: .7rem; border-bottom: 1px solid var(--line); padding-bottom: .7rem; }
.flips figcaption { font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; min-width: 0; }
.flips .none { width: 96px; height: 96px; border: 1px dashed var(--line); flex: none; font-size: .8rem; padding: .3rem; box-sizing: border-box; }
.flips img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; flex: none; }
section { scroll-margin-top: 1rem; } :target { outline: 2px solid; outline-offset: .3rem; }
</style>"""
)

_MEANING = {
    "computation": "does it compute the same numbers? Against the model in float64, in units of the error that float32 makes anyhow; "
    "a quantized file against the answers it gave where it was exported.",
    "decisions": "does it still name as many images rightly? Paired with the reference on labelled images, with a bound on the loss.",
    "agreement": "on how many samples it names the same class as the reference, right or wrong. It decides nothing by itself.",
    "repeat": "the same samples once more: are the answers the same?",
    "batch": "one sample at a time instead of many at once: are they the same?",
    "threads": "another number of threads: are they the same?",
}


def parity_page(
    report: ParityReport, pictures: Mapping[int, Pixels] | None = None, localization_png: bytes | None = None
) -> str:
    """Write the page; without matplotlib it has no plot, without pictures no thumbnails.

    Args:
        report: what was judged.
        pictures: the samples of changed answers by their index, uint8 (H, W, 1 or 3).
        localization_png: a picture of where a candidate first differs.
    """
    cells = [_of_candidate(number, cell, pictures or {}, report.reference) for number, cell in enumerate(report.cells)]
    return page(
        f"Parity of {report.bundle}",
        _STYLE,
        *_warnings(report),
        section("Verdicts", _verdict_line(report), _matrix(report), _legend(report)),
        *_plotted(report),
        *cells,
        *_located(localization_png),
        *_decoded(report),
        section("What is let pass", table(_tolerances(report), ["tolerance", "value", "meaning"])),
        _machines(report),
    )


def _warnings(report: ParityReport) -> Iterator[Html]:
    if report.random:
        yield note(
            "The samples are made up, not real data: the same computation shows on them, the same decisions do not."
        )
    if find_spec("matplotlib") is None:
        yield note("The plot needs matplotlib, which is not installed: pip install 'edgecnn[train]'")


def _verdict_line(report: ParityReport) -> Html:
    said = {
        Verdict.PASS: "everything that was measured is within what is let pass",
        Verdict.FAIL: "at least one answer is outside of what is let pass; the cells marked ✗ say which",
        Verdict.INCONCLUSIVE: "there is too little evidence for yes or no; the cells marked ? say how much is needed",
        Verdict.NOT_MEASURED: "of at least one candidate nothing could be measured, which is no PASS",
    }[report.verdict]
    fed = report.samples or report.data or "the goldens"
    line = f"<b>{_MARKS[report.verdict]} {report.verdict.value}</b>: {text(said)}. "
    rest = f"Compared with {report.reference}; fed: {fed}."
    return Html(f'<p class="v {report.verdict.name}" style="white-space: normal">{line}{text(rest)}</p>')


def _matrix(report: ParityReport) -> Html:
    """Write candidates by questions; questions that nobody was asked are left out."""
    asked = [question for question in _QUESTIONS if any(_answer(cell, question) for cell in report.cells)]
    rows = []
    for number, cell in enumerate(report.cells):
        row: list[object] = [Html(f'<a href="#c{number}">{breakable(cell.candidate)}</a>')]
        row += [_answer_cell(number, cell, question) for question in asked]
        rows.append(row)
    return Html(f'<div class="matrix">{table(rows, ["candidate", *asked])}</div>')


def _answer(cell: Cell, question: str) -> tuple[Verdict | None, str] | None:
    """Give verdict and figure of one question to one candidate; None where it was not asked."""
    if question == "computation":
        return cell.computation.verdict, _figure(cell)
    if question == "decisions":
        found = cell.decisions
        if found is None:
            return Verdict.NOT_MEASURED, "no labels" if cell.agreement else "no answers"
        return found.verdict, f"drop {found.drop * 100:+.2f}, below {found.drop_high * 100:.2f} points"
    if question == "agreement":
        same = cell.agreement
        return None if same is None else (None, f"{thousands(same.changed)} of {thousands(same.n)} changed")
    one = next((one for one in cell.steadiness if one.what == question), None)
    if one is None:
        return None
    figure = "equal to the bit" if one.bit_equal else "" if one.max_abs is None else f"off by up to {one.max_abs:.2g}"
    return one.verdict, figure


def _figure(cell: Cell) -> str:
    found = cell.computation
    if found.multiple is not None:
        return f"{_short(found.multiple)} × noise"
    if found.share is not None:
        return f"{_short(found.share)} × quantization error"
    if found.distance is None:
        return "no answers" if found.verdict is Verdict.FAIL else "nothing to judge by"
    return "" if found.distance.sqnr_db is None else f"{found.distance.sqnr_db:.1f} dB from float64"


def _short(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


def _answer_cell(number: int, cell: Cell, question: str) -> Html:
    answer = _answer(cell, question)
    if answer is None:
        return Html("–")
    verdict, figure = answer
    if verdict is None:
        return Html(f'<a href="#c{number}-{question}">{text(figure)}</a>')
    return _badge(verdict, figure, f"#c{number}-{question}")


def _badge(verdict: Verdict, figure: str = "", link: str = "") -> Html:
    words = f"{_MARKS[verdict]} {verdict.value}" + (f"<small>{text(figure)}</small>" if figure else "")
    tag, where = ("a", f' href="{text(link)}"') if link else ("span", "")
    return Html(f'<{tag} class="v {verdict.name}"{where}>{words}</{tag}>')


def _legend(report: ParityReport) -> Html:
    asked = [question for question in _QUESTIONS if any(_answer(cell, question) for cell in report.cells)]
    rows = [[question, _MEANING[question]] for question in asked]
    verdicts = paragraph(
        "PASS needs evidence. INCONCLUSIVE is too little of it, NOT MEASURED is none, and neither counts as PASS. "
        "Noise is the error that float32 makes against float64 on the same samples."
    )
    return Html(f"<details open><summary>What the columns ask</summary>{table(rows)}{verdicts}</details>")


def _plotted(report: ParityReport) -> list[Html]:
    measured = [cell for cell in report.cells if _bar(cell, report) is not None]
    if not measured or find_spec("matplotlib") is None:
        return []
    caption = (
        "How far each candidate is off, as a share of what is let pass: right of the line is FAIL. In the bars: a float32 "
        "candidate's error in units of noise, a quantized one's in units of its quantization error."
    )
    return [section("Error of the candidates", picture(_plot(report), "Error of each candidate", caption))]


def _bar(cell: Cell, report: ParityReport) -> tuple[float, str] | None:
    """Give a candidate's error over what is allowed, and in its own unit."""
    found, tolerance = cell.computation, report.tolerance
    if found.multiple is not None:
        return (
            found.multiple / tolerance.noise_multiple,
            f"{_short(found.multiple)} × noise, {tolerance.noise_multiple:g} allowed",
        )
    if found.share is None:
        return None
    here = cell.where is not None and cell.where.recorded_here
    allowed = tolerance.recorded_share_here if here else tolerance.recorded_share
    return found.share / allowed, f"{_short(found.share)} × quantization error, {allowed:g} allowed"


def _plot(report: ParityReport) -> bytes:
    """Draw a bar a candidate on a logarithmic axis, the worst case that is let pass as a line."""
    from matplotlib.figure import Figure

    from edgecnn.report.figures import drawable, figure_png

    bars = [(cell, bar) for cell in report.cells if (bar := _bar(cell, report)) is not None]
    figure = Figure(figsize=(9.5, 1.3 + 0.42 * len(bars)), layout="constrained")
    axes: Any = figure.subplots()
    shares = [share for _, (share, _) in bars]
    finite = [share for share in shares if 0 < share < float("inf")]
    low, high = min([0.01, *finite]) / 2, max([1.0, *finite]) * 30
    for place, (cell, (share, words)) in enumerate(bars):
        end = min(max(share, low), high)
        axes.barh(place, end - low, left=low, height=0.6, color=_COLOURS[cell.computation.verdict])
        box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.annotate(words, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, bbox=box)
    axes.axvline(1, color="black", linestyle="--", linewidth=1, label="let pass up to here")
    axes.set_yticks(range(len(bars)), [drawable(cell.candidate) for cell, _ in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set(xscale="log", xlim=(low, high), xlabel="error over what is let pass")
    figure.legend(loc="outside upper right", fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return figure_png(figure)


def _of_candidate(number: int, cell: Cell, pictures: Mapping[int, Pixels], reference: str) -> Html:
    rows = [
        _reason_row(number, "computation", cell.computation.verdict, cell.computation.reason),
        *([_reason_row(number, "decisions", cell.decisions.verdict, cell.decisions.reason)] if cell.decisions else []),
        *(_reason_row(number, one.what, one.verdict, one.reason) for one in cell.steadiness),
    ]
    if cell.decisions is None:
        without = (
            "no labelled images were given, so nothing is known of right and wrong"
            if cell.agreement
            else "nothing to judge"
        )
        rows.insert(1, _reason_row(number, "decisions", Verdict.NOT_MEASURED, without))
    return section(
        Html(f'<span id="c{number}">{breakable(cell.candidate)}</span>'),
        table(rows, ["question", "verdict", "why"]),
        table(_figures(cell, reference)),
        *flips(number, cell, pictures),
    )


def _reason_row(number: int, question: str, verdict: Verdict, reason: str) -> list[object]:
    return [Html(f'<span id="c{number}-{question}">{question}</span>'), _badge(verdict), reason]


def _figures(cell: Cell, reference: str) -> list[tuple[str, object]]:
    found, far = cell.computation, cell.computation.distance
    rows: list[tuple[str, object]] = [("judged by", found.truth), ("samples judged", thousands(found.n))]
    if far is not None:
        other = "the first recording" if found.truth == reference else "float64"
        rows += [
            (f"largest difference from {other}", f"{far.max_abs:.3g} ({far.max_rel:.2g} of the largest value)"),
            ("its root mean square", f"{far.rms:.3g}"),
            ("SQNR", "infinite" if far.sqnr_db is None else f"{far.sqnr_db:.1f} dB"),
            ("cosine", f"{far.cosine:.8f}"),
        ]
    if cell.decisions is not None:
        rows += _decision_figures(cell.decisions)
    if cell.where is not None:
        side = cell.where
        rows += [
            ("ran", f"{cell.artifact} ({side.precision}) by {side.runtime} on {side.device}, {_threads(side.threads)}"),
            ("SHA-256 of the file", side.sha256 or "–"),
        ]
    return rows


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _decision_figures(found: Decisions) -> list[tuple[str, object]]:
    needed = "–" if found.images_needed is None else f"about {thousands(found.images_needed)}"
    return [
        ("accuracy of the reference", percent(found.reference_accuracy)),
        ("accuracy of the candidate", percent(found.candidate_accuracy)),
        ("only the reference is right", f"{thousands(found.lost)} of {thousands(found.n)}"),
        ("only the candidate is right", f"{thousands(found.gained)} of {thousands(found.n)}"),
        ("drop in points", f"{found.drop * 100:+.2f}, bounded by {found.drop_low * 100:+.2f} and {found.drop_high * 100:+.2f}"),
        ("smallest drop that so many images show", f"{found.detectable_drop * 100:.2f} points"),
        ("images needed", needed),
    ]  # fmt: skip


def _located(png: bytes | None) -> list[Html]:
    if png is None:
        return []
    lead = paragraph(
        "The candidate cut into blocks: the first whose error is more than rounding explains is where to look."
    )
    return [section("Where it first differs", lead, picture(png, "Error of each block along the network's depth"))]


def _decoded(report: ParityReport) -> list[Html]:
    found = report.decoding
    if found is None:
        return []
    row: Sequence[object] = [_badge(found.verdict), f"{found.n} golden images", found.reason]
    return [section("Decoding", table([row]))]


def _tolerances(report: ParityReport) -> list[list[str]]:
    tolerance = report.tolerance
    return [
        ["noise multiple", f"{tolerance.noise_multiple:g}", "a float32 candidate's error, in units of float32's own"],
        ["recorded share", f"{tolerance.recorded_share:g}", "a quantized one's difference from its recorded answers, as a share of its quantization error"],
        ["recorded share here", f"{tolerance.recorded_share_here:g}", "the same, where CPU and runtime are those that recorded them"],
        ["largest drop", f"{tolerance.max_drop * 100:g}", "in points of accuracy; a larger one has to be excluded"],
        ["confidence", f"{tolerance.confidence * 100:g} %", "of the bound on the drop"],
    ]  # fmt: skip


def _machines(report: ParityReport) -> Html:
    """Write the machine, or both where two recordings are compared, with a mark where they differ."""
    second = _host(report.host)
    if report.reference_host is None:
        return section("Machine", table(list(second.items())))
    first = _host(report.reference_host)
    rows = [
        [name, first.get(name, "–"), second.get(name, "–"), "" if first.get(name) == second.get(name) else "≠"]
        for name in dict.fromkeys((*first, *second))
    ]
    return section("Machines", table(rows, ["", "first recording", "second recording", ""]))


def _host(host: Host) -> dict[str, str]:
    return {
        "system": f"{host.system}, {host.machine}",
        "CPU": host.cpu,
        "CPU features": ", ".join(host.features) or "–",
        "threads": f"{host.usable_threads} usable, {host.cores} cores",
        "Python": host.python,
        **host.packages,
    }
