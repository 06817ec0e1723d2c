"""A training that was stopped, at whatever moment, goes on to the very same weights; what cannot go on is said."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from greys import dataset, net, one_thread, write_npz  # noqa: F401 -- the fixture is for every test here

from edgecnn.cli import cli
from edgecnn.data import DataOptions, Dataset, LabelledImages, open_data
from edgecnn.errors import CheckpointError, EdgecnnError, TrainingError, UsageError
from edgecnn.files import write_atomic
from edgecnn.images import encode_png
from edgecnn.layers import ModelConfig
from edgecnn.nets.compact import compact_config
from edgecnn.runs import Metrics, RunConfig
from edgecnn.training import loop, run, state
from edgecnn.training.augment import LEVELS
from edgecnn.training.checkpoint import Header, load_checkpoint, save_checkpoint
from edgecnn.training.loop import Training
from edgecnn.training.recipe import Recipe
from edgecnn.training.run import train

RECIPE = Recipe(epochs=3, batch_size=16, ema=0.3, augment=LEVELS["strong"], seed=2)
NET = compact_config((6,), depth=1, dropout=0.2)


class Stopped(BaseException):
    """Stands for the end of the process."""


def go(
    out: Path, recipe: Recipe = RECIPE, model: ModelConfig = NET, data: Dataset | None = None, resume: bool = False,
    options: DataOptions | None = None, said: list[str] | None = None,
) -> Metrics:  # fmt: skip
    metrics = train(
        data or dataset(), options or DataOptions(), out, model, recipe, "cpu", lambda epoch: None,
        resume=resume, say=(said if said is not None else []).append,
    )  # fmt: skip
    assert metrics is not None
    return metrics


def came_to(metrics: Metrics) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in metrics.history]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures, which take longer than the training."""
    monkeypatch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)


@pytest.fixture
def save_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the state after every step instead of every two minutes."""
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)


def stop_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """End the training, as a killed process would, right after that many states were saved."""
    real, count = state.save_state, [0]

    def save(path: Path, training: Training, config: run.RunConfig) -> None:
        real(path, training, config)
        count[0] += 1
        if count[0] == saves:
            raise Stopped

    monkeypatch.setattr(state, "save_state", save)


WAYS = {"adam": {}, "sgd": {"optimizer": "sgd"}, "bfloat16": {"amp": True}}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Metrics, bytes]]:
    """Give what a training that nothing stops comes to in each of these ways: its metrics and its checkpoint."""
    folder, found = tmp_path_factory.mktemp("wholes"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)
        patch.setattr(loop, "usable_threads", lambda: 1)
        for way, changes in WAYS.items():
            metrics = go(folder / way, msgspec.structs.replace(RECIPE, **changes))
            found[way] = metrics, (folder / way / "model.safetensors").read_bytes()
    assert len({content for _, content in found.values()}) == len(WAYS)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("saves", range(1, 10))
def test_stopped_after_any_step_it_goes_on_the_same(
    saves: int, way: str, tmp_path: Path, wholes: dict[str, tuple[Metrics, bytes]], monkeypatch: pytest.MonkeyPatch,
    save_at_each_step: None,
) -> None:  # fmt: skip
    """Whichever step was the last one saved, the checkpoint is the same to the last byte, and so is the history."""
    recipe = msgspec.structs.replace(RECIPE, **WAYS[way])
    expected, content = wholes[way]
    with monkeypatch.context() as patch:
        stop_after(patch, saves)
        with pytest.raises(Stopped):
            go(tmp_path / "run", recipe)
    assert (tmp_path / "run" / state.FILE).exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    torch.manual_seed(123)  # what another process's generator happens to be at
    said: list[str] = []
    found = go(tmp_path / "run", recipe, resume=True, said=said)
    assert f"goes on in epoch {saves // 3 + 1}" in said[-1]
    assert (tmp_path / "run/model.safetensors").read_bytes() == content
    assert came_to(found) == came_to(expected)
    assert not (tmp_path / "run" / state.FILE).exists()


def test_stopped_again_and_again_it_goes_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_at_each_step: None
) -> None:
    """A training that is stopped after each two states it saved still comes to the same weights and history."""
    expected = go(tmp_path / "whole")
    stops = 0
    while True:
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            try:
                found = go(tmp_path / "run", resume=True)
            except Stopped:
                stops += 1
                continue
        break
    assert stops == 4
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert came_to(found) == came_to(expected)


def test_a_state_that_misses_a_part_does_not_go_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_at_each_step: None
) -> None:
    """The comparison can tell: a resumed training whose optimizer starts afresh ends with other weights."""
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            go(tmp_path / "run")
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, saved: None)
    go(tmp_path / "run", resume=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() != (tmp_path / "whole/model.safetensors").read_bytes()


def test_stopped_in_the_evaluation_it_goes_on_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training stopped after its last epoch only evaluates again; with a temperature it is folded in once."""
    from edgecnn.training import evaluate

    def calibrated(out: Path, resume: bool = False) -> Metrics | None:
        return train(
            dataset(), DataOptions(), out, NET, RECIPE, "cpu", lambda epoch: None, resume=resume, calibrate=True
        )  # fmt: skip

    expected = calibrated(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_measure", _stop)
        with pytest.raises(Stopped):
            calibrated(tmp_path / "run")
    found = calibrated(tmp_path / "run", resume=True)
    assert found is not None
    assert expected is not None
    assert found.temperature == expected.temperature != 1
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def _stop(*_: object) -> None:
    raise Stopped


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run folder of a training stopped after its first epoch."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            go(out)
    return out


def test_an_unfinished_training_is_not_overwritten(unfinished: Path) -> None:
    """Without --resume a folder with an unfinished training is refused, in one line that names the way on."""
    before = {path.name: path.read_bytes() for path in unfinished.iterdir()}
    with pytest.raises(UsageError, match="holds an unfinished training; go on with it by --resume"):
        go(unfinished)
    assert {path.name: path.read_bytes() for path in unfinished.iterdir()} == before


def test_a_finished_training_is_shown_again(tmp_path: Path) -> None:
    """--resume of a training that has finished gives its metrics and trains nothing; of nothing it starts anew."""
    said: list[str] = []
    metrics = go(tmp_path / "run", resume=True, said=said)
    assert "nothing to resume" in said[0]
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert go(tmp_path / "run", resume=True, said=said) == metrics
    assert "finished already" in said[-1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def _other(**changes: object) -> Callable[[Path], Metrics]:
    return lambda out: go(out, msgspec.convert(msgspec.to_builtins(RECIPE) | changes, Recipe), resume=True)


def _swapped(split: str, what: str) -> Callable[[Path], Metrics]:
    """Resume with the labels, or the pixels, of a split's first two images exchanged: all counts and sums stay."""
    data = dataset()
    part: LabelledImages = getattr(data, split)
    order = np.arange(len(part))
    order[:2] = 1, 0
    part = dataclasses.replace(part, **{what: getattr(part, what)[order]})
    return lambda out: go(out, data=dataclasses.replace(data, **{split: part}), resume=True)


OTHERS: dict[str, tuple[Callable[[Path], Metrics], str]] = {
    "epochs": (_other(epochs=9), "was started with epochs 3, not 9"),
    "lr": (_other(lr=0.5), "was started with lr 0.004, not 0.5"),
    "batch size": (_other(batch_size=8), "was started with batch_size 16, not 8"),
    "optimizer": (_other(optimizer="sgd"), "was started with optimizer adam, not sgd"),
    "ema": (_other(ema=0.0), "was started with ema 0.3, not 0"),
    "net": (lambda out: go(out, model=compact_config((8,), depth=1), resume=True), "another net, compact: its layers differ"),
    "data seed": (lambda out: go(out, options=DataOptions(seed=4), resume=True), "was started with seed 0 for the data, not 4"),
    "data": (
        lambda out: go(out, data=dataclasses.replace(dataset(), test=dataset().val), resume=True),
        "was training on other data or another split",
    ),
    "classes": (lambda out: go(out, data=dataset(classes=2), resume=True), "(the classes differ)"),
    "more training images": (lambda out: go(out, data=dataset(train=50), resume=True), "(the training images or their labels differ)"),
    "training labels": (_swapped("train", "labels"), "(the training images or their labels differ)"),
    "training pixels": (_swapped("train", "store"), "(the training images or their labels differ)"),
    "validation labels": (_swapped("val", "labels"), "(the validation images or their labels differ)"),
    "validation pixels": (_swapped("val", "store"), "(the validation images or their labels differ)"),
    "test labels": (_swapped("test", "labels"), "(the test images or their labels differ)"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_training_cannot_be_resumed_as_this_one(name: str, unfinished: Path) -> None:
    """Other options, nets or data are refused in one line that names what differs; the state stays as it was."""
    attempt, told = OTHERS[name]
    before = (unfinished / state.FILE).read_bytes()
    with pytest.raises(UsageError) as caught:
        attempt(unfinished)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (unfinished / state.FILE).read_bytes() == before
    go(unfinished, resume=True)


def test_a_state_of_an_earlier_version_is_told(unfinished: Path) -> None:
    """A state from before training images were noted is refused in one line, and its configuration can still be read."""
    path = unfinished / state.FILE
    found = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    config = json.loads(found["config"])
    assert config.pop("train_sha256") != config.pop("val_sha256")
    found["config"] = json.dumps(config)
    buffer = io.BytesIO()
    torch.save(found, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    assert msgspec.json.decode(found["config"], type=RunConfig).train_sha256 is None
    with pytest.raises(UsageError, match="by an earlier edgecnn, which did not note its training images; remove"):
        go(unfinished, resume=True)


def test_relabelled_files_are_noticed_however_they_are_read(tmp_path: Path) -> None:
    """A split's fingerprint is numpy's and hashlib's of its own, streamed or not, and moving one file changes it."""
    rng = np.random.default_rng(0)
    for index in range(24):
        file = tmp_path / "data" / "train" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(rng.integers(0, 255, (8, 8, 1), dtype=np.uint8)))
    shutil.copytree(tmp_path / "data/train", tmp_path / "data/test")
    before, streamed = (open_data(str(tmp_path / "data"), DataOptions(stream=stream)) for stream in (False, True))
    for part, other in ((before.train, streamed.train), (before.val, streamed.val)):
        expected = hashlib.sha256(str(part.pixels.shape).encode())
        for image in part.pixels:
            expected.update(hashlib.blake2b(bytes(image.ravel().tolist()), digest_size=16).digest())
        expected.update(b"".join(int(label).to_bytes(8, "little") for label in part.labels))
        plain = dataclasses.replace(part, digests=None)
        assert part.fingerprint() == other.fingerprint() == plain.fingerprint() == expected.hexdigest()
    moved = tmp_path / "data" / before.train.name(0)
    moved.rename(tmp_path / "data/train" / ("b" if moved.parent.name == "a" else "a") / moved.name)
    after = open_data(str(tmp_path / "data"), DataOptions())
    assert after.test.sha256() == before.test.sha256()
    assert after.train.fingerprint() != before.train.fingerprint()


def test_a_damaged_state_is_said(unfinished: Path) -> None:
    """A state cut short, with a flipped bit, or of something else is one line, wherever the damage is."""
    path = unfinished / state.FILE
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"x", good[:20], good[:-1], good[: len(good) // 2], b"no state at all" * 9]
    for place in rng.integers(0, len(good), 20):
        damaged.append(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
    training = Training(net(dataset()), dataset(), RECIPE)
    config = msgspec.json.decode((unfinished / "config.json").read_bytes(), type=run.RunConfig)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"resume\.pt: is damaged; remove it to start anew$"):
            state.load_state(path, training, config)
    path.write_bytes(good)
    state.load_state(path, Training(run.build_net(NET, config.preprocess, 3), dataset(), RECIPE), config)
    with pytest.raises(CheckpointError, match="does not hold this net"):
        state.load_state(path, Training(net(dataset(), widths=(9,)), dataset(), RECIPE), config)


@pytest.mark.parametrize(
    ("amp", "known", "told"), [(True, False, True), (True, True, False), (True, None, False), (None, False, False)]
)
def test_a_cpu_without_bfloat16_is_told_of(
    amp: bool | None, known: bool | None, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed precision on a CPU that is known not to have the instructions is said in one line, and trains all the same."""
    monkeypatch.setattr("edgecnn.host.has_bfloat16", lambda: known)
    said: list[str] = []
    go(tmp_path / "run", msgspec.structs.replace(RECIPE, amp=amp, epochs=1), said=said)
    lines = [line for line in said if "bfloat16" in line]
    assert lines == ["--amp: this CPU has no bfloat16 instructions; training will be slower, not faster"] * told


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loss becomes NaN in the second epoch, the first one's checkpoint is whole and the error is one line."""
    out, real = tmp_path / "run", loop.summed_loss

    def broken(*arguments: torch.Tensor) -> torch.Tensor:
        nan = (out / "model.safetensors").exists()
        return real(*arguments) * (float("nan") if nan else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "summed_loss", broken)
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2: use a smaller --lr") as caught:
        go(out)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(out).build() is not None
    assert not (out / "metrics.json").exists()


def test_no_room_on_the_disk_is_said_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write for which there is no room names the file, leaves its old content and no half of the new."""
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_cleared_up(unfinished: Path) -> None:
    """Half-written files of processes that are gone are removed when the training goes on; those of living ones stay."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = f".resume.pt.{int(gone.stdout)}.tmp", f".resume.pt.{os.getppid()}.tmp"
    for name in (dead, alive):
        (unfinished / name).write_bytes(b"half")
    go(unfinished, resume=True)
    assert not (unfinished / dead).exists()
    assert (unfinished / alive).exists()


@pytest.mark.parametrize(
    ("labels", "side", "told"), [("xyz", 6, "knows other classes (3 against 3 here"), ("abc", 8, "sees images of 8x8x1; use --image-size 8")]
)  # fmt: skip
def test_a_teacher_of_something_else_is_refused(labels: str, side: int, told: str, tmp_path: Path) -> None:
    """A teacher of other classes or of images of another size is one line."""
    data = dataset(side=side)
    header = Header(model=NET, preprocess=data.preprocess, labels=tuple(labels))
    save_checkpoint(tmp_path / "teacher/model.safetensors", run.build_net(NET, data.preprocess, 3), header)
    with pytest.raises(UsageError) as caught:
        go(tmp_path / "run", msgspec.structs.replace(RECIPE, teacher=str(tmp_path / "teacher")))
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_training_with_a_teacher_goes_on_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is read again when the training goes on, and is left as it was."""
    data = dataset()
    header = Header(model=NET, preprocess=data.preprocess, labels=data.labels)
    save_checkpoint(tmp_path / "teacher/model.safetensors", run.build_net(NET, data.preprocess, 3), header)
    recipe = msgspec.structs.replace(RECIPE, teacher=str(tmp_path / "teacher"))
    go(tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            go(tmp_path / "run", recipe)
    go(tmp_path / "run", recipe, resume=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


# A real `edgecnn train` that saves its state after every step, and that a signal strikes at a stated moment.
DRIVER = """
import os, sys
from edgecnn import files
from edgecnn.training import loop, evaluate, state
loop._SAVE_SECONDS, loop.usable_threads = 0.0, lambda: 1
evaluate._write_pictures = lambda *_: None
epoch, batch, where, number = sys.argv[1:5]
at = int(epoch), int(batch)
def strike(training):
    if (training.progress.epoch, training.progress.batch) == at:
        os.kill(os.getpid(), int(number))
step, save = loop.Training._step, state.save_state
def struck_step(training, given):
    strike(training)
    return step(training, given)
def struck_save(path, training, config):
    files.os.replace = lambda *names: (strike(training), os.rename(*names))  # all is written but the name
    save(path, training, config)
if where == "step":
    loop.Training._step = struck_step
elif where == "save":
    state.save_state = struck_save
del sys.argv[1:5]
from edgecnn.cli import main
main()
"""
WORDS = ("--widths", "4", "--depth", "1", "--epochs", "3", "--batch-size", "16", "--lr", "0.01", "--json")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the .npz of a tiny set."""
    return write_npz(tmp_path_factory.mktemp("data") / "greys.npz", dataset())


def real(
    data: str, out: Path, at: tuple[int, int, str, int], *more: str, before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own until it is struck: in epoch and batch, in a step or a save, by a signal."""
    command = [sys.executable, "-c", DRIVER, *map(str, at), "train", data, "-o", str(out), *WORDS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=120,
        preexec_fn=before or (lambda: signal.signal(signal.SIGINT, signal.default_int_handler)),
    )  # fmt: skip


@pytest.mark.slow
def test_real_processes_that_are_killed_go_on_the_same(arrays: str, tmp_path: Path) -> None:
    """Killed while it saves in the first epoch, and again in a step of the third, a training ends with the same bytes."""
    run_, whole = tmp_path / "run", tmp_path / "whole"
    assert real(arrays, run_, (1, 2, "save", signal.SIGKILL)).returncode == -signal.SIGKILL
    assert {path.suffix for path in run_.iterdir() if path.name.startswith(".")} == {".tmp"}
    again = real(arrays, run_, (3, 1, "step", signal.SIGKILL), "--resume")
    assert again.returncode == -signal.SIGKILL
    assert "goes on in epoch 1" in again.stderr
    assert load_checkpoint(run_).build() is not None
    found = CliRunner().invoke(cli, ["train", arrays, "-o", str(run_), *WORDS, "--resume"])
    assert "goes on in epoch 3" in found.stderr
    expected = CliRunner().invoke(cli, ["train", arrays, "-o", str(whole), *WORDS])
    assert (run_ / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    both = [json.loads(result.stdout) for result in (found, expected)]
    for metrics in both:
        for row in (metrics, *metrics["history"]):
            row.pop("seconds")
    assert both[0] == both[1]
    assert sorted(path.name for path in run_.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
def test_an_interrupted_training_names_the_way_on(arrays: str, tmp_path: Path) -> None:
    """Ctrl-C in the second epoch ends with 130, names --resume, and leaves a state and a whole checkpoint."""
    out = tmp_path / "run"
    done = real(arrays, out, (2, 1, "step", signal.SIGINT))
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert "with --resume" in done.stderr
    assert (out / state.FILE).exists()
    assert load_checkpoint(out).build() is not None


@pytest.mark.slow
def test_a_full_disk_is_one_line(arrays: str, tmp_path: Path) -> None:
    """Where the state does not fit any more, a real training ends with one line and leaves a whole checkpoint."""
    out = tmp_path / "run"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or it would kill, not fail
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # between checkpoint and state

    # With steps of a single batch the first checkpoint comes before the first state.
    done = real(arrays, out, (9, 9, "", 0), "--batch-size", "48", before=limit)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"edgecnn: {out / state.FILE}: File too large"
    assert "Traceback" not in done.stderr
    assert load_checkpoint(out).build() is not None
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


def test_errors_of_resuming_are_the_users() -> None:
    """What is raised here leaves the command with exit code 2."""
    assert {kind.exit_code for kind in (CheckpointError, UsageError, TrainingError)} == {EdgecnnError.exit_code} == {2}
