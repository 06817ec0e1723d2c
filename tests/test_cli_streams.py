"""Streams that a command may find closed or full, and what it leaves behind when it goes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

COMMANDS = {
    "text": ("inspect", "BUNDLE"),
    "json": ("inspect", "BUNDLE", "--json"),
    "lines": ("predict", "BUNDLE", "GOLDENS"),
    "json lines": ("predict", "BUNDLE", "GOLDENS", "--json"),
}


def shell(line: str, *arguments: str, bundle: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run edgecnn with these arguments as a shell does; `line` holds "$@" where the command stands."""
    words = [sys.executable, "-m", "edgecnn", *arguments]
    words = [{"BUNDLE": str(bundle), "GOLDENS": str(bundle / "goldens")}.get(word, word) for word in words]
    environment = {**os.environ, **more}
    return subprocess.run(
        ["sh", "-c", line, "sh", *words], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line(bundle_folder: Path, name: str) -> None:
    """Where stdout goes to a disk that is full, one line says so, and the exit code is 2."""
    done = shell('"$@" > /dev/full', *COMMANDS[name], bundle=bundle_folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgecnn: the output cannot be written (No space left on device): make room")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_the_null_device(bundle_folder: Path, name: str, closed: str) -> None:
    """A command that is started without stdout or stderr does its work, and says on the other what it has to say."""
    done = shell(f'"$@" {closed}', *COMMANDS[name], bundle=bundle_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) is (closed == "2>&-")


def test_a_closed_stream_is_no_files_number(bundle_folder: Path, tmp_path: Path) -> None:
    """A file that is written while stdout is closed holds what was meant for it and nothing else."""
    code = "import edgecnn.cli, os; edgecnn.cli._open_streams(); print(os.open('/dev/null', os.O_RDONLY) > 2, flush=True, file=open('said', 'w'))"
    subprocess.run(["sh", "-c", '"$@" >&- <&-', "sh", sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "said").read_text() == "True\n"


def test_a_closed_stream_is_there_for_what_is_started(tmp_path: Path) -> None:
    """A process that is started where stdin and stdout are closed has them, and no file of its own gets their numbers."""
    child = "import os; print(os.open('/dev/null', os.O_RDONLY) > 2, file=open('said', 'w'))"
    code = f"import edgecnn.cli, subprocess, sys; edgecnn.cli._open_streams(); subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    subprocess.run(["sh", "-c", '"$@" >&- <&-', "sh", sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "said").read_text() == "True\n"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="nothing here fails to be read as a bad disk does")
def test_what_cannot_be_read_is_not_called_the_output(bundle_folder: Path) -> None:
    """An input that fails in the middle, as on a bad disk, is one line which does not send people to make room."""
    done = shell('"$@"', "serve", "BUNDLE", "--token-file", "/proc/self/mem", bundle=bundle_folder)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgecnn: reading or writing failed (Input/output error): ")


@pytest.mark.parametrize("arguments", [("nowhere.png",), ("GOLDENS",), ("--key", "KEY", "GOLDENS")])
def test_nothing_unpacked_is_left(bundle_folder: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A zip's folder is gone when the command is, whether it ended well or not."""
    packed, unpacked, key = tmp_path / "b.zip", tmp_path / "unpacked", tmp_path / "key"
    key.write_text("no key")
    with zipfile.ZipFile(packed, "w") as archive:
        for file in bundle_folder.rglob("*"):
            archive.write(file, file.relative_to(bundle_folder))
    unpacked.mkdir()
    given = [str(key) if one == "KEY" else one for one in arguments]
    done = shell('"$@"', "predict", str(packed), *given, bundle=bundle_folder, TMPDIR=str(unpacked))
    assert done.returncode == (0 if arguments == ("GOLDENS",) else 2), done.stderr
    assert list(unpacked.iterdir()) == []
