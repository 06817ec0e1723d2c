"""`edgecnn features` as a user meets it: what it writes, and every mistake in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from looked_at import SECTIONS

from edgecnn.cli import cli
from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def golden(bundle_folder: Path) -> Path:
    return bundle_folder / "goldens" / "000.png"


def _zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", ["run", "bundle", "zip"])
def test_the_command_writes_the_page(
    kind: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """For a run, its bundle and the bundle's zip the page is written, with the probabilities that ONNX Runtime gives."""
    net = {"run": run_folder, "bundle": bundle_folder}.get(kind) or _zipped(bundle_folder, tmp_path / "b.zip")
    page = tmp_path / "new" / "page.html"
    result = invoke("inspect", net, "--features", golden, "-o", page, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    found = json.loads(result.stdout)
    assert (found["image"], found["page"]) == (str(golden), str(page))
    asked = invoke("predict", bundle_folder, golden, "-b", "onnxruntime:fp32", "--top", "10", "--json")
    answers = {guess["label"]: guess["probability"] for guess in json.loads(asked.stdout)["top"]}
    assert len(answers) == 10
    assert found["probabilities"] == pytest.approx(answers, abs=1e-4)
    assert next(iter(found["probabilities"])) == found["answer"] == max(answers, key=answers.__getitem__)
    written = page.read_text()
    assert all(f"<h2>{title}" in written for title in SECTIONS)
    assert list(page.parent.iterdir()) == [page]


def test_the_command_says_what_it_wrote(run_folder: Path, golden: Path, tmp_path: Path) -> None:
    """As text it gives the image, the answer, the five likeliest labels and the page."""
    page = tmp_path / "page.html"
    result = invoke("inspect", run_folder, "--features", golden, "-o", page)
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == ["image", "answer", "probabilities", "page"]
    assert lines[2][1].count(",") == 4
    assert lines[2][1].startswith(lines[1][1])
    assert page.is_file()


def test_labels_of_a_run_are_escaped(run_folder: Path, golden: Path, tmp_path: Path) -> None:
    """A run whose labels are markup gives a page in which they are text."""
    checkpoint = load_checkpoint(run_folder)
    labels = tuple(f"<b>{label}</b>&" for label in checkpoint.labels)
    header = Header(model=checkpoint.model, preprocess=checkpoint.preprocess, labels=labels)
    run = tmp_path / "run"
    save_checkpoint(run / "model.safetensors", checkpoint.build(), header)
    result = invoke("inspect", run, "--features", golden, "-o", tmp_path / "page.html", "--json")
    page = (tmp_path / "page.html").read_text()
    assert json.loads(result.stdout)["answer"] in labels
    assert "<b>" not in page
    assert "&lt;b&gt;3&lt;/b&gt;&amp;" in page


def _without_checkpoint(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["artifacts"]["checkpoint"]
    del manifest["files"]["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.safetensors").unlink()
    return folder


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no page": (["{run}", "--features", "{image}"], "go together"),
    "no image": (["{run}", "-o", "{tmp}/page.html"], "go together"),
    "an image that is not there": (["{run}", "--features", "{tmp}/gone.png", "-o", "{tmp}/page.html"], "{tmp}/gone.png"),
    "a folder for an image": (["{run}", "--features", "{run}", "-o", "{tmp}/page.html"], "is a directory"),
    "not an image": (["{run}", "--features", "{run}/config.json", "-o", "{tmp}/page.html"], "config.json: not an image"),
    "no net at all": (["{bundle}/goldens", "--features", "{image}", "-o", "{tmp}/page.html"], "give a run folder or a bundle"),
    "an ONNX file": (["{bundle}/fp32.onnx", "--features", "{image}", "-o", "{tmp}/page.html"], "needs torch weights"),
    "a folder for the page": (["{run}", "--features", "{image}", "-o", "{tmp}"], "is a directory"),
    "a page in a file": (["{run}", "--features", "{image}", "-o", "{image}/page.html"], "{image}"),
    "the page over the image": (["{run}", "--features", "{image}", "-o", "{image}"], "would replace the image"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    mistake: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """What was wrong is said in one line on stderr, with exit code 2, and no page is written."""
    places = {"run": run_folder, "bundle": bundle_folder, "image": golden, "tmp": tmp_path}
    words, told = MISTAKES[mistake]
    before = golden.read_bytes()
    _refused(invoke("inspect", *(word.format(**places) for word in words)), told.format(**places))
    assert not list(tmp_path.iterdir())
    assert golden.read_bytes() == before


def _refused(result: Result, told: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert told in line


def _damaged(run: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-7])
    return folder


def test_bundles_without_weights_and_damaged_runs_are_refused(
    run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """A bundle that carries no torch checkpoint, and a run whose checkpoint is cut short, are one line each."""
    makers: list[tuple[Callable[[Path, Path], Path], Path, str]] = [
        (_without_checkpoint, bundle_folder, "no artifact that torch reads"),
        (_damaged, run_folder, "not a checkpoint of edgecnn, or damaged"),
    ]
    for number, (make, source, told) in enumerate(makers):
        made = make(source, tmp_path / f"made{number}")
        _refused(invoke("inspect", made, "--features", golden, "-o", tmp_path / "page.html"), told)
        assert not (tmp_path / "page.html").exists()


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from edgecnn.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_without_torch_it_says_what_to_install(
    kind: str, run_folder: Path, bundle_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """Where torch is not installed one line names the extra that brings it."""
    net = run_folder if kind == "run" else bundle_folder
    command = [sys.executable, "-c", WITHOUT_TORCH, "inspect", net, "--features", golden, "-o", tmp_path / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "torch" in line
    assert "pip install 'edgecnn[train]'" in line
    assert not list(tmp_path.iterdir())
