"""Two real processes that train together over gloo and the loopback: under torchrun where that matters, else forked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from greys import dataset, one_thread, write_npz  # noqa: F401 -- the fixture is for every test here
from ranks import Ranks, free_port, parent
from safetensors.numpy import load_file

from edgecnn.cli import cli as edgecnn_cli
from edgecnn.runs import RunConfig
from edgecnn.training import loop, state
from edgecnn.training.loop import Training

# The report's pictures are left out, they take longer than the training.
DRIVER = """
import os, signal
from edgecnn.training import evaluate, loop, state
evaluate._write_pictures = lambda *_: None
loop.usable_threads, loop._SAVE_SECONDS = lambda: 1, float(os.environ["SAVE_SECONDS"])
real, left = state.save_state, [int(os.environ["SAVES"])]
def save(*given):
    real(*given)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
state.save_state = save
from edgecnn.cli import main
main()
"""
OPTIONS = ("--widths", "4", "--depth", "1", "--dropout", "0", "--batch-size", "16", "--lr", "0.01", "--augment", "strong", "--json")  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    """Give the line that trains with two processes."""
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    return [sys.executable, *launch, str(driver), *asked(folder, *more)]


def asked(folder: Path, *more: str) -> list[str]:
    """Give what edgecnn is asked for."""
    return ["train", write_npz(folder / "greys.npz", dataset(train=96)), *OPTIONS, *more]


def environment(saves: int = 0) -> dict[str, str]:
    """Give the variables; the first process dies right after it has saved its state so many times, if any."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "SAVES": str(saves), "SAVE_SECONDS": "-1" if saves else "120"}


def by_torchrun(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Train with two processes."""
    words, variables = command(folder, *more), environment()
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=180, env=variables)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with parent() as opened:
        yield opened


def go(ranks: Ranks, folder: Path, *more: str, saves: int = 0) -> SimpleNamespace:
    """Train with two processes that are forked."""
    ranks.start(DRIVER, ["edgecnn", *asked(folder, *more)], environment(saves), folder / "said")
    return ranks.wait()


def alone(folder: Path, *more: str) -> Result:
    """Train with this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)
        return CliRunner().invoke(edgecnn_cli, asked(folder, *more))


@dataclass(frozen=True)
class Run:
    """What a training printed, and where."""

    folder: Path
    metrics: dict[str, Any]
    said: str

    def agrees_with(self, other: Run) -> bool:
        """Say whether history and weights are the same but for rounding."""
        rows = [[(row["loss"], row["val_loss"]) for row in run.metrics["history"]] for run in (self, other)]
        first, second = (load_file(run.folder / "model.safetensors") for run in (self, other))
        return (
            self.metrics["val_accuracy"] == other.metrics["val_accuracy"]
            and np.allclose(*rows, rtol=1e-4)
            and first.keys() == second.keys()
            and all(np.allclose(second[name], value, rtol=1e-3, atol=1e-5) for name, value in first.items())
        )


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Give trainings of one and of two processes that nothing stops."""
    folder, found = tmp_path_factory.mktemp("wholes"), {}
    for count in (1, 2):
        out = folder / str(count)
        words = ("--epochs", "3", "-o", str(out))
        done = alone(folder, *words) if count == 1 else by_torchrun(folder, *words)
        assert (done.exit_code if isinstance(done, Result) else done.returncode) == 0, done.stderr
        found[count] = Run(out, json.loads(done.stdout), done.stderr)
    return found


@pytest.mark.slow
def test_two_real_processes_train_as_one(wholes: dict[int, Run]) -> None:
    """Under torchrun two processes print one result and come to one process's weights, but for rounding."""
    for count, run in wholes.items():
        assert run.said.count("epoch 3/3") == run.said.count("augmentation: ") == 1
        assert json.loads((run.folder / "config.json").read_text())["processes"] == count
    assert wholes[2].agrees_with(wholes[1])


def ranks_of(launcher: int) -> dict[int, int]:
    """Find the processes that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        for variable in variables:
            if parent == launcher and variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(folder.name)
    return found


LONG = ("--epochs", "2000", "--patience", "2000", "-o")


def wait_for(path: Path) -> None:
    """Wait for a training's first state."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_lost(returncode: int, printed: str, err: str, out: Path) -> None:
    """Hold what is left of a training to its one line and its checkpoint."""
    assert returncode != 0
    assert printed == ""
    (line,) = [line for line in err.splitlines() if line.startswith("edgecnn: ")]
    assert "process" in line
    assert line.endswith("go on with --resume")
    from edgecnn.training.checkpoint import load_checkpoint

    assert load_checkpoint(out).build() is not None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes through /proc")
def test_a_first_process_that_is_killed_ends_the_other_under_torchrun(tmp_path: Path) -> None:
    """With the first of two killed, the other says so in one line and ends, and the checkpoint is whole."""
    out = tmp_path / "run"
    launcher = subprocess.Popen(
        command(tmp_path, *LONG, str(out)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        wait_for(out / "resume.pt")
        ids = ranks_of(launcher.pid)
        assert set(ids) == {0, 1}
        os.kill(ids[0], signal.SIGKILL)
        printed, err = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    check_lost(launcher.returncode, printed, err, out)
    assert not Path(f"/proc/{ids[1]}").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_first(ranks: Ranks, tmp_path: Path) -> None:
    """With the other of two killed, the first says so in one line and ends, and the checkpoint is whole."""
    out = tmp_path / "run"
    words = ["edgecnn", *asked(tmp_path, *LONG, str(out))]
    ids = ranks.start(DRIVER, words, environment(), tmp_path / "said")
    wait_for(out / "resume.pt")
    os.kill(ids[1], signal.SIGKILL)
    done = ranks.wait()
    check_lost(done.returncode, done.stdout, done.stderr, out)


@pytest.fixture(scope="module")
def stopped(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Give the run folders of one and of two processes, the first of which died in the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    words = ("--epochs", "3", "-o")
    died = go(ranks, folder, *words, str(folder / "2"), saves=8)
    assert died.returncode != 0
    assert died.stdout == ""
    with pytest.MonkeyPatch.context() as patch:
        real = state.save_state
        left = iter(range(7, -1, -1))

        def save(path: Path, training: Training, config: RunConfig) -> None:
            real(path, training, config)
            if next(left) == 0:
                raise KeyboardInterrupt

        patch.setattr(state, "save_state", save)
        patch.setattr(loop, "_SAVE_SECONDS", -1.0)
        assert alone(folder, *words, str(folder / "1")).exit_code == 130
    return {count: folder / str(count) for count in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_a_stopped_training_goes_on_with_as_many_processes_or_others(
    before: int, after: int, ranks: Ranks, wholes: dict[int, Run], stopped: dict[int, Path], tmp_path: Path
) -> None:
    """Two go on to the very same weights; with another number it is said, and the weights are the same but for rounding."""
    out = tmp_path / "run"
    shutil.copytree(stopped[before], out)
    words = ("--epochs", "3", "-o", str(out), "--resume")
    done = alone(tmp_path, *words) if after == 1 else go(ranks, tmp_path, *words)
    assert (done.exit_code if isinstance(done, Result) else done.returncode) == 0, done.stderr
    assert done.stderr.count("goes on in epoch 2") == 1
    told = f"{before} before, {after} now: the result is the same but for rounding and for which values dropout drops"
    assert done.stderr.count(told) == (before != after)
    found = Run(out, json.loads(done.stdout), done.stderr)
    assert found.agrees_with(wholes[after])
    same = (out / "model.safetensors").read_bytes() == (wholes[2].folder / "model.safetensors").read_bytes()
    assert same is (before == after)
    if before == after:
        for row in (*found.metrics["history"], *wholes[2].metrics["history"]):
            row["seconds"] = 0
        assert found.metrics["history"] == wholes[2].metrics["history"]
    assert json.loads((out / "config.json").read_text())["processes"] == after


@pytest.mark.slow
def test_a_mistake_is_said_once(ranks: Ranks, tmp_path: Path) -> None:
    """Batches too small for the processes are one line from one of them."""
    done = go(ranks, tmp_path, "-o", str(tmp_path / "run"), "--batch-size", "2")
    (line,) = [line for line in done.stderr.splitlines() if "too small" in line]
    assert line.startswith("edgecnn: batches of 2 images are too small for 2 processes")
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()
