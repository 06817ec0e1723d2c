"""`edgecnn quantize` and `edgecnn sensitivity` as a person types them, on files in several forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from quantization.zoo import ZOO
from steady import steady_races

from edgecnn.bundle import Bundle
from edgecnn.cli import cli

FAST = ("--images", "32", "--qat-epochs", "0")


def edgecnn(*arguments: str) -> Result:
    """Type a command, in this process and without a stopwatch."""
    with steady_races():
        return CliRunner().invoke(cli, arguments)


@pytest.fixture(scope="module")
def float_model(bundle_folder: Path) -> Path:
    return bundle_folder / "fp32.onnx"


@pytest.fixture(scope="module")
def done(float_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Quantize the digits' net once, for any CPU, so that no clock can refuse it."""
    out = tmp_path_factory.mktemp("quantized") / "small.onnx"
    found = edgecnn("quantize", str(float_model), "--calibrate", "digits", "-o", str(out), "--target", "any", "--max-drop", "10", "--json", "--force", *FAST)  # fmt: skip
    assert found.exit_code == 0, found.stderr
    return out, json.loads(found.stdout)


def test_the_file_answers_as_the_float_one(
    done: tuple[Path, dict[str, Any]], float_model: Path, bundle_folder: Path
) -> None:
    """The written file is a valid model that ONNX Runtime runs in int8 and that answers nearly always the same."""
    out, _ = done
    onnx.checker.check_model(onnx.load(out), full_check=True)
    pixels = Bundle.open(bundle_folder).goldens().pixels
    answers = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        .run(["logits"], {"image": pixels})[0].argmax(1)
        for path in (float_model, out)
    ]  # fmt: skip
    assert (answers[0] == answers[1]).mean() > 0.9
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(out).graph.initializer)


def test_the_report_lies_beside_it(done: tuple[Path, dict[str, Any]]) -> None:
    """Report, page and climb are written beside the file; what was not binding is said, and nothing of the page is remote."""
    out, printed = done
    folder = out.with_name("small.quantize")
    report = json.loads((folder / "report.json").read_text())
    assert report["report"]["source_sha256"] == printed["source_sha256"]
    verdicts = {check["what"]: check["verdict"] for check in printed["gate"]["checks"]}
    assert verdicts["speed"] == "NOT MEASURED"
    page = (folder / "report.html").read_text()
    assert 'src="http' not in page
    assert "min-max" in page
    note = next(entry.value for entry in onnx.load(out).metadata_props if entry.key == "edgecnn.quantization")
    assert json.loads(note)["checks"] == verdicts


def test_a_second_run_takes_the_rungs_from_the_first(float_model: Path, tmp_path: Path) -> None:
    """The same command again goes on from what was climbed, and `--restart` forgets it."""
    command = ("quantize", str(float_model), "--calibrate", "digits", "-o", str(tmp_path / "a.onnx"), "--target", "any", "--max-drop", "10", "--force", *FAST)  # fmt: skip
    assert edgecnn(*command).exit_code == 0
    assert "taken from an earlier run" in edgecnn(*command).stderr
    assert "taken from an earlier run" not in edgecnn(*command, "--restart").stderr


def test_what_is_worse_is_refused_with_the_numbers(float_model: Path, tmp_path: Path) -> None:
    """A budget that no number of images could show ends with exit code 3, one line with the numbers, and no file."""
    out = tmp_path / "b.onnx"
    command = ("quantize", str(float_model), "--calibrate", "digits", "-o", str(out), "--target", "any", "--max-drop", "0.01", "--stop-after", "min-max", *FAST)  # fmt: skip
    found = edgecnn(*command)
    assert found.exit_code == 3
    assert "accuracy: of 719 images" in found.stderr.splitlines()[-1]
    assert "--force writes it" in found.stderr.splitlines()[-1]
    assert not out.exists()
    forced = edgecnn(*command, "--force")
    assert forced.exit_code == 0
    note = next(entry.value for entry in onnx.load(out).metadata_props if entry.key == "edgecnn.quantization")
    assert json.loads(note)["forced"][0].startswith("accuracy: of 719 images")


def test_pictures_without_labels_will_do(tmp_path: Path) -> None:
    """A float NCHW net of somebody else's is quantized with a folder of pictures; agreement with itself is judged.

    This one is a process of its own.
    """
    onnx.save(ZOO["plain"](), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{index}.png")
    command = [sys.executable, "-m", "edgecnn", "quantize", "net.onnx", "--calibrate", "pictures", "-o", "q.onnx", "--target", "any", "--precision", "int8", "--force", "--json", "--stop-after", "min-max", *FAST]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["evaluated_on"] == "the float model's own answers"
    assert report["calibration_images"] + report["evaluation_images"] == 40


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("missing.onnx", "--calibrate", "digits", "-o", "q.onnx"), "missing.onnx"),
        (("text.onnx", "--calibrate", "digits", "-o", "q.onnx"), "text.onnx"),
        (("fp32.onnx", "--calibrate", "nowhere", "-o", "q.onnx"), "nowhere"),
        (("small.onnx", "--calibrate", "digits", "-o", "q.onnx"), "quantized"),
        (("fp32.onnx", "--calibrate", "digits", "-o", "q.onnx", "--mean", "a,b"), "--mean"),
        (("fp32.onnx", "--calibrate", "digits", "-o", "q.onnx", "--layout", "nchw"), "channels"),
        (("fp32.onnx", "--calibrate", "digits", "-o", "q.onnx", "--target", "cuda", "--precision", "int8"), "fp16"),
        (("fp32.onnx", "--calibrate", "empty", "-o", "q.onnx"), "empty"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    told: str,
    done: tuple[Path, dict[str, Any]],
    float_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files that are no models, models that cannot be quantized and images that are not there: one line, exit code 2."""
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "small.onnx").write_bytes(done[0].read_bytes())
    (tmp_path / "fp32.onnx").write_bytes(float_model.read_bytes())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli, ["quantize", *arguments])
    assert found.exit_code == 2, found.output
    errors = [line for line in found.stderr.splitlines() if line.startswith("edgecnn: ")]
    assert len(errors) == 1, found.stderr
    assert found.stderr.strip().splitlines()[-1] == errors[0]
    assert told in errors[0]
    assert not (tmp_path / "q.onnx").exists()
