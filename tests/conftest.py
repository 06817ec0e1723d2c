"""Fixtures that every test may use: one small trained run and its bundle, made once for all workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Loopback
from once import made_once

# Two workers on two cores: each keeps to its own, or torch and ONNX Runtime would start two threads in both.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER and hasattr(os, "sched_setaffinity"):
    _CPUS = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CPUS[int(_WORKER.removeprefix("gw")) % len(_CPUS)]})


# Their modules make what takes many seconds: at the end of the queue two workers would share, and make, it.
_TOGETHER = ("test_walkthroughs.py", "test_packaging.py", "test_processes_real.py", "test_third_party.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slowest tests first, so that no worker is left alone with one at the end."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        return item.get_closest_marker("slow") is None, item.path.name not in _TOGETHER

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"


@pytest.fixture(scope="session", autouse=True)
def short_latencies() -> Iterator[None]:
    """Have exports time what they wrote for a moment, not for a second each: nothing here is about these figures."""
    from edgecnn import assemble

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "_LATENCY_SECONDS", 0.05)
        yield


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without the report and its pictures, which take longer than a small net."""
    monkeypatch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)


@pytest.fixture(scope="session")
def run_folder(shared_tmp: Path) -> Path:
    """Return a run folder: a small net trained on the digits for a few seconds. Read only."""

    def make(folder: Path) -> None:
        from edgecnn.data import DataOptions, open_data
        from edgecnn.nets.compact import compact_config
        from edgecnn.training.recipe import Recipe
        from edgecnn.training.run import train

        options = DataOptions()
        net = compact_config((8, 16), depth=1)
        train(open_data("digits", options), options, folder, net, Recipe(epochs=12), "cpu", lambda epoch: None)

    return made_once(shared_tmp, "run", make)


@pytest.fixture(scope="session")
def bundle_folder(shared_tmp: Path, run_folder: Path) -> Path:
    """Return the bundle of `run_folder`, exported for any CPU, int8 throughout. Read only: copy it before changing it."""

    def make(folder: Path) -> None:
        from steady import steady_races

        from edgecnn.assemble import ExportOptions, export_bundle
        from edgecnn.runs import open_run_data, read_run

        config, metrics = read_run(run_folder)
        # A net this small may lose more than a point: what it loses is not what these tests are about.
        options = ExportOptions(max_drop=0.2)
        with steady_races():
            export_bundle(run_folder, config, metrics, open_run_data(config), folder, options)

    return made_once(shared_tmp, "bundle", make)


@pytest.fixture
def steady() -> Iterator[None]:
    """Export without a stopwatch: every layer in int8, and faster than float."""
    from steady import steady_races

    with steady_races():
        yield


@pytest.fixture
def bundle_copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """Give a copy of the bundle that a test may damage."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_folder, folder)
    return folder


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Start OpenSSH's own server on loopback."""
    started = Loopback(tmp_path_factory.mktemp("sshd"))
    yield started
    started.close()


@pytest.fixture
def box(loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """Give a box with an empty home folder, on which nothing is deployed; edgecnn's ssh knows it as `box`."""
    loopback.begin(tmp_path / "home of box")
    monkeypatch.setenv("EDGECNN_SSH", f"-F '{loopback.config}'")
    return loopback
