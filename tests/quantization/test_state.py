"""A climb on disk: what comes back, and what does not count because it is another's or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quantization import small

from edgecnn.quantization import state as module
from edgecnn.quantization.ladder import Rung
from edgecnn.quantization.placement import Placement, Search
from edgecnn.quantization.rungs import Attempt
from edgecnn.quantization.state import FILE, State

RANGES = {"x": (-1.0, 1.0 / 3.0), "ar": (0.0, 1e-9), "mean": (0.0, 12345.678)}


def attempt(seed: int = 0, **changes: Any) -> Attempt:
    return Attempt(small.chain(seed), RANGES, **{"floats": ("a", "g"), "method": "entropy", **changes})


def rung(name: str) -> Rung:
    return Rung(
        name=name, floats=("a",), sqnr_db=31.4, bytes=1234, speed=small.speed(0.5), decisions=small.decided(3), seconds=0.1
    )  # fmt: skip


def search() -> Search:
    one = Placement(floats=("a",), sqnr_db=30.0, bytes=1000, speed=small.speed(0.5), front=True)
    return Search(tried=(one,), chosen=one, reason="because")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three rungs, of which the second and third have one float model."""
    state = State(tmp_path / "climb", "key")
    state.add_search(search())
    state.add("min-max", rung("min-max"), attempt())
    state.add("entropy", rung("entropy"), attempt(1))
    state.add("a in float", rung("a in float"), attempt(1, floats=()))
    return tmp_path / "climb"


def test_all_of_a_climb_comes_back(folder: Path) -> None:
    """Figures, float models, ranges to the last bit, placements, methods and the search are those that were put in."""
    state = State(folder, "key")
    assert state.names == ("min-max", "entropy", "a in float")
    assert state.search == search()
    for name, seed, floats in (("min-max", 0, ("a", "g")), ("entropy", 1, ("a", "g")), ("a in float", 1, ())):
        assert state.rung(name, Rung) == rung(name)
        found = state.attempt(name)
        assert found is not None
        assert found.model == small.chain(seed)
        assert (dict(found.ranges), found.floats, found.method) == (RANGES, floats, "entropy")


def test_a_model_of_two_rungs_is_one_file(folder: Path) -> None:
    """Rungs that differ in placement alone share their float model on the disk."""
    assert len(list(folder.glob("*.float.onnx"))) == 2


def test_what_was_not_climbed_is_not_there(folder: Path) -> None:
    """A rung of another name has neither figures nor an attempt."""
    state = State(folder, "key")
    assert (state.rung("QAT", Rung), state.attempt("QAT")) == (None, None)
    assert State(folder / "nowhere", "key").names == ()


def test_another_key_starts_anew(folder: Path) -> None:
    """Another model, data set or recipe sees nothing, and writes over what there was."""
    state = State(folder, "other")
    assert (state.names, state.search, state.attempt("min-max")) == ((), None, None)
    state.add("min-max", rung("min-max"), attempt(2))
    assert State(folder, "key").names == ()
    assert State(folder, "other").names == ("min-max",)


def test_a_rung_climbed_again_takes_the_place_of_the_first(folder: Path) -> None:
    """There is one entry a name, with what was measured last."""
    state = State(folder, "key")
    state.add("min-max", Rung(name="min-max", sqnr_db=1.0), attempt(3))
    again = State(folder, "key")
    assert sorted(again.names) == ["a in float", "entropy", "min-max"]
    assert again.rung("min-max", Rung) == Rung(name="min-max", sqnr_db=1.0)
    found = again.attempt("min-max")
    assert found is not None
    assert found.model == small.chain(3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def strange(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "further": 1}))


@pytest.mark.parametrize(
    "damage",
    [cut, strange, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff\xfe{}"), lambda path: path.write_text("[]")],
    ids=["cut", "strange", "gone", "empty", "not UTF-8", "a list"],
)  # fmt: skip
def test_a_damaged_list_is_no_list(damage: Callable[[Path], object], folder: Path) -> None:
    """A file that is not what was written counts as none; the climb begins again and can be kept."""
    damage(folder / FILE)
    state = State(folder, "key")
    assert (state.names, state.search) == ((), None)
    state.add("min-max", rung("min-max"), attempt())
    assert State(folder, "key").names == ("min-max",)


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")], ids=["cut", "gone", "empty"])
def test_a_damaged_model_makes_its_rungs_unclimbed(damage: Callable[[Path], object], folder: Path) -> None:
    """The rungs of a model that is not what was written do not count; those of another do."""
    name = json.loads((folder / FILE).read_text())["entries"][0]["model"]
    damage(folder / name)
    state = State(folder, "key")
    assert (state.rung("min-max", Rung), state.attempt("min-max")) == (None, None)
    assert state.rung("entropy", Rung) == rung("entropy")
    assert state.attempt("entropy") is not None


def test_a_damaged_model_is_written_again(folder: Path) -> None:
    """A rung climbed once more mends the file that was damaged."""
    name = json.loads((folder / FILE).read_text())["entries"][0]["model"]
    cut(folder / name)
    State(folder, "key").add("min-max", rung("min-max"), attempt())
    assert State(folder, "key").attempt("min-max") is not None


def test_figures_of_another_form_are_measured_again(folder: Path) -> None:
    """A rung whose figures cannot be read, or are too many, has none."""
    record = json.loads((folder / FILE).read_text())
    record["entries"][0]["rung"]["sqnr_db"] = "much"
    record["entries"][1]["rung"]["further"] = 1
    (folder / FILE).write_text(json.dumps(record))
    state = State(folder, "key")
    assert state.rung("min-max", Rung) is None
    assert state.rung("entropy", Rung) is None
    assert state.rung("a in float", Rung) == rung("a in float")


def test_killed_while_writing_the_list_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are written before the list that names them, so that a kill in between loses one rung and no more."""
    real = module.write_atomic

    def killed(path: Path, data: bytes) -> None:
        if path.name == FILE:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        State(folder, "key").add("QAT", rung("QAT"), attempt(7))
    state = State(folder, "key")
    assert state.names == ("min-max", "entropy", "a in float")
    assert all(state.attempt(name) is not None for name in state.names)
    assert len(list(folder.glob("*.float.onnx"))) == 3
