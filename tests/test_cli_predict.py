"""`edgecnn predict` as a user meets it: images in order, bad ones among them, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from commands import edgecnn, invoke, one_line

from edgecnn.bundle import Bundle
from edgecnn.cli import cli


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


def test_a_crash_is_not_hidden(bundle_folder: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is nobody's mistake but the program's comes through as Python's own, exit code 1."""
    from edgecnn.predict import Predictor

    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Predictor, "predict", crash)
    result = CliRunner().invoke(cli, ["predict", str(bundle_folder), str(golden)])
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


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
