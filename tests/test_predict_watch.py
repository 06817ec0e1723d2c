"""A watched folder, look by look: what is given, when, and what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecnn.errors import UsageError
from edgecnn.sources.watch import Watch

Step = Callable[[], object]


class Script:
    """Stands for the pause between two looks: does the next step, and stops after the last."""

    def __init__(self, *steps: Step) -> None:
        self.steps = iter(steps)
        self.done = 0

    def wait(self, interval: float) -> bool:
        """Do the next step; say whether to stop."""
        step = next(self.steps, None)
        if step is None:
            return True
        step()
        self.done += 1
        return False


def nothing() -> None:
    """Let a look pass."""


def watched(folder: Path, *steps: Step, told: list[str] | None = None) -> list[tuple[int, str]]:
    """Watch through the steps; return after which step each file was given."""
    watch = Watch(folder, tell=None if told is None else told.append)
    script = Script(*steps)
    watch._stopped = script  # type: ignore[assignment]
    return [(script.done, path.relative_to(folder).as_posix()) for path in watch]


def write(path: Path, size: int) -> Step:
    def step() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(bytes(size))

    return step


def test_a_file_is_given_once_when_it_has_stopped_growing(tmp_path: Path) -> None:
    """A file that grows is waited for, and given once, at the first look that finds it unchanged."""
    path = tmp_path / "a.png"
    found = watched(tmp_path, write(path, 10), write(path, 10), write(path, 1), nothing, nothing, nothing)
    assert found == [(4, "a.png")]


def test_what_was_there_is_not_given_until_it_is_written_again(tmp_path: Path) -> None:
    """Images from before are not given; one that is replaced, even by one of its size, is."""
    for name in ("old.png", "again.png"):
        write(tmp_path / name, 10)()

    def replace() -> None:
        write(tmp_path / ".new", 10)()
        (tmp_path / ".new").replace(tmp_path / "again.png")

    assert watched(tmp_path, nothing, nothing) == []
    assert watched(tmp_path, nothing, replace, nothing, nothing, replace, nothing) == [
        (3, "again.png"),
        (6, "again.png"),
    ]


def test_an_empty_file_has_not_arrived(tmp_path: Path) -> None:
    """A file that holds nothing yet is waited for, however long."""
    path = tmp_path / "a.png"
    assert watched(tmp_path, path.touch, nothing, nothing, write(path, 5), nothing) == [(5, "a.png")]


def test_what_is_deleted_is_forgotten(tmp_path: Path) -> None:
    """A file that goes before it was given never is; one of the same name that comes later is given anew."""
    path = tmp_path / "a.png"
    steps = [
        write(path, 5),
        path.unlink,
        nothing,
        write(path, 5),
        nothing,
        path.unlink,
        nothing,
        write(path, 5),
        nothing,
    ]
    assert watched(tmp_path, *steps) == [(5, "a.png"), (9, "a.png")]


def test_memory_does_not_grow_with_what_has_passed_through(tmp_path: Path) -> None:
    """After a hundred files that came and went the watch remembers none."""
    steps: list[Step] = []
    for number in range(100):
        path = tmp_path / f"{number}.png"
        steps += [write(path, 5), nothing, path.unlink]
    watch = Watch(tmp_path)
    watch._stopped = Script(*steps, nothing)  # type: ignore[assignment]
    assert len(list(watch)) == 100
    assert watch._given == {}


def test_folders_below_count_and_what_tools_write_meanwhile_does_not(tmp_path: Path) -> None:
    """Images in new folders below are given; hidden files and folders, and other suffixes, are not."""
    arrivals = ["day/night/a.png", ".a.png.x7Gh", "b.png.part", ".tmp/c.png", "__x/d.png", "e.txt", "f.JPG"]
    steps = [write(tmp_path / name, 5) for name in arrivals]
    assert watched(tmp_path, *steps, nothing, nothing) == [(2, "day/night/a.png"), (8, "f.JPG")]


def test_files_are_given_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    """Of files that are ready at the same look the older come first, and of equally old ones the first by name."""

    def arrive() -> None:
        for name, second in (("a.png", 30), ("d.png", 10), ("c.png", 20), ("b.png", 20)):
            write(tmp_path / name, 5)()
            os.utime(tmp_path / name, ns=(second * 10**9, second * 10**9))

    assert [name for _, name in watched(tmp_path, arrive, nothing)] == ["d.png", "b.png", "c.png", "a.png"]


def test_a_folder_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    """While a share is gone the watch goes on, says so once, and does not give anew what the share held."""
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    write(folder / "old.png", 5)()
    told: list[str] = []
    steps: list[Step] = [
        write(folder / "a.png", 5), nothing, lambda: folder.rename(away), nothing, nothing, lambda: away.rename(folder),
        write(folder / "b.png", 5), nothing,
    ]  # fmt: skip
    assert watched(folder, *steps, told=told) == [(2, "a.png"), (8, "b.png")]
    assert told == [
        f"{folder}: cannot be read for now (No such file or directory); waiting for it",
        f"{folder}: can be read again",
    ]


@pytest.mark.parametrize("name", ["gone", "file.png"])
def test_what_is_no_folder_cannot_be_watched(tmp_path: Path, name: str) -> None:
    """A folder that is not there, and a file, are refused at once and by name."""
    (tmp_path / "file.png").touch()
    with pytest.raises(UsageError, match=f"{name}: cannot be watched"):
        Watch(tmp_path / name)


def test_the_command_answers_what_arrives_and_ends_with_ctrl_c(bundle_folder: Path, tmp_path: Path) -> None:
    """`--watch` answers the images named, then each that arrives, a broken one too; Ctrl-C gives a summary and 130."""
    golden = bundle_folder / "goldens" / "000.png"
    incoming = tmp_path / "in"
    incoming.mkdir()
    shutil.copy(golden, incoming / "before.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecnn", "predict", bundle_folder, golden, "--watch", incoming, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        answers = [json.loads(process.stdout.readline())]
        for name, content in (("new.png", golden.read_bytes()), ("broken.png", b"not an image")):
            (incoming / name).write_bytes(content)
            answers.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert [Path(answer["path"]).name for answer in answers] == ["000.png", "new.png", "broken.png"]
    assert answers[1]["top"] == answers[0]["top"]
    assert "not an image" in answers[2]["error"]
    assert "Traceback" not in err
    assert err.splitlines()[0] == f"edgecnn: watching {incoming}; Ctrl-C ends it"
    assert err.splitlines()[-1] == "edgecnn: interrupted: 2 images answered, 1 bad"
