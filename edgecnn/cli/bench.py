"""`edgecnn bench`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import FiniteRange, candidates_option, existing, json_option, print_json, refuse_inside, say
from edgecnn.spec import BackendRef

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class DurationParam(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """`90`, `60s`, `10m` or `1h`, in seconds inside."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number and its unit."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", str(value).strip())
        if found is None or not float(found.group(1)):
            self.fail(f"{value!r} is no duration; write for example 60s, 10m or 1h", param, ctx)
        return float(found.group(1)) * _UNITS[found.group(2) or ""]


@click.command("bench")
@click.argument("bundle", type=existing)
@candidates_option(
    "What is measured; the first is what the others are compared with.  [default: onnxruntime with every ONNX artifact; with "
    "--soak and --paced the bundle's default alone]"
)
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Images a run.")
@click.option(
    "--threads",
    type=click.IntRange(0, 4096),
    default=1,
    show_default=True,
    help="Threads of the backend; 0 is all that this process may use.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    help="Of timed calls for each candidate.  [default: 2, with --paced 10]",
)
@click.option(
    "--cold-runs",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Fresh processes for cold start and memory; 0 skips them.",
)
@click.option(
    "--soak",
    type=DurationParam(),
    help="Run each candidate flat out for so long, for example 10m: drift, throttling, energy.",
)
@click.option(
    "--paced",
    type=FiniteRange(0, 10_000, min_open=True),
    metavar="HZ",
    help="Run at a camera's rate, asleep between frames, against flat out.",
)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a soak as one page with plots.")
@json_option
def command(
    bundle: Path,
    candidates: tuple[BackendRef, ...],
    soak: float | None,
    paced: float | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure latency, throughput, cold start and memory of BUNDLE's artifacts, fp32 against int8.

    Candidates take turns in short rounds; the warm-up and the first run are apart, the tail is not trimmed, and the
    report says whether the machine was steady enough to trust it. With --soak each candidate runs without a pause, and
    the report says whether its rate held (Ctrl-C tells of the time until then); with --paced it waits for frames, and the report counts those it missed.

    \b
    Examples:
      edgecnn bench bundles/photos --batch 8 --threads 0
      edgecnn bench bundles/photos --soak 10m --html soak.html
      edgecnn bench bundles/photos --paced 30
    """  # fmt: skip
    _check(soak, paced, asked)
    refuse_inside(bundle, asked["html"], "--html")
    from edgecnn.bundle import Bundle
    from edgecnn.files import write_atomic
    from edgecnn.predict import DEFAULT_BACKEND

    opened = Bundle.open(bundle)
    refs, page = list(candidates), None
    if soak is not None or paced is not None:
        report, said, page = _over_time(opened, refs or [BackendRef(backend=DEFAULT_BACKEND)], soak, paced, asked)
    else:
        report, said = _bench(opened, refs, asked)
    if as_json:
        print_json(report)
    else:
        click.echo(said)
    if page is not None:  # after an hour's figures are told, whether or not there is room for it
        write_atomic(asked["html"], page.encode())
    if any(one.interrupted for one in getattr(report, "soaks", ())):
        click.get_current_context().exit(130)


def _check(soak: float | None, paced: float | None, asked: dict[str, Any]) -> None:
    if soak is not None and paced is not None:
        raise click.UsageError("--soak runs flat out and --paced waits for frames; give one")
    if soak is not None and asked["seconds"] is not None:
        raise click.UsageError("--seconds would do nothing: --soak says how long")
    cold = click.get_current_context().get_parameter_source("cold_runs")
    if (soak is not None or paced is not None) and cold is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--cold-runs would do nothing: --soak and --paced measure a process that runs")
    if soak is None and asked["html"] is not None:
        raise click.UsageError("--html is for --soak, whose rate over time it shows")


def _bench(bundle: Any, refs: list[BackendRef], asked: dict[str, Any]) -> tuple[Any, str]:
    from edgecnn.bench.run import bench
    from edgecnn.parity import default_refs
    from edgecnn.report.bench import bench_text

    seconds = 2.0 if asked["seconds"] is None else asked["seconds"]
    report = bench(
        bundle, refs or default_refs(bundle)[1], asked["batch"], asked["threads"], seconds, asked["cold_runs"]
    )
    return report, bench_text(report)


def _over_time(
    bundle: Any, refs: list[BackendRef], soak: float | None, paced: float | None, asked: dict[str, Any]
) -> tuple[Any, str, str | None]:
    from edgecnn.bench.over_time import bench_paced, bench_soak
    from edgecnn.report.over_time import paced_text, soak_page, soak_text

    if soak is None:
        seconds = 10.0 if asked["seconds"] is None else asked["seconds"]
        frames = bench_paced(bundle, refs, paced or 0.0, seconds, asked["batch"], asked["threads"])
        return frames, paced_text(frames), None
    say(f"edgecnn: {len(refs)} candidate(s), {soak:g} s each")
    report = bench_soak(bundle, refs, soak, asked["batch"], asked["threads"])
    return report, soak_text(report), soak_page(report) if asked["html"] is not None else None
