"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgecnn.bundle import Bundle
from edgecnn.cli import COMMANDS
from edgecnn.cli.readme import renew

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_every_test_says_what_it_shows(path: Path) -> None:
    """Every test has a one-sentence docstring."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    tests = [function for function in functions if function.name.startswith("test_")]
    assert tests
    silent = [function.name for function in tests if not (ast.get_docstring(function) or "").strip().endswith(".")]
    assert not silent


def test_readme_is_in_step() -> None:
    """The README's file map and help texts are what the files and commands say today, none left out."""
    page = (ROOT / "README.md").read_text()
    assert renew(page, ROOT) == page
    assert all(f"### edgecnn {name}\n" in page for name in COMMANDS)
    modules = [*(ROOT / "edgecnn").rglob("[a-z]*.py"), *(ROOT / "edgecnn").rglob("*.mjs")]
    assert all(path.relative_to(ROOT).as_posix() in page for path in modules)


def test_readme_runs_without_edgecnn(bundle_folder: Path, tmp_path: Path) -> None:
    """The README's lines of plain onnxruntime give the golden's probability, in a process that has no edgecnn."""
    page = (ROOT / "README.md").read_text()
    code = page.partition("<!-- six lines -->\n```python\n")[2].partition("```")[0]
    assert 0 < len(code.splitlines()) <= 6
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    (bundles / "digits").symlink_to(bundle_folder)
    code = "import sys; sys.modules['edgecnn'] = None\n" + code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    label, probability = done.stdout.split()
    truth = Bundle.open(bundle_folder).goldens().logits_float64[0]
    expected = np.exp(truth - truth.max()) / np.exp(truth - truth.max()).sum()
    assert int(label) == expected.argmax()
    assert float(probability) == pytest.approx(expected.max(), abs=1e-5)
