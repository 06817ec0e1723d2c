"""Page and JUnit file of a replay: both machines where two recordings are compared, and one where there is one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from commands import invoke
from recordings import HOST, recording

from edgecnn.host import Host
from edgecnn.parity.evidence import write_evidence

BOX = Host(
    system="Linux 5.15",
    machine="aarch64",
    cpu="Box <CPU> & co",
    features=("neon", "asimddp"),
    cores=6,
    usable_threads=5,
    governor="performance",
    cgroup_cpus=None,
    python="3.12.7",
    packages={"numpy": "2.0.0", "onnxruntime": "1.31.0", "pillow": "12.0.0"},
)


def kept(folder: Path, name: str, host: Host = HOST) -> Path:
    """Write what a machine answered."""
    made = recording(n=400)
    write_evidence(folder / name, replace(made, head=msgspec.structs.replace(made.head, host=host)))
    return folder / name


def written(folder: Path, *recordings: Path) -> tuple[str, dict[str, str]]:
    """Replay recordings by the command; give its page, and its JUnit file's properties."""
    page, junit = folder / "page.html", folder / "tests.xml"
    result = invoke("parity", "--replay", *recordings, "--html", page, "--junit", junit)
    assert result.exit_code in (0, 3), result.stderr
    listed = [(one.attrib["name"], one.attrib["value"]) for one in ElementTree.parse(junit).iter("property")]
    assert len(dict(listed)) == len(listed)
    return page.read_text(), dict(listed)


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Read the rows of the table below a heading, by their first cell."""
    body = re.split(rf"<h2>{heading}</h2>", page)[1].partition("</table>")[0]
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
    return {row[0]: row[1:] for row in rows}


def test_the_page_has_both_machines_side_by_side(tmp_path: Path) -> None:
    """The first recording's facts, the second's, and a mark where they differ, each in its column; markup is escaped."""
    page, _ = written(tmp_path, kept(tmp_path, "first"), kept(tmp_path, "second", BOX))
    assert "<h2>Machine</h2>" not in page
    assert table(page, "Machines") == {
        "": ["first recording", "second recording", ""],
        "system": ["Linux 6.1, x86_64", "Linux 5.15, aarch64", "≠"],
        "CPU": ["Made-up CPU", "Box &lt;CPU&gt; &amp; co", "≠"],
        "CPU features": ["avx2", "neon, asimddp", "≠"],
        "threads": ["4 usable, 4 cores", "5 usable, 6 cores", "≠"],
        "Python": ["3.11.2", "3.12.7", "≠"],
        "numpy": ["2.0.0", "2.0.0", ""],
        "onnxruntime": ["1.30.0", "1.31.0", "≠"],
        "pillow": ["–", "12.0.0", "≠"],
    }


def test_the_junit_file_has_both_machines_apart(tmp_path: Path) -> None:
    """The second machine is the file's host, the first has properties of the same names after `reference_`."""
    _, found = written(tmp_path, kept(tmp_path, "first"), kept(tmp_path, "second", BOX))
    facts = {name: value for name, value in found.items() if re.match(r"(reference_)?(host|package)\.", name)}
    assert facts == {
        "host.system": "Linux 5.15",
        "host.machine": "aarch64",
        "host.cpu": "Box <CPU> & co",
        "host.python": "3.12.7",
        "host.features": "neon asimddp",
        "host.usable_threads": "5",
        "package.numpy": "2.0.0",
        "package.onnxruntime": "1.31.0",
        "package.pillow": "12.0.0",
        "reference_host.system": "Linux 6.1",
        "reference_host.machine": "x86_64",
        "reference_host.cpu": "Made-up CPU",
        "reference_host.python": "3.11.2",
        "reference_host.features": "avx2",
        "reference_host.usable_threads": "4",
        "reference_package.numpy": "2.0.0",
        "reference_package.onnxruntime": "1.30.0",
    }


@pytest.mark.parametrize(("host", "cpu"), [(HOST, "Made-up CPU"), (BOX, "Box <CPU> & co")])
def test_one_recording_has_one_machine(host: Host, cpu: str, tmp_path: Path) -> None:
    """A single recording that is judged again has the machine that made it, and speaks of no other."""
    page, found = written(tmp_path, kept(tmp_path, "only", host))
    assert "<h2>Machines</h2>" not in page
    assert "recording</th>" not in page
    shown = table(page, "Machine")
    assert (shown["Python"], shown["onnxruntime"]) == ([host.python], [host.packages["onnxruntime"]])
    assert all(len(row) == 1 for row in shown.values())
    assert found["host.cpu"] == cpu
    assert not [name for name in found if name.startswith("reference_")]


def test_the_same_machine_twice_has_no_mark(tmp_path: Path) -> None:
    """Two recordings of one machine are still two columns, in which nothing differs."""
    page, found = written(tmp_path, kept(tmp_path, "first"), kept(tmp_path, "second"))
    rows = list(table(page, "Machines").values())[1:]
    assert all(first == second and mark == "" for first, second, mark in rows)
    assert found["reference_host.cpu"] == found["host.cpu"] == "Made-up CPU"
