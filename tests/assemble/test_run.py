"""The run and its data: unfinished, damaged, moved, changed or gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from assemble.quick import Run, beside, invoke

from edgecnn.data import DataOptions, Dataset, LabelledImages
from edgecnn.errors import CheckpointError, DataError
from edgecnn.images import Pixels
from edgecnn.runs import open_run_data, read_run


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.mark.parametrize("name", ["metrics.json", "config.json"])
def test_an_unfinished_run_is_said(name: str, run_copy: Path, out: Path) -> None:
    """A run without its metrics or configuration is not exported, and the message names what is missing."""
    (run_copy / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"{name} is missing; give a folder in which `edgecnn train` has finished"
    ):
        read_run(run_copy)
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert name in result.stderr
    assert beside(out) == set()


def test_a_run_without_its_checkpoint_is_said(run_copy: Path, out: Path) -> None:
    """A run whose weights are gone is one clear line and exit 2."""
    (run_copy / "model.safetensors").unlink()
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "model.safetensors" in result.stderr
    assert beside(out) == set()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"edgecnn": 1}'])
def test_a_damaged_configuration_is_said(content: bytes, run_copy: Path) -> None:
    """A configuration that is not one is an error that names the run."""
    (run_copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_run(run_copy)
    assert str(run_copy) in str(caught.value)


Change = Callable[[dict[str, Any]], None]


def npz(dataset: Dataset, path: Path, change: Change | None = None) -> str:
    """Write a run's data as the arrays that another place might hold."""
    arrays: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        part: LabelledImages = getattr(dataset, name)
        arrays |= {f"x_{name}": part.pixels.copy(), f"y_{name}": part.labels.copy()}
    if change:
        change(arrays)
    np.savez(path, **arrays)
    return str(path)


def one_pixel(arrays: dict[str, Pixels]) -> None:
    arrays["x_test"][3, 4, 4, 0] ^= 1


def one_label(arrays: dict[str, Any]) -> None:
    arrays["y_test"][5] = (arrays["y_test"][5] + 1) % 10


def one_fewer(arrays: dict[str, Any]) -> None:
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][1:], arrays["y_test"][1:]


def other_order(arrays: dict[str, Any]) -> None:
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][::-1], arrays["y_test"][::-1]


def one_more_class(arrays: dict[str, Any]) -> None:
    arrays["y_train"][0] = 10


def test_the_same_data_elsewhere_is_accepted(run: Run, tmp_path: Path) -> None:
    """Data that has moved, even into another container, is known again by its test split."""
    config, _, dataset = run
    moved = open_run_data(config, npz(dataset, tmp_path / "moved.npz"))
    np.testing.assert_array_equal(moved.test.pixels, dataset.test.pixels)


@pytest.mark.parametrize("change", [one_pixel, one_label, one_fewer, other_order, one_more_class])
def test_data_that_changed_is_refused(change: Change, run: Run, tmp_path: Path) -> None:
    """One pixel, one label, one image or one class of difference in the test data stops the export."""
    source = npz(run[2], tmp_path / "changed.npz", change)
    with pytest.raises(DataError, match="not the data this run was trained on"):
        open_run_data(run[0], source)


def test_changed_data_on_the_command_line_is_one_line(run_folder: Path, run: Run, tmp_path: Path, out: Path) -> None:
    """Exporting with other data is refused in one line that says how to name the right data, with exit 2."""
    result = invoke("export", run_folder, "-o", out, "--data", npz(run[2], tmp_path / "changed.npz", one_pixel))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "--data" in result.stderr
    assert beside(out) == set()


def test_data_that_is_gone_is_one_line(run_copy: Path, tmp_path: Path, out: Path) -> None:
    """A run whose data is no longer where it was is refused with the place that was looked at."""
    config = json.loads((run_copy / "config.json").read_text())
    config["data"] = str(tmp_path / "moved-away")
    (run_copy / "config.json").write_text(json.dumps(config))
    result = invoke("export", run_copy, "-o", out)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "moved-away: is not there" in result.stderr


def test_options_of_the_data_are_those_of_the_run(run: Run) -> None:
    """Size and colour come from the run, so that defaults which have changed since do not matter."""
    config, _, dataset = run
    assert config.data_options == DataOptions()
    assert dataset.preprocess.shape == config.preprocess.shape
    bigger = msgspec.structs.replace(config, preprocess=msgspec.structs.replace(config.preprocess, height=9, width=9))
    with pytest.raises(DataError, match="its test split differs"):
        open_run_data(bigger)
