"""`edgecnn train` as a user meets it: streams, files, Ctrl-C, and what cannot be trained in one line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from commands import invoke, one_line
from PIL import Image

from edgecnn.layers import Conv
from edgecnn.training.checkpoint import load_checkpoint

TINY = ("--epochs", "2", "--widths", "4,8", "--depth", "1")


def test_train_reports_on_stdout_and_talks_on_stderr(tmp_path: Path) -> None:
    """`train --json` prints one document on stdout, its progress on stderr, and writes the whole run."""
    run = tmp_path / "run"
    result = invoke("train", "digits", "-o", run, *TINY, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((run / "metrics.json").read_text())
    assert len(report["history"]) == 2
    assert report["test_accuracy"]["n"] == report["images"]["test"] == 719
    assert sum(map(sum, report["confusion"])) == 719
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("epoch ")][-1].startswith("epoch 2/2  loss ")
    assert "10 classes" in lines[0]
    files = {path.name for path in run.iterdir()}
    pictures = {"curves.png", "confusion.png", "reliability.png", "mistakes.png"}
    assert files == {"model.safetensors", "config.json", "metrics.json", "report.html", *pictures}
    for name in pictures:
        with Image.open(run / name) as plot:
            assert min(plot.size) > 100


def test_train_prints_what_came_of_it(tmp_path: Path) -> None:
    """Without --json accuracy, interval, cost and places are lines; --resume of the finished run prints them again."""
    words = ("train", "digits", "-o", tmp_path / "run", *TINY, "--image-size", "8", "--seed", "0")
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    names = [line[:15].strip() for line in result.stdout.splitlines()]
    assert names == ["test accuracy", "macro F1", "AUC", "ECE", "worst class", "network", "training", "written"]
    assert re.search(r"^test accuracy +\d+\.\d+% \(95 % interval .*, \d+ of 719\)$", result.stdout, re.M)
    assert "report.html" in result.stdout
    again = invoke(*words, "--resume")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert "has finished already" in again.stderr


def last_line(result: Result) -> str:
    """Return the one error on stderr, behind what a command had to say before it met the mistake."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith(("edgecnn: ", "error: "))]
    assert errors == result.stderr.splitlines()[-1:]
    return errors[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--widths", "4,8,16,32,64"], "images of 8x8 are too small for --net compact"),
        (["--widths", "4,x"], "'4,x' is not a list such as 16,32"),
        (["--widths", "4,"], "'4,' is not a list such as 16,32"),
        (["--widths", "0,8"], "widths"),
        (["--widths", "-4"], "widths"),
        (["--device", "cuda:0"], "torch sees no CUDA device here; use --device cpu"),
        (["--device", "gpu"], "use --device cpu"),
        (["--test", "0.0001"], "too few images for a split"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training_options_that_cannot_work_are_one_line(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network, device or split that cannot be is said before anything is trained or written."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert told in last_line(invoke("train", "digits", "-o", tmp_path / "run", "--epochs", "1", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda:7", "banana", "cuda:x", "meta"])
def test_a_device_that_torch_does_not_have_is_one_line(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with one CUDA device another one, or no device at all, is refused before anything is written."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = invoke("train", "digits", "-o", tmp_path / "run", *TINY, "--device", device)
    assert device in last_line(result)
    assert not (tmp_path / "run").exists()


def class_folders(root: Path, **counts: int) -> Path:
    generator = np.random.default_rng(1)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"only": 6}, "one class only (only)"),
        ({"a": 6, "b": 0}, "class 'b' has no image"),
        ({"a": 1, "b": 1}, "too few images"),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_line(counts: dict[str, int], told: str, tmp_path: Path) -> None:
    """One class, an empty class, or too few images for the splits are each said in one line."""
    data = class_folders(tmp_path / "data", **counts)
    assert told in last_line(invoke("train", data, "-o", tmp_path / "run", *TINY))
    assert not (tmp_path / "run").exists()


def test_broken_images_are_listed_and_strictness_stops(tmp_path: Path) -> None:
    """A broken file among the training images is listed on stderr, and with --strict it is an error."""
    data = class_folders(tmp_path / "data", a=12, b=12)
    (data / "a" / "broken.png").write_text("no image")
    refused = invoke("train", data, "-o", tmp_path / "run", *TINY, "--strict")
    assert "broken.png" in last_line(refused)
    done = invoke("train", data, "-o", tmp_path / "run", *TINY, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["images"]["train"] < 24
    (skipped,) = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert "broken.png" in skipped


@pytest.mark.parametrize(
    "arguments",
    [["train", "digits", "-o", "{file}/run", *TINY], ["export", "{run}", "-o", "{file}/bundle"]],
    ids=["train", "export"],
)
def test_a_destination_below_a_file_is_one_line(arguments: list[str], run_folder: Path, tmp_path: Path) -> None:
    """A folder that cannot be made is the user's mistake, named, and not a crash."""
    file = tmp_path / "file.txt"
    file.write_text("here")
    line = last_line(invoke(*(word.format(file=file, run=run_folder) for word in arguments)))
    assert str(file) in line


def interrupt_training(run: Path) -> tuple[int, str, str]:
    """Start a long training, press Ctrl-C once its state is saved, and return exit code, stdout and stderr."""
    command = [sys.executable, "-m", "edgecnn", "train", "digits", "-o", str(run), *TINY[2:], "--epochs", "100000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job inherits an ignored SIGINT, and pytest may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        end = time.monotonic() + 60
        while not (run / "resume.pt").exists():  # which follows the checkpoint
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "no state in a minute"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_ctrl_c_ends_training_in_good_order(tmp_path: Path) -> None:
    """Ctrl-C leaves with 130 and one clear line, and the last good checkpoint is whole beside no half-written file."""
    run = tmp_path / "run"
    code, out, err = interrupt_training(run)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("edgecnn: interrupted")
    assert err.splitlines()[-2].endswith("go on by the same command with --resume")
    checkpoint = load_checkpoint(run)
    assert [layer.filters for layer in checkpoint.model.layers if isinstance(layer, Conv)] == [4, 8]
    assert checkpoint.build() is not None
    assert {path.name for path in run.iterdir()} == {"model.safetensors", "config.json", "resume.pt"}
    refused = invoke("export", run, "-o", tmp_path / "bundle")
    assert "metrics.json is missing" in one_line(refused)
