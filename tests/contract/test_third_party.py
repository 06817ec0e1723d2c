"""A backend by somebody else, built and installed by pip as its users would, beside an edgecnn that was never told of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "thirdparty_backend"
MODULE, NAME = "edgecnn_plain_numpy.py", "plain-numpy"
CONFORMANCE = """
import sys
from pathlib import Path
from edgecnn import registry
from edgecnn.bundle import Bundle
from edgecnn.testing import check_backend
backend = registry.get(registry.BACKENDS, "plain-numpy")
check_backend(backend, Bundle.open(Path(sys.argv[1])).artifact("fp32"))
print(type(backend).__module__, sys.modules[type(backend).__module__].__file__)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the distribution and install it into a folder of its own, without any network."""
    source = Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "plain"))
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def damaged(installed: Path, tmp_path: Path) -> Path:
    """Give a copy of what was installed that a test may change."""
    return Path(shutil.copytree(installed, tmp_path / "site"))


def run(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with the folder on its path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def parity(site: Path, bundle: Path, artifact: str = "fp32") -> subprocess.CompletedProcess[str]:
    """Ask for parity as its user would; ONNX Runtime is the reference, which starts faster than torch."""
    candidate = f"{NAME}:{artifact}"
    return run(site, "-m", "edgecnn", "parity", bundle, "-r", "onnxruntime:fp32", "-c", candidate, "--json")


def state(site: Path) -> dict[str, object]:
    """Ask doctor for what it knows of the backend."""
    done = run(site, "-m", "edgecnn", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    return next(one for one in json.loads(done.stdout)["backends"] if one["name"] == NAME)


def edit(site: Path, old: str, new: str) -> None:
    """Change one place of the installed module."""
    text = (site / MODULE).read_text()
    assert text.count(old) == 1
    (site / MODULE).write_text(text.replace(old, new))


def test_doctor_lists_it(installed: Path) -> None:
    """Doctor names the backend as usable, and the distribution that it comes from."""
    found = state(installed)
    assert (found["distribution"], found["problem"], found["usable"]) == ("edgecnn-plain-numpy", None, [NAME])


def test_it_keeps_the_contract(installed: Path, bundle_folder: Path) -> None:
    """The conformance suite that we ship passes on it, and it is the installed module that ran."""
    done = run(installed, "-c", CONFORMANCE, bundle_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["edgecnn_plain_numpy", str(installed / MODULE)]


def test_it_is_a_candidate_of_parity(installed: Path, bundle_folder: Path) -> None:
    """Parity takes it by its name and passes it: computed in float64, it is nearer the truth than float32 itself."""
    done = parity(installed, bundle_folder)
    report = json.loads(done.stdout)
    (cell,) = report["cells"]
    assert cell["candidate"] == f"{NAME}:fp32"
    assert cell["computation"]["verdict"] == "PASS", cell["computation"]["reason"]
    assert cell["computation"]["multiple"] < 1.5


def test_what_it_cannot_run_is_its_own_error(installed: Path, bundle_folder: Path) -> None:
    """An artifact with operators that it lacks is a FAIL with its own words, exit 3, and no crash."""
    done = parity(installed, bundle_folder, "int8")
    assert done.returncode == 3, done.stderr
    reason = json.loads(done.stdout)["cells"][0]["computation"]["reason"]
    assert "plain-numpy has no DequantizeLinear, QuantizeLinear" in reason


def test_a_broken_one_is_shown_as_broken(damaged: Path, bundle_folder: Path) -> None:
    """A module that cannot be imported is shown by doctor with the reason, and refused by parity in one line."""
    edit(damaged, "from edgecnn.spec import Artifact, TensorSpec", "from edgecnn.spec import Artifakt, TensorSpec")
    found = state(damaged)
    assert found["usable"] == []
    assert "edgecnn-plain-numpy" in str(found["problem"])
    assert "Artifakt" in str(found["problem"])
    done = parity(damaged, bundle_folder)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "is broken and cannot be loaded" in done.stderr


def test_a_wrong_one_fails_parity(damaged: Path, bundle_folder: Path) -> None:
    """One that computes something else fails with exit 3, though it keeps every promise of the contract."""
    edit(damaged, "y + bias[:, None, None]", "y + 1.001 * bias[:, None, None]")
    assert run(damaged, "-c", CONFORMANCE, bundle_folder).returncode == 0
    done = parity(damaged, bundle_folder)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["cells"][0]["computation"]["verdict"] == "FAIL"


def test_one_that_breaks_its_promise_is_told_which(damaged: Path, bundle_folder: Path) -> None:
    """The conformance suite names the promise that a changed backend breaks."""
    edit(damaged, "for spec in self.outputs}", "for spec in reversed(self.outputs)}")
    done = run(damaged, "-c", CONFORMANCE, bundle_folder)
    assert done.returncode == 1
    assert "outputs come in the order stated: ['logits', 'probabilities']" in done.stderr
