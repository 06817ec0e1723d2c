"""Studies that go on, are interrupted, shared, or somebody else's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import optuna
import pytest
from click.testing import CliRunner
from search.play import Acted, play_search, usual_curve

from edgecnn.cli import cli
from edgecnn.errors import UsageError
from edgecnn.search import study
from edgecnn.search.result import SearchReport
from edgecnn.search.space import Settings


def test_a_study_goes_on_and_is_the_same_for_the_same_seed(acted: Acted, tmp_path: Path) -> None:
    """Two and then two trials are the four of one search; none is tried twice; other settings are refused."""
    play_search(tmp_path / "a", 2)
    report = play_search(tmp_path / "a", 2)
    settings = [row.settings for row in report.rows]
    assert settings == [row.settings for row in play_search(tmp_path / "b", 4).rows]
    assert len(set(settings)) == 4
    with pytest.raises(UsageError, match="had epochs 4, not 5"):
        play_search(tmp_path / "a", 1, epochs=5)


def test_an_interrupted_search_is_whole(acted: Acted, tmp_path: Path) -> None:
    """Ctrl-C in the third trial leaves two of them in table and picture, and the same command goes on."""

    def interrupted(settings: Settings, epochs: int) -> list[float]:
        if len(acted.trained) == 3:
            raise KeyboardInterrupt
        return usual_curve(settings, epochs)

    acted.curve = interrupted
    arguments = ["search", "digits", "-o", str(tmp_path), "--trials", "5", "--epochs", "2"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert rows[2]["reason"] == "interrupted"
    assert not [entry for entry in (tmp_path / "trials").iterdir() if entry.name.startswith(".")]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 8
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


TWO = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from search.play import Acted, play_search
from edgecnn.search import trial
play = Acted()
trial.train_trial, trial.measure_trial = play.train, play.measure
slow = play.export
def export(*given):
    time.sleep(0.3)
    return slow(*given)
trial.export_int8 = export
play_search(Path(sys.argv[2]), 4)
print(len(play.trained))
"""


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Two processes that begin together run four different trials each, and both are in the table at the end."""
    command = [sys.executable, "-c", TWO, str(Path(__file__).parents[1]), str(tmp_path / "s")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out.strip()) == (0, "4"), err
    report = msgspec.json.decode((tmp_path / "s" / "study.json").read_bytes(), type=SearchReport)
    assert [row.number for row in report.rows] == list(range(8))
    assert {row.state for row in report.rows} == {"complete"}
    assert len({row.settings for row in report.rows}) == 8
    kept = {int(folder.name) for folder in (tmp_path / "s" / "trials").iterdir()}
    assert kept == {row.number for row in report.rows if row.front}


def test_a_folder_of_something_else_is_left_alone(acted: Acted, tmp_path: Path) -> None:
    """A folder that holds something else is refused and not written to; so is a file that is no database."""
    (tmp_path / "study.json").write_text('{"kind": "another"}')
    with pytest.raises(UsageError, match="something else than a study"):
        play_search(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.json"]
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match="not a database"):
        play_search(tmp_path)
    assert not acted.trained


def test_a_foreign_study_is_refused(acted: Acted, tmp_path: Path) -> None:
    """A study that someone else keeps in the storage, with the same name, is not written to."""
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    theirs = optuna.create_study(storage=url, study_name="mine", directions=["maximize", "minimize"])
    theirs.optimize(lambda one: (one.suggest_float("x", 0, 1), 1.0), n_trials=1)
    optuna.create_study(storage=url, study_name="single")
    for name in ("mine", "single"):
        with pytest.raises(UsageError, match="not one of edgecnn"):
            play_search(tmp_path / "s", storage=url, name=name)
    assert len(optuna.load_study(study_name="mine", storage=url).trials) == 1


def test_a_shared_storage_works_as_the_folders_own(acted: Acted, tmp_path: Path) -> None:
    """With --storage the trials of two folders are of one study, and the address in the files has no password."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    play_search(tmp_path / "one", 2, storage=url, name="both")
    report = play_search(tmp_path / "two", 2, storage=url, name="both")
    assert len(report.rows) == 4
    assert not (tmp_path / "two" / "study.db").exists()
    assert study.shown_storage("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
