"""`edgecnn bench`."""

from __future__ import annotations

from pathlib import Path

import click

from edgecnn.cli.options import candidates_option, existing, json_option, print_json
from edgecnn.spec import BackendRef


@click.command("bench")
@click.argument("bundle", type=existing)
@candidates_option(
    "What is measured; the first is what the others are compared with.  [default: onnxruntime with every ONNX artifact]"
)
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Images a run.")
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Threads of the backend; 0 is all that this process may use.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Of timed calls for each candidate.",
)
@click.option(
    "--cold-runs",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Fresh processes for cold start and memory; 0 skips them.",
)
@json_option
def command(
    bundle: Path,
    candidates: tuple[BackendRef, ...],
    batch: int,
    threads: int,
    seconds: float,
    cold_runs: int,
    as_json: bool,
) -> None:
    """Measure latency, throughput, cold start and memory of BUNDLE's artifacts, fp32 against int8.

    Candidates take turns in short rounds; the warm-up and the first run are apart, the tail is not trimmed, and the
    report says whether the machine was steady enough to trust it.

    \b
    Example:
      edgecnn bench bundles/photos --batch 8 --threads 0
    """  # fmt: skip
    from edgecnn.bench.run import bench
    from edgecnn.bundle import Bundle
    from edgecnn.parity import default_refs
    from edgecnn.report.bench import bench_text

    opened = Bundle.open(bundle)
    refs = candidates or default_refs(opened)[1]
    report = bench(opened, refs, batch, threads, seconds, cold_runs)
    if as_json:
        print_json(report)
    else:
        click.echo(bench_text(report))
