"""The command line as a whole: help, version, completion and the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import edgecnn, invoke

from edgecnn import __version__
from edgecnn.cli import COMMANDS, cli


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
