"""Commands run in this process or in one of their own, and the one line that they say when used wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from edgecnn.cli import cli


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
