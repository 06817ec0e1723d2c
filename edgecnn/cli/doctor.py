"""`edgecnn doctor`."""

from __future__ import annotations

import click

from edgecnn.cli.options import json_option, print_json


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show this machine: CPU features, usable threads, backends, providers, what is missing and how to get it.

    \b
    Example:
      edgecnn doctor --json
    """
    from edgecnn.device.probe import diagnose
    from edgecnn.report.text import table

    found = diagnose()
    if as_json:
        print_json(found)
        return
    machine = found.host
    rows = [
        ["CPU", machine.cpu],
        ["features", " ".join(machine.features) or "none that int8 depends on"],
        ["target", found.target],
        [
            "threads",
            f"{machine.usable_threads} usable of {machine.cores} cores (cgroup: {machine.cgroup_cpus or 'no limit'})",
        ],
        ["governor", machine.governor or "unknown"],
        ["load", f"{found.load.load_average:.2f}"],
        ["memory", f"{found.load.memory_available_mb:,} MB available"],
        ["disk", f"{found.disk_free_mb:,} MB free here"],
        ["python", f"{machine.python} ({found.executable})"],
        ["packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())],
        ["providers", ", ".join(found.providers) or "none: ONNX Runtime is not usable"],
    ]
    click.echo(table(rows))
    click.echo()
    states = [
        [backend.name, " ".join(backend.usable) or "not usable", backend.distribution] for backend in found.backends
    ]
    click.echo(table(states, ["backend", "use it as", "from"]))
    click.echo()
    exporters = [
        [one.name, "ready" if one.problem is None else "not usable", one.distribution] for one in found.exporters
    ]
    click.echo(table(exporters, ["exporter", "state", "from"]))
    problems = [*found.advice, *(f"{one.name}: {one.problem}" for one in found.exporters if one.problem)]
    for line in problems:
        click.echo(f"- {line}")
