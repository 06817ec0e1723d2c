"""Soaks and pacing from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgecnn.bench import over_time
from edgecnn.bench.over_time import SoakReport
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.cli.bench import DurationParam
from edgecnn.report.over_time import soak_page, soak_text
from edgecnn.spec import to_json


@pytest.mark.parametrize(
    ("written", "seconds"), [("60s", 60), ("90", 90), ("10m", 600), ("1.5 h", 5400), ("2min", 120)]
)
def test_durations_are_read(written: str, seconds: float) -> None:
    """Seconds, minutes and hours."""
    assert DurationParam().convert(written, None, None) == seconds


@pytest.mark.parametrize(
    "arguments",
    [
        ["--soak", "0s"], ["--soak", "soon"], ["--soak", "10s", "--paced", "30"], ["--soak", "10s", "--seconds", "1"],
        ["--soak", "10s", "--cold-runs", "1"], ["--html", "x.html"], ["--paced", "0"], ["--paced", "1", "--seconds", "1"],
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(arguments: list[str], bundle_folder: Path) -> None:
    """Options that contradict or do nothing are refused with exit code 2 and a single line."""
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), *arguments])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_soak_from_the_command_line(bundle_folder: Path, tmp_path: Path) -> None:
    """A soak of a second prints JSON that reads back as the report, whose page holds its plots and fetches nothing."""
    file = tmp_path / "soak.html"
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--soak", "1s", "--html", str(file), "--json"])
    assert done.exit_code == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=SoakReport)
    assert to_json(report).decode().strip() == done.stdout.strip()
    (one,) = report.soaks
    assert one.backend == f"onnxruntime:{Bundle.open(bundle_folder).manifest.default_artifact}"
    assert len(one.windows) == 10
    text = soak_text(report)
    assert ("drift: " in text, "throttling: " in text, "energy: " in text) == (True, True, True)
    page = file.read_text()
    assert page == soak_page(report)
    assert page.count("<svg") >= 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_pacing_from_the_command_line(bundle_folder: Path) -> None:
    """At 100 Hz for a second the report accounts for all 100 frames."""
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--paced", "100", "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.stderr
    (one,) = msgspec.json.decode(done.stdout, type=over_time.PacedReport).paced
    assert one.frames == 100
    assert json.loads(done.stdout)["conditions"]["threads"] == 1
    done = CliRunner().invoke(cli, ["bench", str(bundle_folder), "--paced", "100", "--seconds", "0.1"])
    assert "at 100 Hz" in done.stdout
