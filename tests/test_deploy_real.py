"""`edgecnn deploy` with the real edgecnn on the box: installed there from the wheel that is packed here, and run."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import Loopback, whole_bundle

import edgecnn
import edgecnn_exporters
from edgecnn.cli import cli
from edgecnn.device.wheel import pack_wheel


def test_the_wheel_is_whole_and_always_the_same(tmp_path: Path) -> None:
    """Every module is in it as it lies here, RECORD has the right hash and size of each file, and packing again changes nothing."""
    (tmp_path / "again").mkdir()
    wheel, again = pack_wheel(tmp_path), pack_wheel(tmp_path / "again")
    assert wheel.read_bytes() == again.read_bytes()
    assert wheel.name == f"edgecnn-{edgecnn.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = f"edgecnn-{edgecnn.__version__}.dist-info/"
    recorded = {row[0]: row[1:] for row in csv.reader(io.StringIO(files[f"{info}RECORD"].decode()))}
    assert set(recorded) == set(files)
    for name, (digest, size) in recorded.items():
        if name != f"{info}RECORD":
            wanted = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={wanted}", str(len(files[name]))), name
    for package in (edgecnn, edgecnn_exporters):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*.py"):
            assert files[f"{root.name}/{path.relative_to(root).as_posix()}"] == path.read_bytes()
    assert "edgecnn/py.typed" in files
    assert any(name.startswith("edgecnn/backends/web/") for name in files)
    assert f"{info}licenses/LICENSE" in files
    assert b"\nRequires-Dist: onnxruntime" in files[f"{info}METADATA"]
    assert b"[console_scripts]\nedgecnn = edgecnn.cli:main" in files[f"{info}entry_points.txt"]
    assert not [name for name in files if "__pycache__" in name]


@pytest.mark.slow
def test_a_real_bundle_is_verified_there(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """The report of the box's own edgecnn comes back, is printed as verify prints it here, and says what the box is."""
    # A net this small may not be faster in int8, of which verify decides by the clock: what it says is not at stake here.
    asked = ["deploy", str(bundle_folder), "box", "--python", sys.executable, "-o", str(tmp_path / "report.json")]
    result = CliRunner().invoke(cli, [*asked, "--force"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert {one["artifact"] for one in report["artifacts"]} == {"fp32", "int8"}
    assert report["host"]["machine"]
    assert result.stdout.splitlines()[0].endswith("files, every hash as recorded; not signed")
    assert whole_bundle(box.home / "edgecnn" / "current" / "bundle")
    again = CliRunner().invoke(cli, ["deploy", str(bundle_folder), "box", "--force", "--json"])
    assert again.exit_code == 0, "the interpreter that it was deployed with is used again: " + again.output
    assert json.loads(again.stdout)["python"] == sys.executable


@pytest.mark.slow
def test_edgecnn_is_installed_and_runs_there(box: Loopback, bundle_folder: Path) -> None:
    """On a box with Python alone --install makes an environment in which predict answers, and parity finds it by ssh."""
    box.plant("export PIP_COMPILE=0")  # what is imported is compiled then, which is little of numpy
    asked = ["deploy", str(bundle_folder), "box:my box", "--force", "--json"]
    assert "has no edgecnn and onnxruntime" in CliRunner().invoke(cli, asked).stderr
    result = CliRunner().invoke(cli, [*asked, "--install"])
    assert result.exit_code == 0, result.output
    current = box.home / "my box" / "current"
    answer = subprocess.run(
        [current / "venv" / "bin" / "edgecnn", "predict", current / "bundle", current / "bundle/goldens/000.png"],
        capture_output=True, text=True, cwd="/", check=True,
    )  # fmt: skip
    assert "000.png" in answer.stdout
    first = json.loads(result.stdout)
    assert Path(first["python"]).is_relative_to(box.home / "my box" / "venvs")
    again = json.loads(CliRunner().invoke(cli, [*asked, "--install"]).stdout)
    assert (again["installed"], again["copied"]["bytes"]) == (first["installed"], 0), "the same is not installed twice"
    kept = json.loads(CliRunner().invoke(cli, asked).stdout)
    assert kept["python"] == first["python"], "a bundle alone goes on with what is installed"
    compared = ["parity", str(bundle_folder), "-r", "onnxruntime:fp32", "-c", "remote:fp32@box:my box", "--json"]
    found = CliRunner().invoke(cli, compared)
    assert found.exit_code == 0, found.output


@pytest.mark.slow
def test_an_installation_that_fails_leaves_all_as_it_was(box: Loopback, bundle_folder: Path, tmp_path: Path) -> None:
    """A folder of wheels that lacks a dependency is one line with pip's reason; nothing is in place, and no index is asked."""
    (tmp_path / "wheels").mkdir()
    asked = ["deploy", str(bundle_folder), "box", "--install", "--wheelhouse", str(tmp_path / "wheels")]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("edgecnn: box: edgecnn could not be installed: ERROR: No matching")
    assert not (box.home / "edgecnn" / "current").is_symlink()
