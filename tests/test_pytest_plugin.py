"""The pytest plugin, run by pytest in projects that were never told of it but by its installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from fault.planting import plant
from onnx import numpy_helper

from edgecnn.bundle import Bundle
from edgecnn.data.dataset import Item, LabelledImages
from edgecnn.errors import UsageError
from edgecnn.pytest_plugin import Parity

pytest_plugins = ["pytester"]

COLD = """
import sys

HEAVY = ("numpy", "PIL", "msgspec", "onnxruntime", "torch", "onnx", "edgecnn.parity", "edgecnn.bundle", "edgecnn.registry")

def test_nothing_is_imported_before_it_is_used(pytestconfig):
    assert "edgecnn.pytest_plugin" in sys.modules
    assert pytestconfig.pluginmanager.hasplugin("edgecnn")
    assert [name for name in HEAVY if name in sys.modules] == []

def test_what_is_used_is_imported(edgecnn_bundle):
    assert "numpy" in sys.modules
    assert "torch" not in sys.modules
"""
GOLDENS = """
def test_parity(edgecnn_parity):
    report = edgecnn_parity(reference="goldens", candidate={candidate!r})
    assert [cell.candidate for cell in report.cells] == {cells!r}
    assert report.verdict == "PASS"
"""


def project(pytester: pytest.Pytester, source: str, *arguments: str | Path) -> pytest.RunResult:
    """Run one test file of a project of its own, in this process."""
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *map(str, arguments))


def damage(bundle: Path) -> None:
    """Change the weights of the first convolution by a hundredth."""

    def edit(model: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))

    plant(bundle, "fp32", edit)


def test_start_up_costs_nothing(bundle_folder: Path, tmp_path: Path) -> None:
    """Start-up of pytest loads the plugin by its entry point and no array, image or model package with it, until a fixture is used."""
    (tmp_path / "test_cold.py").write_text(COLD)
    command = [sys.executable, "-m", "pytest", "-q", "--edgecnn-bundle", str(bundle_folder), "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    ("candidate", "cells"),
    [
        ("onnxruntime:int8", ["onnxruntime:int8"]),
        (("onnxruntime:fp32", "reference:fp32"), ["onnxruntime:fp32", "reference:fp32"]),
        (None, ["onnxruntime:fp32", "onnxruntime:int8"]),
    ],
)
def test_parity_passes(candidate: object, cells: list[str], bundle_folder: Path, pytester: pytest.Pytester) -> None:
    """A good bundle passes, for one candidate, for several and for all that there are, and the report comes back."""
    source = GOLDENS.format(candidate=candidate, cells=cells)
    project(pytester, source, "--edgecnn-bundle", bundle_folder).assert_outcomes(passed=1)


def test_a_failure_prints_the_report(bundle_copy: Path, pytester: pytest.Pytester) -> None:
    """A planted fault fails the test with the report as its message, and no line of our own code around it."""
    damage(bundle_copy)
    source = GOLDENS.format(candidate="onnxruntime:fp32", cells=[])
    result = project(pytester, source, "--edgecnn-bundle", bundle_copy)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*candidate*computation*", "E*onnxruntime:fp32*FAIL*", "E*times torch float32's own*"]
    )
    result.stdout.fnmatch_lines(["E*parity: FAIL*"])
    text = result.stdout.str()
    assert "AssertionError" in text
    assert "pytest_plugin.py" not in text
    assert "compare.py" not in text
    assert text.count("def test_parity") == 1


def test_too_few_images_fail_and_say_so(bundle_folder: Path, pytester: pytest.Pytester) -> None:
    """Where the images cannot show that the budget is kept the test fails as inconclusive, however alike the answers."""
    source = """
    def test_parity(edgecnn_parity):
        edgecnn_parity(reference="onnxruntime:fp32", candidate="onnxruntime:fp32", max_drop=0.0005)
    """
    result = project(pytester, source, "--edgecnn-bundle", bundle_folder)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*images are needed*", "E*parity: INCONCLUSIVE*"])


@pytest.mark.parametrize("fixture", ["edgecnn_bundle", "edgecnn_parity"])
def test_without_a_bundle_the_test_is_skipped_with_a_reason(fixture: str, pytester: pytest.Pytester) -> None:
    """Where no bundle is named the test is skipped, and the summary says how to name one."""
    used = "edgecnn_parity()" if fixture == "edgecnn_parity" else "edgecnn_bundle"
    result = project(pytester, f"def test_parity({fixture}): {used}", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*no bundle: name one by --edgecnn-bundle PATH*"])


@pytest.mark.parametrize("what", ["missing", "empty", "damaged"])
def test_a_bad_bundle_is_an_error_of_one_line(
    what: str, bundle_copy: Path, tmp_path: Path, pytester: pytest.Pytester
) -> None:
    """A bundle that is none is an error with its path and what to do, never a skip and never a traceback."""
    path = {"missing": tmp_path / "nowhere", "empty": tmp_path / "empty", "damaged": bundle_copy}[what]
    (tmp_path / "empty").mkdir()
    (bundle_copy / "manifest.json").write_text("{}")
    result = project(pytester, "def test_bundle(edgecnn_bundle): pass", "--edgecnn-bundle", path)
    result.assert_outcomes(errors=1)
    assert str(path) in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert "pytest_plugin.py" not in result.stdout.str()


def test_a_damaged_artifact_is_told_in_one_line(bundle_copy: Path, pytester: pytest.Pytester) -> None:
    """An artifact that is not the recorded one fails the test by the name of its file."""
    (bundle_copy / "int8.onnx").write_bytes(b"changed")
    source = GOLDENS.format(candidate="onnxruntime:int8", cells=[])
    result = project(pytester, source, "--edgecnn-bundle", bundle_copy)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*int8.onnx*", "E*parity: FAIL*"])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("candidate='no-such-backend'", "no backend is called 'no-such-backend'; known: *"),
        ("candidate='onnxruntime:'", "*is not BACKEND[[]:ARTIFACT[]][[]@DEVICE[]]*"),
        ("candidate=()", "*at least one candidate*"),
        ("reference='goldens', data='digits'", "*data needs a reference*"),
    ],
)
def test_a_mistake_is_told_in_one_line(call: str, told: str, bundle_folder: Path, pytester: pytest.Pytester) -> None:
    """What cannot be compared fails the test with the one line that the command would print."""
    source = f"def test_parity(edgecnn_parity): edgecnn_parity({call})"
    result = project(pytester, source, "--edgecnn-bundle", bundle_folder)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E*Error: {told}"])
    assert "registry.py" not in result.stdout.str()
    assert "compare.py" not in result.stdout.str()


def test_the_setting_is_relative_to_its_file(bundle_folder: Path, pytester: pytest.Pytester) -> None:
    """A bundle named in the settings is found beside them from wherever pytest is started; the option goes before it."""
    pytester.makeini("[pytest]\nedgecnn_bundle = bundles/digits\n")
    pytester.mkdir("bundles")
    (pytester.path / "bundles" / "digits").symlink_to(bundle_folder)
    source = """
    def test_bundle(edgecnn_bundle):
        assert edgecnn_bundle.root.as_posix().endswith("bundles/digits")
    """
    project(pytester, source).assert_outcomes(passed=1)
    inner = pytester.mkdir("inner")
    (inner / "test_inner.py").write_text("def test_bundle(edgecnn_bundle): pass")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inner)
        pytester.runpytest_inprocess("-p", "no:cacheprovider", "test_inner.py").assert_outcomes(passed=1)
        pytester.runpytest_inprocess("--edgecnn-bundle", "nowhere", "test_inner.py").assert_outcomes(errors=1)


def test_it_can_be_left_out(bundle_folder: Path, pytester: pytest.Pytester) -> None:
    """With `-p no:edgecnn` neither the option nor the fixtures are there, and other tests run."""
    result = project(pytester, "def test_other(): pass\ndef test_parity(edgecnn_parity): pass", "-p", "no:edgecnn")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'edgecnn_parity' not found*"])
    unknown = project(pytester, "def test_other(): pass", "-p", "no:edgecnn", "--edgecnn-bundle", bundle_folder)
    assert unknown.ret == pytest.ExitCode.USAGE_ERROR


def test_a_bundle_and_images_can_be_handed_over(edgecnn_parity: Parity, bundle_folder: Path) -> None:
    """In this very project, without any option, the fixture takes a bundle, opened or its path, and images as arrays."""
    bundle = Bundle.open(bundle_folder)
    assert edgecnn_parity(bundle_folder, "goldens", "onnxruntime:int8").data is None
    goldens = bundle.goldens()
    items = tuple(
        Item(name, int(label), pixels)
        for name, label, pixels in zip(goldens.names, goldens.labels, goldens.pixels, strict=True)
    )
    images = LabelledImages(goldens.pixels, goldens.labels, items)
    with pytest.raises(AssertionError, match=r"32 labelled images(.|\n)*parity: INCONCLUSIVE"):
        edgecnn_parity(bundle, "onnxruntime:fp32", "onnxruntime:fp32", data=images, max_drop=0.01)
    with pytest.raises(UsageError, match="data needs a reference"):
        edgecnn_parity(bundle, "goldens", "onnxruntime:int8", data=images)
