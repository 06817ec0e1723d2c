"""Soaks and camera rates as text, and soaks as one page with the rate over time."""

from __future__ import annotations

import math

from edgecnn.bench.energy import Energy
from edgecnn.bench.over_time import Conditions, PacedReport, SoakReport
from edgecnn.bench.paced import Paced
from edgecnn.bench.soak import Soak, Throttling
from edgecnn.report.html import Html, page, paragraph, section
from edgecnn.report.svg import Line, plot_lines
from edgecnn.report.text import table, thousands

_TREND = {
    "steady": "the rate held",
    "slower": "it became SLOWER",
    "faster": "it became faster",
    "unclear": "a trend is neither shown nor ruled out",
}


def soak_text(report: SoakReport) -> str:
    """Write for each soak its rate, drift, throttling and energy, and the conditions."""
    lines = [line for one in report.soaks for line in _soak_lines(one)]
    return "\n".join([*lines, *_conditions(report.conditions)])


def paced_text(report: PacedReport) -> str:
    """Write a table of latencies at the rate and flat out, the frames that were missed, and the conditions."""
    header = ["candidate", "p50 us", "p90", "p99", "max", "flat out p50", "ratio", "wake-up p99", "frames", "late", "dropped"]  # fmt: skip
    lines = [f"at {report.paced[0].hz:g} Hz", table([_paced_row(one) for one in report.paced], header)]
    lines += [f"{one.backend}: energy {_energy(one.energy)}" for one in report.paced]
    return "\n".join([*lines, *_conditions(report.conditions)])


def soak_page(report: SoakReport) -> str:
    """Write soaks as one HTML page, with plots."""
    conditions = [paragraph(line) for line in _conditions(report.conditions)]
    soaks = [
        section(one.backend, *(paragraph(line) for line in _soak_lines(one)), *_plots(one)) for one in report.soaks
    ]
    return page(f"{report.conditions.bundle}: soak", *soaks, *conditions)


def _soak_lines(one: Soak) -> list[str]:
    drift = one.drift
    rates = [window.images_per_second for window in one.windows]
    middle = sorted(rates)[len(rates) // 2]
    early = ["interrupted by Ctrl-C: of the time until then"] if one.interrupted else []
    return [
        *early,
        f"{one.backend}: {thousands(one.images)} images in {one.seconds:.1f} s, {thousands(round(middle))} a second in the median of "
        f"{len(rates)} windows; slowest window {one.slowest:.0%} of it",
        f"drift: {_TREND[drift.trend]}: {drift.change:+.1%} from first to last window ({drift.low:+.1%} to {drift.high:+.1%})",
        f"other work: took processor time from {one.disturbed} of {len(rates)} windows",
        f"throttling: {_throttling(one.throttling)}",
        f"energy: {_energy(one.energy)}",
    ]


def _throttling(found: Throttling) -> str:
    told = ["; ".join(found.signs) or "no sign of it"]
    if found.celsius_before is not None and found.celsius_highest is not None:
        told.append(f"{found.hottest} {found.celsius_before:.0f} °C before, {found.celsius_highest:.0f} at most")
    if found.mhz_lowest is not None and found.mhz_highest is not None:
        told.append(f"clock {found.mhz_lowest:.0f} to {found.mhz_highest:.0f} MHz")
    if found.not_readable:
        told.append(f"not readable: {', '.join(found.not_readable)}")
    return "; ".join(told)


def _energy(found: Energy) -> str:
    if found.joules is None or found.watts is None:
        return f"not readable: {found.reason}"
    each = f", {found.joules_per_image * 1e3:.3g} mJ an image" if found.joules_per_image is not None else ""
    return f"{found.joules:.1f} J, {found.watts:.1f} W{each} ({', '.join(found.domains)}, whoever used it)"


def _plots(one: Soak) -> list[Html]:
    seconds = [window.start for window in one.windows]
    rates = [window.images_per_second for window in one.windows]
    middle, span = sorted(rates)[len(rates) // 2], seconds[-1] - seconds[0]
    ends = [middle * (1 - one.drift.change / 2), middle * (1 + one.drift.change / 2)]
    plots = [
        plot_lines(
            "Rate over time",
            "seconds",
            "images a second",
            [Line("rate", seconds, rates), Line("trend", [seconds[0], seconds[0] + span], ends, dashed=True)],
        ),
        plot_lines(
            "Latency over time",
            "seconds",
            "microseconds",
            [
                Line("p50", seconds, [window.p50_us for window in one.windows]),
                Line("p99", seconds, [window.p99_us for window in one.windows]),
            ],
        ),
    ]
    for title, unit, values in (
        ("Temperature", "°C", [window.celsius for window in one.windows]),
        ("Clock rate", "MHz", [window.mhz for window in one.windows]),
    ):
        known = [math.nan if value is None else value for value in values]
        if any(map(math.isfinite, known)):
            plots.append(plot_lines(title, "seconds", unit, [Line(title.lower(), seconds, known)], from_zero=False))
    return plots


def _paced_row(one: Paced) -> list[str]:
    times = (one.p50_us, one.p90_us, one.p99_us, one.max_us, one.flat_p50_us)
    return [
        one.backend,
        *(f"{value:.1f}" for value in times),
        f"{one.ratio:.2f}",
        f"{one.wake_p99_us:.0f}",
        *(thousands(count) for count in (one.frames, one.late, one.dropped)),
    ]


def _conditions(found: Conditions) -> list[str]:
    machine = found.host
    return [
        f"batch {found.batch}, {found.threads} thread(s); {machine.cpu}, {machine.cores} cores, {machine.usable_threads} usable; "
        f"governor {machine.governor or 'unknown'}; {found.busy_cores_before:.2f} cores busy before; load "
        f"{found.load_before.load_average:.2f}, then {found.load_after.load_average:.2f}"
    ]
