"""The command line as a user meets it: help, streams, exit codes, and every mistake in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgecnn import __version__
from edgecnn.bundle import Bundle
from edgecnn.cli import COMMANDS, cli
from edgecnn.layers import Conv
from edgecnn.training.checkpoint import load_checkpoint

TINY = ("--epochs", "2", "--widths", "4,8", "--depth", "1")


def invoke(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; anything but an orderly exit is raised here."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def edgecnn(*arguments: str | Path | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command as a user does."""
    words = [argument if isinstance(argument, bytes) else str(argument) for argument in arguments]
    return subprocess.run([sys.executable, "-m", "edgecnn", *words], input=stdin, capture_output=True, check=False)


def one_line(result: Result) -> str:
    """Return the one line on stderr of a command that was used wrongly."""
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def golden(bundle_folder: Path) -> Path:
    return bundle_folder / "goldens" / "000.png"


@pytest.fixture
def strip(bundle_folder: Path, tmp_path: Path) -> Path:
    """Return a folder of three good images and two bad ones between them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, number in (("a.png", 0), ("c.png", 1), ("e.png", 2)):
        shutil.copy(bundle_folder / "goldens" / f"{number:03d}.png", folder / name)
    (folder / "b.png").write_text("not an image")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:50])
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    """`--help` and `-h` say what the command does, show an example of itself and explain every option."""
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.stdout == invoke(name, "-h").stdout
    assert re.search(rf"^  Examples?:\n    .*edgecnn {name} ", result.stdout, re.M)
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    options = [option for option in command.params if option.param_type_name == "option"]
    assert all(getattr(option, "help", None) for option in options)
    assert command.get_short_help_str()


def test_the_help_of_the_group_lists_every_command() -> None:
    """The group's help names the commands in the order in which they are used, and the exit codes."""
    text = invoke("--help").stdout
    listed = re.findall(r"^  (\w+) {2,}\S", text.partition("Commands:")[2], re.M)
    assert listed == list(COMMANDS)
    assert "3 the verdict is no" in " ".join(text.split())


def test_the_version_is_the_packages() -> None:
    """`--version` prints the version of the package, also through `python -m`."""
    assert invoke("--version").stdout.strip() == f"edgecnn, version {__version__}"
    assert edgecnn("--version").stdout.decode().strip() == f"edgecnn, version {__version__}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_back(shell: str) -> None:
    """Each shell's script goes to stdout and asks `edgecnn` for completions in that shell's way."""
    result = invoke("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_EDGECNN_COMPLETE={shell}_complete" in result.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=result.stdout.encode(), check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("edgecnn p", {"predict", "parity"}),
        ("edgecnn predict bundle -b o", {"onnxruntime", "onnxruntime-web", "openvino"}),
        ("edgecnn completion f", {"fish"}),
    ],
)
def test_completion_knows_commands_and_backends(words: str, expected: set[str]) -> None:
    """Pressing tab offers the commands, the registered backends and an argument's choices."""
    env = {**os.environ, "_EDGECNN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-m", "edgecnn"], env=env, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected, done.stderr


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


def test_predict_prints_a_line_for_each_image(bundle_folder: Path) -> None:
    """A real process answers for a folder with one line for each image, and nothing on stderr."""
    done = edgecnn("predict", bundle_folder, bundle_folder / "goldens", "--batch", "5", "--top", "2")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 32
    assert all(re.fullmatch(r"\S+/goldens/\d{3}\.png\t\d 0\.\d{4}  \d 0\.\d{4}", line) for line in lines)


def answers(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_predict_answers_for_files_and_folders_in_order(bundle_folder: Path, golden: Path) -> None:
    """Files and folders are answered in the order given, folders sorted, with labels and probabilities."""
    result = invoke("predict", bundle_folder, golden.with_name("007.png"), golden.parent, "--json", "--batch", "8")
    assert (result.exit_code, result.stderr) == (0, "")
    found = answers(result)
    expected = [golden.with_name("007.png"), *sorted(golden.parent.glob("*.png"))]
    assert [answer["path"] for answer in found] == [str(path) for path in expected]
    for answer in found:
        assert set(answer) == {"path", "label", "probability", "top", "ms", "sha256"}
        assert (answer["label"], answer["probability"]) == tuple(answer["top"][0].values())
        assert [set(guess) for guess in answer["top"]] == [{"label", "probability"}] * 3
        assert sum(guess["probability"] for guess in answer["top"]) <= 1.0001
    labels = Bundle.open(bundle_folder).goldens().labels
    right = [answer["top"][0]["label"] == str(label) for answer, label in zip(found[1:], labels, strict=True)]
    assert np.mean(right) > 0.5


def test_predict_reads_paths_from_stdin(bundle_folder: Path, golden: Path) -> None:
    """`-` takes one path a line, blanks passed over, and gives what the same paths give as arguments."""
    paths = [golden, golden.with_name("003.png")]
    lines = "\n\n".join(map(str, paths))
    done = edgecnn("predict", bundle_folder, "-", "--json", stdin=lines.encode())
    assert (done.returncode, done.stderr) == (0, b"")
    expected = answers(invoke("predict", bundle_folder, *paths, "--json"))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in (*expected, *found):
        assert set(answer.pop("ms")) == {"decode", "preprocess", "inference"}
    assert found == expected


@pytest.mark.parametrize("batch", ["1", "2", "64"])
def test_predict_goes_on_after_bad_images(bundle_folder: Path, strip: Path, batch: str) -> None:
    """Bad images are a line each on stderr, the good ones are answered, and the exit code is 2 at the end."""
    result = invoke("predict", bundle_folder, strip, strip / "gone.png", strip / "a.png", "--batch", batch)
    assert result.exit_code == 2
    answered = [line.partition("\t")[0] for line in result.stdout.splitlines()]
    assert answered == [str(strip / name) for name in ("a.png", "c.png", "e.png", "a.png")]
    *bad, summary = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in bad] == [
        ["edgecnn", str(strip / name)] for name in ("b.png", "d.png", "gone.png")
    ]
    assert summary == "edgecnn: 4 images answered, 3 bad"


def test_predict_puts_errors_into_json_lines(bundle_folder: Path, strip: Path) -> None:
    """With --json every image has a line, in order, and a bad one has an error instead of labels."""
    result = invoke("predict", bundle_folder, strip, "--json", "--batch", "2")
    assert result.exit_code == 2
    found = answers(result)
    assert [Path(answer["path"]).name for answer in found] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for answer in found:
        if Path(answer["path"]).name in ("b.png", "d.png"):
            assert set(answer) == {"path", "error"}
            assert answer["path"] in answer["error"]
        else:
            assert set(answer) == {"path", "label", "probability", "top", "ms", "sha256"}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("batch", ["1", "4"])
def test_an_empty_folder_does_not_cost_the_other_images(
    bundle_folder: Path, golden: Path, tmp_path: Path, batch: str, place: int
) -> None:
    """A folder without images is one line on stderr and exit 2, and images before and after it are answered."""
    (tmp_path / "empty").mkdir()
    arguments = [golden, golden.with_name("001.png")]
    arguments.insert(place, tmp_path / "empty")
    result = invoke("predict", bundle_folder, *arguments, "--batch", batch, "--json")
    assert result.exit_code == 2
    assert "no image in this folder" in result.stderr
    good = [answer["path"] for answer in answers(result) if "error" not in answer]
    assert good == [str(golden), str(golden.with_name("001.png"))]


def test_predict_writes_names_that_are_not_unicode(bundle_folder: Path, golden: Path, tmp_path: Path) -> None:
    """Files whose names are not UTF-8, as old cameras write them, are answered or reported, in both kinds of output."""
    folder = os.fsencode(tmp_path / "old")
    os.mkdir(folder)  # noqa: PTH102 -- pathlib has no bytes
    for name in (b"caf\xe9.png", b"z.png"):
        shutil.copy(os.fsencode(golden), folder + b"/" + name)
    shutil.copy(__file__, folder + b"/na\xefve.png")
    for options in ((), ("--json",)):
        done = edgecnn("predict", bundle_folder, folder, *options)
        assert done.returncode == 2, done.stderr.decode()[-500:]
        assert done.stderr.splitlines()[-1] == b"edgecnn: 2 images answered, 1 bad"
        lines = done.stdout.splitlines()
        assert b"caf" in lines[0]
        assert len(lines) == (3 if options else 2)
        if options:
            assert ["error" in json.loads(line) for line in lines] == [False, True, False]


@pytest.mark.parametrize("name", ["with\0nul.png", "a" * 300 + ".png", "a\0b"])
def test_a_path_that_cannot_be_is_a_bad_image(bundle_folder: Path, golden: Path, name: str) -> None:
    """A line that cannot be a path, as `find -print0` makes them, is a bad image and not a crash."""
    result = invoke("predict", bundle_folder, "-", "--json", stdin=f"{name}\n{golden}\n")
    assert result.exit_code == 2
    bad, good = answers(result)
    assert bad["error"]
    assert "error" not in good
    assert len(result.stderr.splitlines()) == 2


def test_an_argument_too_long_for_a_path_is_a_bad_image(bundle_folder: Path, golden: Path) -> None:
    """An argument no file can be called is a bad image and not a crash."""
    result = invoke("predict", bundle_folder, "a" * 300 + ".png", golden, "--json")
    assert result.exit_code == 2
    assert ["error" in answer for answer in answers(result)] == [True, False]


def test_predict_from_a_zip(bundle_folder: Path, golden: Path, tmp_path: Path) -> None:
    """A bundle that is still zipped gives the same answer as its folder."""
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in bundle_folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(bundle_folder.parent))
    assert invoke("predict", path, golden).stdout == invoke("predict", bundle_folder, golden).stdout


def test_no_images_on_stdin_is_said(bundle_folder: Path) -> None:
    """An empty list of paths is a mistake and not a success without work."""
    assert one_line(invoke("predict", bundle_folder, "-", stdin="\n \n")) == "edgecnn: no images were given"


def test_a_folder_without_images_is_said(bundle_folder: Path, tmp_path: Path) -> None:
    """A folder that holds no image at all is one line and exit 2."""
    result = invoke("predict", bundle_folder, tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no image in this folder" in result.stderr
    assert str(tmp_path) in result.stderr


MISTAKES: dict[str, tuple[list[str], str]] = {
    "misspelt command": (["predcit"], "predict"),
    "misspelt option": (["predict", "{bundle}", "{image}", "--bath", "3"], "--bath"),
    "missing bundle": (["predict", "{tmp}/nowhere", "{image}"], "{tmp}/nowhere"),
    "no images named": (["predict", "{bundle}"], "IMAGE"),
    "not a bundle": (["predict", "{tmp}", "{image}"], "{tmp}: holds no manifest.json"),
    "a file for a bundle": (["predict", "{image}", "{image}"], "is no bundle"),
    "unknown artifact": (["predict", "{bundle}", "{image}", "-b", "onnxruntime:int9"], "it has fp32, int8, checkpoint"),
    "unknown backend": (
        ["predict", "{bundle}", "{image}", "-b", "onxruntime"],
        "known: emulated, onnxruntime, onnxruntime-web, openvino, reference, remote, torch",
    ),
    "half a backend": (["predict", "{bundle}", "{image}", "-b", "onnxruntime:"], "BACKEND[:ARTIFACT][@DEVICE]"),
    "unknown device": (["predict", "{bundle}", "{image}", "-b", "onnxruntime@gpu"], "no device 'gpu'"),
    "wrong format": (["predict", "{bundle}", "{image}", "-b", "torch:int8"], "torch reads safetensors"),
    "top of nothing": (["predict", "{bundle}", "{image}", "--top", "0"], "--top"),
    "parity of nothing": (["parity", "{tmp}"], "holds no manifest.json"),
    "parity of an unknown artifact": (["parity", "{bundle}", "-c", "onnxruntime:nope"], "no artifact is called 'nope'"),
    "parity with an unknown reference": (["parity", "{bundle}", "-r", "troch"], "known: emulated, onnxruntime"),
    "parity with a bad budget": (["parity", "{bundle}", "--max-drop", "lots"], "'lots' is not a number"),
    "parity with no budget": (["parity", "{bundle}", "--max-drop", "0"], "between 0 and 100"),
    "parity with NaN for a budget": (["parity", "{bundle}", "--max-drop", "nan"], "between 0 and 100"),
    "parity on missing data": (["parity", "{bundle}", "--data", "{tmp}/gone"], "gone: is not there"),
    "bench of nothing": (["bench", "{tmp}"], "holds no manifest.json"),
    "bench of one candidate twice": (["bench", "{bundle}", "-c", "torch", "-c", "torch"], "different candidates"),
    "bench on a missing device": (["bench", "{bundle}", "-c", "onnxruntime@npu"], "no device 'npu'"),
    "bench for no time": (["bench", "{bundle}", "--seconds", "0"], "--seconds"),
    "inspect of nothing": (["inspect", "{tmp}"], "neither a run folder, nor a bundle, nor an .onnx file"),
    "inspect of what is not there": (["inspect", "{tmp}/gone.onnx"], "gone.onnx"),
    "export of nothing": (["export", "{tmp}", "-o", "{tmp}/out"], "config.json is missing"),
    "export to no known target": (["export", "{run}", "-o", "{tmp}/out", "--target", "sparc"], "sparc"),
    "train on nothing": (["train", "{tmp}/gone", "-o", "{tmp}/out"], "gone: is not there; give 'digits'"),
    "train on an empty folder": (["train", "{tmp}", "-o", "{tmp}/out"], "no class folders"),
    "train into a file": (["train", "digits", "-o", "{image}"], "{image}"),
    "train without a place": (["train", "digits"], "--out"),
    "train at no rate": (
        ["train", "digits", "-o", "{tmp}/out", "--lr", "fast"],
        "'fast' is neither a rate above 0 nor auto",
    ),
    "train at a rate of nothing": (["train", "digits", "-o", "{tmp}/out", "--lr", "0"], "neither a rate above 0"),
    "train with an unknown part": (
        ["train", "digits", "-o", "{tmp}/out", "--augment", "blur"],
        "'blur' is neither none",
    ),
    "train with widths in words": (
        ["train", "digits", "-o", "{tmp}/out", "--widths", "a,b"],
        "not a list such as 16,32",
    ),
    "train in a size there is not": (["train", "digits", "-o", "{tmp}/out", "--size", "64"], "--size"),
    "train for no epochs": (["train", "digits", "-o", "{tmp}/out", "--epochs", "0"], "--epochs"),
    "completion for no shell": (["completion", "tcsh"], "tcsh"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(
    mistake: str, bundle_folder: Path, run_folder: Path, golden: Path, tmp_path: Path
) -> None:
    """What was wrong is said in one line on stderr, with nothing on stdout, nothing written and exit code 2."""
    places = {"bundle": bundle_folder, "run": run_folder, "image": golden, "tmp": tmp_path}
    words, told = MISTAKES[mistake]
    line = one_line(invoke(*(word.format(**places) for word in words)))
    assert told.format(**places) in line
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("arguments", [["predict", "{bundle}", "{tmp}/gone.png"], ["predcit"], ["inspect", "{tmp}"]])
def test_a_real_process_prints_no_traceback(arguments: list[str], bundle_folder: Path, tmp_path: Path) -> None:
    """The installed command itself leaves with 2 and without a traceback."""
    done = edgecnn(*(word.format(bundle=bundle_folder, tmp=tmp_path) for word in arguments))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert done.stderr


def test_parity_passes_with_zero(bundle_folder: Path) -> None:
    """A bundle within its budget passes with exit 0, one JSON document and both questions answered."""
    result = invoke("parity", bundle_folder, "--max-drop", "20", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["verdict"], report["reference"], report["data"]) == ("PASS", "torch", "719 labelled images")
    assert [cell["candidate"] for cell in report["cells"]] == ["onnxruntime:fp32", "onnxruntime:int8"]
    for cell in report["cells"]:
        assert cell["computation"]["verdict"] == cell["decisions"]["verdict"] == "PASS"
        assert cell["decisions"]["n"] == 719


def test_parity_without_enough_evidence_leaves_with_three(bundle_folder: Path) -> None:
    """A budget that 719 images cannot show to be kept is INCONCLUSIVE, and that is not a success."""
    result = invoke("parity", bundle_folder, "--max-drop", "0.01", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["verdict"] == "INCONCLUSIVE"
    assert all(cell["decisions"]["images_needed"] != 0 for cell in report["cells"])
    assert result.stderr.splitlines() == ["edgecnn: parity of bundle: INCONCLUSIVE"]


def test_parity_of_a_wrong_artifact_leaves_with_three(bundle_folder: Path, tmp_path: Path) -> None:
    """Where the data is other than the bundle's and the candidate loses its accuracy, the verdict is no."""
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    spoil_head(folder)
    result = invoke("parity", folder, "--max-drop", "20", "--json")
    assert result.exit_code == 3
    cells = {cell["artifact"]: cell for cell in json.loads(result.stdout)["cells"]}
    assert cells["fp32"]["computation"]["verdict"] == "FAIL"
    assert cells["fp32"]["decisions"]["verdict"] == "FAIL"
    assert cells["int8"]["computation"]["verdict"] == "PASS"


def spoil_head(folder: Path) -> None:
    """Make the fp32 artifact say 0 to everything, and record the new file's hash as if it were meant."""
    import hashlib

    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(folder / "fp32.onnx"))
    head = next(node for node in model.graph.node if "logits" in node.output)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] += 50
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    data = model.SerializeToString()
    (folder / "fp32.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["fp32.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_parity_without_data_asks_the_goldens(bundle_folder: Path, tmp_path: Path) -> None:
    """Where the bundle's data is gone the first question alone is answered, and stderr says why."""
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"]["data"] = str(tmp_path / "gone")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = invoke("parity", folder, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["verdict"], report["data"]) == (0, "PASS", None)
    assert all(cell["decisions"] is None for cell in report["cells"])
    assert "decisions are not measured; name some with --data" in result.stderr


def test_parity_text_has_a_row_for_each_candidate(bundle_folder: Path) -> None:
    """Without --json the same is a table that names the candidates and the verdict."""
    result = invoke("parity", bundle_folder, "-c", "onnxruntime:fp32", "-c", "reference:fp32", "--max-drop", "20")
    assert result.exit_code == 0
    assert "onnxruntime:fp32" in result.stdout
    assert "reference:fp32" in result.stdout
    assert "PASS" in result.stdout


def test_bench_reports_what_it_measured(bundle_folder: Path) -> None:
    """`bench --json` has latency, throughput, ratio, cold start, memory, conditions and trust for each candidate."""
    result = invoke("bench", bundle_folder, "--seconds", "0.05", "--cold-runs", "1", "--batch", "2", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["batch"], report["threads"]) == (2, 1)
    assert report["host"]["cores"] == os.cpu_count()
    assert report["trust"]["trusted"] is (not report["trust"]["reasons"])
    assert [row["artifact"] for row in report["rows"]] == ["fp32", "int8"]
    for row in report["rows"]:
        latency, cold = row["latency"], row["cold_start"]
        assert row["size"] == (bundle_folder / f"{row['artifact']}.onnx").stat().st_size
        assert 0 < latency["p50_us"] <= latency["p90_us"] <= latency["p99_us"] <= latency["max_us"]
        assert latency["n"] >= 8
        assert latency["images_per_second"] == pytest.approx(2e6 / latency["p50_us"])
        assert cold["runs"] == 1
        parts = cold["interpreter_ms"] + cold["import_ms"] + cold["load_ms"] + cold["first_run_ms"]
        assert cold["total_ms"] == pytest.approx(parts, rel=0.01)
        assert cold["peak_mb"] > 10
    first = report["rows"][0]["ratio"]
    assert (first["median"], first["low"], first["high"]) == (1, 1, 1)


def test_bench_text_names_candidates_and_conditions(bundle_folder: Path) -> None:
    """Without --json the same is a table with a row for each candidate and the conditions under it."""
    result = invoke("bench", bundle_folder, "-c", "onnxruntime:int8", "--seconds", "0.05", "--cold-runs", "0")
    assert result.exit_code == 0
    assert re.search(r"^onnxruntime:int8 +\d", result.stdout, re.M)
    assert "batch 1, 1 thread(s)" in result.stdout
    assert "measurement: " in result.stdout
    assert "cold start" not in result.stdout


@pytest.mark.parametrize("code", [2, 3])
def test_the_demo_ends_as_its_command_ended(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of the demo's commands fails, the demo names it and leaves with that command's own code."""
    from edgecnn.cli import demo

    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        seen.append(command[3:])
        return SimpleNamespace(returncode=code if command[3] == "export" else 0, stdout="{}")

    monkeypatch.setattr(demo.subprocess, "run", run)
    result = invoke("demo", "-o", tmp_path)
    assert [command[0] for command in seen] == ["train", "export"]
    assert "`edgecnn export` ended with" in result.stderr
    assert result.stdout == ""
    assert result.exit_code == code


def test_a_crash_is_not_hidden(bundle_folder: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is nobody's mistake but the program's comes through as Python's own, exit code 1."""
    from edgecnn.predict import Predictor

    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Predictor, "predict", crash)
    result = CliRunner().invoke(cli, ["predict", str(bundle_folder), str(golden)])
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


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


def test_a_process_that_read_a_zip_leaves_nothing_behind(bundle_folder: Path, golden: Path, tmp_path: Path) -> None:
    """The command, which does not wait for the interpreter to be taken down, removes what it unpacked all the same."""
    packed, temporary = tmp_path / "bundle.zip", tmp_path / "tmp"
    temporary.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(bundle_folder.rglob("*")):
            archive.write(path, path.relative_to(bundle_folder))
    command = [sys.executable, "-m", "edgecnn", "predict", str(packed), str(golden)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(str(golden))
    assert list(temporary.iterdir()) == []


def test_a_closed_pipe_is_no_traceback(bundle_folder: Path) -> None:
    """Where the reader of the answers goes away, as `head` does, the command ends without a traceback."""
    command = f"{sys.executable} -m edgecnn predict {bundle_folder} {bundle_folder / 'goldens'} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
