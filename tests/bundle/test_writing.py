"""Bundles that are written: whole or not at all, whatever fails and whenever it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from small_bundle import NET, contents, describe, record, write
from trees import tree

from edgecnn import bundle as bundle_module
from edgecnn.bundle import MANIFEST, Bundle, create_bundle
from edgecnn.errors import DamagedError, EdgecnnError, UsageError
from edgecnn.manifest import FileRecord, Manifest


def make(
    path: Path, name: str = "made", fail: BaseException | None = None, files: dict[str, FileRecord] | None = None
) -> None:
    """Write a small bundle with edgecnn; `fail` is raised before its end, `files` replace the hashes recorded."""
    with create_bundle(path) as writer:
        for file, data in contents().items():
            assert writer.add(file, data) == file
        manifest = msgspec.convert({**describe(contents()), "name": name}, type=Manifest)
        writer.finish(msgspec.structs.replace(manifest, files=files or writer.files()))
        if fail:
            raise fail


def test_a_written_bundle_is_what_was_added(tmp_path: Path) -> None:
    """What was added is in the folder with its hash in the manifest, parents are made, and nothing else is left."""
    make(tmp_path / "new" / "place" / "bundle")
    assert [path.name for path in (tmp_path / "new" / "place").iterdir()] == ["bundle"]
    found = tree(tmp_path / "new" / "place" / "bundle")
    document = json.loads(found.pop(MANIFEST))
    assert found == contents()
    assert document["files"] == {name: record(data) for name, data in contents().items()}


def test_finish_reads_the_bundle_back(tmp_path: Path) -> None:
    """A bundle whose manifest does not fit its files is refused while it is written, and is not put in place."""
    files = {name: FileRecord(size=len(data), sha256=record(data)["sha256"]) for name, data in contents().items()}
    wrong = {**files, "net.onnx": FileRecord(size=len(NET), sha256="0" * 64)}
    for recorded in (wrong, {**files, "more.bin": FileRecord(size=1, sha256="0" * 64)}):
        with pytest.raises(DamagedError):
            make(tmp_path / "bundle", files=recorded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_leaves_things_as_they_were(tmp_path: Path, error: BaseException, old: bool) -> None:
    """An exception or an interrupt leaves the old bundle untouched, or nothing, and no temporary."""
    if old:
        make(tmp_path / "bundle", "old")
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        make(tmp_path / "bundle", "new", error)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if old else [])


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    """A bundle takes the place of an older one, whole, also where that one was damaged, and of an empty folder."""
    (tmp_path / "bundle").mkdir()
    make(tmp_path / "bundle", "first")
    (tmp_path / "bundle" / "net.onnx").write_bytes(b"damaged")
    make(tmp_path / "bundle", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = Bundle.open(tmp_path / "bundle")
    bundle.verify()
    assert bundle.manifest.name == "second"


FOREIGN = {
    "a folder of photos": {"photo.jpg": b"x"},
    "a web app": {MANIFEST: b'{"name": "my app", "icons": []}', "index.html": b"<html>"},
    "a broken manifest": {MANIFEST: b"\xff\xfe not JSON", "thesis.tex": b"x"},
    "a manifest one folder down": {f"inner/{MANIFEST}": b"{}"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_folders_are_not_replaced(tmp_path: Path, name: str) -> None:
    """A folder that is no bundle of edgecnn's, although it may hold a manifest.json, is neither replaced nor changed."""
    for file, data in FOREIGN[name].items():
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).write_bytes(data)
    with pytest.raises(UsageError, match="out: exists and is not a bundle, so it will not be replaced"):
        make(tmp_path / "out")
    assert tree(tmp_path / "out") == FOREIGN[name]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_are_not_replaced(tmp_path: Path) -> None:
    """A file in the place of the bundle is neither replaced nor changed."""
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="will not be replaced"):
        make(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("name", [".", ".."])
def test_the_working_folder_is_not_replaced(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be moved aside because one stands in it is the user's mistake, not a crash."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(EdgecnnError):
        make(Path(name))


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from edgecnn.bundle import create_bundle
with create_bundle(Path(sys.argv[1])) as writer:
    writer.add("net.onnx", b"half of it")
    writer.add("goldens/000.png", b"x")
    print("ready", flush=True)
    time.sleep(60)
"""
ROOT = str(Path(bundle_module.__file__).resolve().parents[1])


@pytest.mark.parametrize("old", [True, False])
def test_a_killed_write_leaves_the_old_bundle_or_nothing(tmp_path: Path, old: bool) -> None:
    """A process that is killed in the middle of writing leaves the old bundle whole in its place, or nothing."""
    path = tmp_path / "bundle"
    if old:
        make(path, "old")
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path), ROOT], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert path.exists() is old
    if old:
        bundle = Bundle.open(path)
        bundle.verify()
        assert bundle.manifest.name == "old"
    make(path, "after")  # what the killed one left behind is in nobody's way
    assert Bundle.open(path).manifest.name == "after"


# In a child of its own, because it forks: kills a write at its first, second, third ... step on the file system.
# A killed process loses nothing that it handed to the system, so that fsync, which is slow, is left out.
STEPS = """
import os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from bundle.test_writing import make
from edgecnn.bundle import Bundle
os.fsync = lambda descriptor: None
STEP = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
steps, limit = 0, None
def count(event, args):
    global steps
    if limit is not None and event in STEP:
        steps += 1
        if steps == limit:
            os.kill(os.getpid(), signal.SIGKILL)
def state(place):
    if not place.exists():
        return "nothing"
    try:
        bundle = Bundle.open(place)
        bundle.verify()
        return bundle.manifest.name
    except Exception as error:
        return type(error).__name__
sys.addaudithook(count)
base = Path(sys.argv[1])
make(base / "old", "old")
for number in range(1, 1000):
    folder = base / str(number)
    shutil.copytree(base / "old", folder / "bundle")
    child = os.fork()
    if not child:
        limit = number
        make(folder / "bundle", "new")
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(number, *(state(place) for place in (folder / "bundle", *folder.glob(".bundle.*.old"))), flush=True)
    if not killed:
        break
"""


def test_a_write_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    """At whichever step on the file system a write is killed, the old or the new bundle is whole, and never a half."""
    command = [sys.executable, "-c", STEPS, str(tmp_path), ROOT, str(Path(__file__).parents[1])]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    states = [line.split()[1:] for line in out.splitlines()]
    assert len(states) > 20
    assert {state[0] for state in states} <= {"old", "nothing", "new"}
    assert states[0] == ["old"]
    assert states[-1] == ["new"]
    for state in states:
        assert "new" in state or "old" in state, f"killed there, neither bundle was left: {state}"
    kinds = [state[0] for state in states]
    assert kinds == sorted(kinds, key=["old", "nothing", "new"].index)


def test_what_a_killed_export_left_is_cleared_up(tmp_path: Path) -> None:
    """The next write restores a bundle that a killed process had moved aside and removes what it had half written."""
    gone = 2**22 + 12345  # above any process number that Linux gives out
    old, half = tmp_path / f".out.{gone}.old", tmp_path / f".out.{gone}.tmp"
    write(old)
    half.mkdir()
    (half / "fp32.onnx").write_bytes(b"half")
    other = tmp_path / ".outer.1.tmp"
    other.mkdir()
    with pytest.raises(RuntimeError, match="stop"), create_bundle(tmp_path / "out"):
        raise RuntimeError("stop")
    assert Bundle.open(tmp_path / "out").manifest.name == "small"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".outer.1.tmp", "out"]
