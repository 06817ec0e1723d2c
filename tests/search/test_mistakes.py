"""What cannot be searched, or stored, is told in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from search.play import Acted

from edgecnn.cli import cli


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("nosuch://host/x", "no storage of that kind"),
        ("nonsense", "not the address of a database"),
        ("sqlite:////nonexistent/folder/x.db", "unable to open database file"),
        ("postgresql+asyncpgx://me:secret@host/x", "no storage of that kind"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/x", ""),
    ],
)
def test_bad_storages_are_one_line(storage: str, said: str, acted: Acted, tmp_path: Path) -> None:
    """A storage that cannot be used is told in one line, without its password, and nothing is trained."""
    done = CliRunner().invoke(
        cli, ["search", "digits", "-o", str(tmp_path / "s"), "--epochs", "1", "--storage", storage]
    )
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.output
    assert not acted.trained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "0"], "--trials"),
        (["--image-sizes", "a,b"], "not a list such as"),
        (["--image-sizes", "2,8"], "from 4 to 1024"),
        (["--image-sizes", "8", "--image-size", "8"], "either --image-size or"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--target", "cuda"], "--target cuda: has no int8"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    """What cannot be searched is one line and exit 2."""
    done = CliRunner().invoke(cli, ["search", "digits", "-o", str(tmp_path / "s"), *arguments])
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


def test_without_optuna_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Optuna is missing the command names the extra."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = CliRunner().invoke(cli, ["search", "digits", "-o", str(tmp_path / "s")])
    assert done.exit_code == 2
    assert "pip install 'edgecnn[search]'" in done.stderr
