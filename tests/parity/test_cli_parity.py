"""`edgecnn parity` of any ONNX file, kept, replayed and refused, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from parity.fakes import chain_file, int8_file

from edgecnn.cli import cli


def _invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["parity", *map(str, words)])


def test_an_onnx_file_needs_no_bundle(tmp_path: Path) -> None:
    """A bare file passes with random inputs against its own float64, and the report says that they are random."""
    result = _invoke(chain_file(tmp_path), "--random", 40, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["verdict"], report["reference"], report["random"]) == ("PASS", "float64", True)
    assert report["cells"][0]["computation"]["n"] == 40
    assert "not the range of real inputs" in report["samples"]


def test_a_quantized_file_beside_it_needs_labels(tmp_path: Path) -> None:
    """A second, quantized file leaves with 3 where there are no labels, however well it is computed."""
    result = _invoke(chain_file(tmp_path), "-c", f"onnxruntime:{int8_file(tmp_path)}")
    assert result.exit_code == 3
    assert "only labelled images show what quantization costs" in result.stdout
    assert result.stdout.splitlines()[-1] == "parity: NOT MEASURED"


def test_a_kept_recording_is_judged_again(tmp_path: Path) -> None:
    """What --keep wrote gives the same report without the model, and another one by another tolerance."""
    model, kept = chain_file(tmp_path), tmp_path / "kept.evidence"
    first = _invoke(model, "--keep", kept, "--json")
    model.unlink()
    again = _invoke("--replay", kept, "--json")
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert _invoke("--replay", kept, "--noise-multiple", "1e-6").exit_code == 3
    both = _invoke("--replay", kept, kept, "--json")
    assert both.exit_code == 0, both.stderr
    assert "the recording of" in json.loads(both.stdout)["reference"]


def test_page_and_junit_are_written(tmp_path: Path) -> None:
    """--html and --junit write their files, in which the candidate is named."""
    page, junit = tmp_path / "page.html", tmp_path / "tests.xml"
    result = _invoke(chain_file(tmp_path), "--html", page, "--junit", junit)
    assert result.exit_code == 0, result.stderr
    assert "onnxruntime" in page.read_text()
    assert "<testsuite" in junit.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name a BUNDLE or MODEL.onnx"),
        (("{model}", "--data", "digits", "--random", "3"), "give one"),
        (("{model}", "-c", "onnxruntime:fp64"), "give the path of an .onnx file"),
        (("{model}", "-c", "onnxruntime:{tmp}/gone.onnx"), "is not there"),
        (("{model}", "-c", "onnxruntime", "-c", "onnxruntime"), "named twice"),
        (("--replay", "{model}"), "recording"),
        (("--replay", "{model}", "-c", "torch"), "--candidate would do nothing"),
        (("--replay", "{model}", "--mean", "0.5"), "--mean would do nothing"),
        (("{model}", "--random", "0"), "--random"),
        (("{broken}",), "ONNX"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """What cannot be acted on is said in one line, with exit code 2."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 50)
    places = {"model": chain_file(tmp_path), "tmp": tmp_path, "broken": broken}
    result = _invoke(*(word.format(**places) for word in words))
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr.splitlines()[-1]
    assert len(result.stderr.splitlines()) == 1
