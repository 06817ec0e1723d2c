"""The wheel on a bare machine: torch-free, with and without a runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}

pytestmark = pytest.mark.slow


def run(*command: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def install(folder: Path, *wanted: str | Path) -> Path:
    """Make an environment with what is wanted in it, and return its programs; this environment's pip fills it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", *wanted)
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source") / "edgecnn", tmp_path_factory.mktemp("wheel")
    names = ("edgecnn", "exporters", "pyproject.toml", "README.md", "LICENSE")
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    return next(out.glob("edgecnn-*.whl"))


@pytest.fixture(scope="module")
def box(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment as an edge box has it: the base install and an older onnxruntime than the exporter's."""
    folder = tmp_path_factory.mktemp("box") / "venv"
    return install(folder, "--constraint", ROOT / "deploy" / "box.txt", f"{wheel}[cpu]")


@pytest.fixture(scope="module")
def moved_bundle(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path_factory.mktemp("moved") / "digits"))


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    """The wheel holds every module of the two packages, the licence and the metadata, and no tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.split(".dist-info/")[1] for name in archive.namelist() if ".dist-info/" in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgecnn").rglob("*.py")}
    sources |= {path.relative_to(ROOT / "exporters").as_posix() for path in (ROOT / "exporters").rglob("*.py")}
    folders = (ROOT / "edgecnn/backends/web", ROOT / "edgecnn/serving/page")
    web = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.iterdir() if path.is_file()}
    assert names == sources | web | {"edgecnn/py.typed", "edgecnn_exporters/py.typed"}
    assert {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= metadata


def test_box_has_no_torch(box: Path) -> None:
    """A base install with the cpu extra cannot import torch, onnx, or anything of the train extra."""
    for module in ("torch", "onnx", "openvino", "onnxscript", "sklearn", "matplotlib", "rich"):
        assert "ModuleNotFoundError" in run(box / "python", "-c", f"import {module}", expect=1).stderr


def test_box_predicts(box: Path, moved_bundle: Path) -> None:
    """The box answers for an image, a folder and a list on stdin without torch."""
    golden = moved_bundle / "goldens" / "000.png"
    answer = json.loads(run(box / "edgecnn", "predict", moved_bundle, golden, "--json").stdout)
    assert answer["path"] == str(golden)
    assert "error" not in answer
    assert 0 < answer["top"][0]["probability"] <= 1
    folder = run(box / "edgecnn", "predict", moved_bundle, moved_bundle / "goldens").stdout.splitlines()
    assert len(folder) == 32
    command = [str(box / "edgecnn"), "predict", str(moved_bundle), "-"]
    listed = subprocess.run(command, input=f"{golden}\n", capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert listed.stdout.splitlines() == folder[:1]


def test_box_checks_the_goldens(box: Path, moved_bundle: Path) -> None:
    """Parity on the box compares fp32 and int8 with the goldens and leaves decisions as not measured."""
    report = json.loads(run(box / "edgecnn", "parity", moved_bundle, "--json").stdout)
    assert report["reference"] == "goldens"
    assert report["verdict"] == "PASS"
    assert [cell["candidate"] for cell in report["cells"]] == ["onnxruntime:fp32", "onnxruntime:int8"]
    assert all(cell["computation"]["verdict"] == "PASS" for cell in report["cells"])
    assert all(cell["computation"]["n"] == 32 and cell["decisions"] is None for cell in report["cells"])


def test_box_benches(box: Path, moved_bundle: Path) -> None:
    """Bench on the box measures both artifacts, and cold start and memory in fresh processes."""
    command = ("bench", moved_bundle, "--seconds", "0.2", "--cold-runs", "1", "--json")
    report = json.loads(run(box / "edgecnn", *command).stdout)
    assert [row["artifact"] for row in report["rows"]] == ["fp32", "int8"]
    assert all(row["latency"]["n"] > 8 and row["cold_start"]["peak_mb"] > 10 for row in report["rows"])


def test_box_names_what_is_missing(box: Path, moved_bundle: Path, run_folder: Path) -> None:
    """On the box, doctor lists the backends that are missing, and train and export say what to install."""
    found = {state["name"]: state for state in json.loads(run(box / "edgecnn", "doctor", "--json").stdout)["backends"]}
    assert found["onnxruntime"]["usable"] == ["onnxruntime"]
    assert "edgecnn[train]" in found["torch"]["problem"]
    assert "pip install onnx" in found["reference"]["problem"]
    assert "edgecnn[openvino]" in found["openvino"]["problem"]
    trained = run(box / "edgecnn", "train", "digits", "-o", moved_bundle.parent / "run", expect=2)
    assert "edgecnn[train]" in trained.stderr
    exported = run(box / "edgecnn", "export", run_folder, "-o", moved_bundle.parent / "out", expect=2)
    assert "edgecnn[train]" in exported.stderr


def test_no_runtime_names_the_extra(wheel: Path, moved_bundle: Path, tmp_path: Path) -> None:
    """With neither onnxruntime nor onnxruntime-gpu, predict says in one line which extra to install."""
    python = install(tmp_path / "venv", wheel) / "python"
    done = run(python, "-m", "edgecnn", "predict", moved_bundle, moved_bundle / "goldens" / "000.png", expect=2)
    assert len(done.stderr.splitlines()) == 1
    assert "edgecnn[cpu]" in done.stderr
    assert "edgecnn[gpu]" in done.stderr
