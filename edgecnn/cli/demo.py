"""`edgecnn demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from edgecnn.cli.options import say
from edgecnn.errors import EdgecnnError


class DemoError(EdgecnnError):
    """One of the demo's commands did not succeed; it has said why itself."""


@click.command("demo")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for everything it makes.",
)
def command(out: Path) -> None:
    """Do the main job on the built-in handwritten digits: train, export, predict, parity, bench, and one table.

    \b
    Example:
      edgecnn demo -o /tmp/demo
    """  # fmt: skip
    run, bundle = out / "runs/digits", out / "bundles/digits"
    training = _edgecnn("train", "digits", "-o", str(run), "--size", "n", "--json")
    manifest = _edgecnn("export", str(run), "-o", str(bundle), "--json")
    images = bundle / "goldens"
    _edgecnn("predict", str(bundle), str(images), "--top", "1", show=5)
    parity = _edgecnn("parity", str(bundle), "--json")
    bench = _edgecnn("bench", str(bundle), "--json")
    click.echo("\n" + closing_table(out, training, manifest, parity, bench))


def closing_table(out: Path, training: Any, manifest: Any, parity: Any, bench: Any) -> str:
    """Put what the five commands measured into one table."""
    from edgecnn.report.text import size, table, thousands

    accuracy = training["test_accuracy"]
    rows = [
        [
            "test accuracy",
            f"{accuracy['value']:.2%}, 95 % interval {accuracy['low']:.2%} to {accuracy['high']:.2%}, {accuracy['n']} images",
        ],
        ["parameters", thousands(training["parameters"])],
        ["MACs", thousands(training["macs"])],
        ["training", f"{training['seconds']:.1f} s"],
    ]
    for name, record in manifest["artifacts"].items():
        default = ", the default" if name == manifest["default_artifact"] else ""
        rows.append([f"{name} file", size(manifest["files"][record["path"]]["size"]) + default])
    for cell in parity["cells"]:
        decisions = cell["decisions"]
        told = (
            f", decisions {decisions['verdict']} (drop below {decisions['drop_high'] * 100:.2f} points)"
            if decisions
            else ""
        )
        rows.append([f"parity {cell['artifact']}", f"computation {cell['computation']['verdict']}{told}"])
    for row in bench["rows"]:
        latency, ratio = row["latency"], row["ratio"]["median"]
        cold = row["cold_start"]
        rows.append(
            [
                f"latency {row['artifact']}",
                f"p50 {latency['p50_us']:.1f} us, p99 {latency['p99_us']:.1f} us ({ratio:.2f} of {bench['rows'][0]['artifact']})",
            ]
        )
        rows.append([f"cold start {row['artifact']}", f"{cold['total_ms']:.0f} ms, {cold['peak_mb']:.0f} MB"])
    trust = bench["trust"]
    rows += [
        ["measurement", "trusted" if trust["trusted"] else f"not trusted: {'; '.join(trust['reasons'])}"],
        ["checkpoint, plots", str(out / "runs/digits")],
        ["bundle", str(out / "bundles/digits")],
    ]
    return table(rows, ["digits", "measured"])


def _edgecnn(*arguments: str, show: int = 0) -> Any:
    """Run one command as a user would, and return the JSON it prints or show its first lines."""
    say(f"\n$ edgecnn {' '.join(arguments)}")
    done = subprocess.run([sys.executable, "-m", "edgecnn", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        error = DemoError(f"`edgecnn {arguments[0]}` ended with {done.returncode}; its message is above")
        error.exit_code = done.returncode if done.returncode > 0 else 1
        raise error
    if show:
        click.echo("\n".join(done.stdout.splitlines()[:show]), err=True)
        return None
    return json.loads(done.stdout)
