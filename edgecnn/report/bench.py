"""A bench report as text."""

from __future__ import annotations

from edgecnn.bench.latency import Latency, Ratio
from edgecnn.bench.run import BenchReport, Row
from edgecnn.report.text import size, table, thousands


def bench_text(report: BenchReport) -> str:
    """Write latency and cold start as tables, and under them the conditions and whether to trust them."""
    timed = [row for row in report.rows if row.latency is not None]
    latency = [
        table(
            [_latency(row, row.latency, row.ratio) for row in timed if row.latency and row.ratio],
            ["candidate", "p50 us", "p90", "p99", "max", "images/s", f"ratio to {timed[0].backend}", "calls", "first us"],
        )
    ] if timed else []  # fmt: skip
    latency += [f"{row.backend}: {row.reason}" for row in report.rows if row.reason]
    cold = [_cold(row) for row in report.rows if row.cold_start]
    machine, before, after = report.host, report.load_before, report.load_after
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    trust = "trusted" if report.trust.trusted else f"NOT TRUSTED: {'; '.join(report.trust.reasons)}"
    return "\n".join(
        [
            *latency,
            "",
            *(
                [table(cold, ["candidate", "file", "cold start ms", "of it imports", "load", "peak MB"]), ""]
                if cold
                else []
            ),
            f"batch {report.batch}, {report.threads} thread(s); {machine.cpu}, {machine.cores} cores, "
            f"{machine.usable_threads} usable; governor {machine.governor or 'unknown'}",
            f"{report.busy_cores_before:.2f} cores busy before; load {before.load_average:.2f}, then "
            f"{after.load_average:.2f}; {packages}",
            f"measurement: {trust}",
        ]
    )


def _latency(row: Row, latency: Latency, ratio: Ratio) -> list[str]:
    times = (latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us)
    return [
        row.backend,
        *(f"{value:.1f}" for value in times),
        thousands(round(latency.images_per_second)),
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
        thousands(latency.n),
        f"{latency.first_us:.0f}",
    ]


def _cold(row: Row) -> list[str]:
    cold = row.cold_start
    values = (cold.total_ms, cold.import_ms, cold.load_ms, cold.peak_mb) if cold else ()
    return [row.backend, size(row.size), *(f"{value:.0f}" for value in values)]
