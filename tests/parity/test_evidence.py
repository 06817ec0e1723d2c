"""Recordings as files: they come back bit for bit, and a file that is not whole is refused whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from recordings import FP32, INT8, TORCH, recording

from edgecnn.bundle import Bundle
from edgecnn.data.of_bundle import find_test_images
from edgecnn.errors import DamagedError, DataError, EdgecnnError, SchemaError, UsageError
from edgecnn.parity import evidence
from edgecnn.parity.compare import bundle_samples
from edgecnn.parity.evidence import HEAD, INDEX, read_evidence, write_evidence
from edgecnn.parity.judge import judge
from edgecnn.parity.record import record
from edgecnn.parity.recording import DecodingRecord, Recording, SideArrays
from edgecnn.parity.replay import compare_recordings
from edgecnn.parity.subject import Subject
from edgecnn.parity.verdict import Verdict
from edgecnn.spec import BackendRef, Tolerance

Members = dict[str, bytes]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Write the small recording to a file."""
    path = tmp_path / "parity.zip"
    write_evidence(path, recording())
    return path


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: Members, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def resum(content: Members) -> Members:
    """Make the index say the sizes and hashes of what is there, as a forger or a careless tool would."""
    index = json.loads(content[INDEX])
    for name in index["files"]:
        data = content[name]
        index["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**content, INDEX: json.dumps(index).encode()}


def file_of(content: Members, what: str, side: str | None = None) -> str:
    """Return the name of an array's file."""
    found = [row["file"] for row in json.loads(content[INDEX])["arrays"] if (row["what"], row["side"]) == (what, side)]
    return str(found[0])


def npy(array: np.ndarray[Any, Any], allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def same(left: Any, right: Any) -> bool:
    """Compare two arrays to the bit, with their dtype."""
    return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())


def assert_same(left: Recording, right: Recording) -> None:
    assert left.head == right.head
    assert set(left.sides) == set(right.sides)
    for name in ("float64", "float32", "golden_float64"):
        assert same(getattr(left, name), getattr(right, name))
    for ref, ours in left.sides.items():
        theirs = right.sides[ref]
        assert set(ours.answers) == set(theirs.answers)
        assert all(same(array, theirs.answers[name]) for name, array in ours.answers.items())
        for name in ("on_truth", "goldens", "recorded"):
            here, there = getattr(ours, name), getattr(theirs, name)
            assert (here is None) == (there is None)
            assert here is None or same(here, there)
        assert set(ours.again) == set(theirs.again)
        assert all(
            same(a, b) for name, pair in ours.again.items() for a, b in zip(pair, theirs.again[name], strict=True)
        )


def test_a_recording_comes_back_bit_for_bit(written: Path) -> None:
    """What is read is what was written: the head, and every array with its dtype, to the bit."""
    read = read_evidence(written)
    assert_same(recording(), read)
    assert read.sides[FP32].answers["logits"].dtype == np.float32
    assert read.float64 is not None
    assert read.float64.dtype == np.float64


def test_answers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    """A NaN and an infinity of a faulty side come back with their bits: they are the evidence."""
    made = recording()
    made.sides[FP32].answers["logits"][0] = [np.nan, -np.inf, -0.0]
    write_evidence(tmp_path / "x.zip", made)
    assert_same(made, read_evidence(tmp_path / "x.zip"))


def test_an_answer_of_another_width_is_kept(tmp_path: Path) -> None:
    """A candidate that gives four values where there are three classes is evidence of a fault, and comes back as it is."""
    made = recording()
    made.sides[FP32] = SideArrays(answers={"logits": np.zeros((40, 4), dtype=np.float32)})
    write_evidence(tmp_path / "x.zip", made)
    assert_same(made, read_evidence(tmp_path / "x.zip"))


def test_a_failed_side_and_no_truth_are_kept(tmp_path: Path) -> None:
    """A side with an error and no arrays, absent labels, truth and decoding come back as they were."""
    made = recording(labels=False)
    sides = list(made.head.sides)
    sides[2] = msgspec.structs.replace(sides[2], error="did not load", sha256=None)
    head = msgspec.structs.replace(
        made.head, sides=tuple(sides), truth=None, truth_samples=(), decoding=DecodingRecord(off=(0, 3))
    )
    arrays = {**{ref: replace(side, on_truth=None) for ref, side in made.sides.items()}, INT8: SideArrays()}
    write_evidence(tmp_path / "x.zip", Recording(head=head, sides=arrays))
    read = read_evidence(tmp_path / "x.zip")
    assert read.head == head
    assert read.sides[INT8] == SideArrays()
    assert (read.float64, read.float32, read.golden_float64, read.pictures) == (None, None, None, None)


def test_the_arrays_can_be_read_without_edgecnn(written: Path) -> None:
    """Unzipped, an answer is a plain `.npy` whose name says the side, and equal arrays are stored once."""
    content = members(written)
    name = file_of(content, "answers", TORCH)
    assert "torch" in name
    assert np.array_equal(np.load(io.BytesIO(content[name])), recording().sides[TORCH].answers["logits"])
    assert len(set(content.values())) == len(content)
    rows = json.loads(content[INDEX])["arrays"]
    assert len({row["file"] for row in rows}) == len(rows) - 2  # the repeated run's, and torch's truth again


def test_the_same_recording_is_the_same_file(tmp_path: Path, written: Path) -> None:
    """Written twice, a recording is the same bytes."""
    write_evidence(tmp_path / "again.zip", recording())
    assert (tmp_path / "again.zip").read_bytes() == written.read_bytes()


def test_ten_thousand_answers_of_three_sides_are_small(tmp_path: Path) -> None:
    """Logits of 10,000 images by 10 classes of 3 sides, with their names and labels, take about a megabyte."""
    made = recording(n=10_000)
    classes = tuple("0123456789")
    random = np.random.default_rng(0)
    logits = random.normal(size=(10_000, 10)) * 4
    answers = [(logits + random.normal(size=logits.shape) * 1e-6).astype(np.float32) for _ in range(3)]
    arrays = {ref: SideArrays(answers={"logits": one}) for ref, one in zip(made.sides, answers, strict=True)}
    labels = tuple(logits.argmax(axis=1).tolist())
    samples = msgspec.structs.replace(made.head.samples, labels=labels)
    head = msgspec.structs.replace(made.head, classes=classes, samples=samples, truth=None, truth_samples=())
    write_evidence(tmp_path / "x.zip", Recording(head=head, sides=arrays))
    assert (tmp_path / "x.zip").stat().st_size < 1.25e6


def test_pictures_are_not_written(tmp_path: Path, written: Path) -> None:
    """A recording with pictures is the same file as one without: they may be private, and are for thumbnails only."""
    pictures = {0: np.zeros((8, 8, 3), dtype=np.uint8)}
    write_evidence(tmp_path / "x.zip", replace(recording(), pictures=pictures))
    assert (tmp_path / "x.zip").read_bytes() == written.read_bytes()


def test_names_that_utf8_does_not_know_are_escaped(tmp_path: Path) -> None:
    """A sample whose file name holds a stray byte is written with that byte as an escape, not lost with the rest."""
    made = recording()
    names = (os.fsdecode(b"caf\xe9.png"), *made.head.samples.names[1:])
    head = msgspec.structs.replace(made.head, samples=msgspec.structs.replace(made.head.samples, names=names))
    write_evidence(tmp_path / "x.zip", replace(made, head=head))
    assert read_evidence(tmp_path / "x.zip").head.samples.names[0] == r"caf\udce9.png"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk fails at the last moment the file that was there is still whole, and nothing lies beside it."""
    before = written.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_evidence(written, recording(seed=1))
    assert written.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    """A recording that contradicts itself, or holds texts where numbers belong, is refused before there is a file."""
    made = recording()
    made.sides[FP32].answers["logits"] = made.sides[FP32].answers["logits"][:-1]
    with pytest.raises(DataError, match=r"onnxruntime:fp32 has not one answer .* not written"):
        write_evidence(tmp_path / "x.zip", made)
    made = recording()
    made.sides[FP32].answers["words"] = np.array(["a"] * 40, dtype=object)
    with pytest.raises(DataError, match="onnxruntime:fp32: words: is of dtype object"):
        write_evidence(tmp_path / "x.zip", made)
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_is_noticed(written: Path, tmp_path: Path) -> None:
    """With any one byte inverted, of some hundred through the whole file, it is refused or reads as it was."""
    data, made = written.read_bytes(), recording()
    path = tmp_path / "flipped.zip"
    refused = []
    for place in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert_same(made, read_evidence(path))
        except EdgecnnError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(path) in line and "\n" not in line for line in refused)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused(written: Path, share: float) -> None:
    """A part of a file, also none of it, is refused and says to copy it again."""
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedError, match="copy it again"):
        read_evidence(written)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder, another kind of file and another zip each say so."""
    with pytest.raises(UsageError, match="is not there"):
        read_evidence(tmp_path / "none.zip")
    with pytest.raises(UsageError, match="is not there"):
        read_evidence(tmp_path)
    (tmp_path / "text").write_text("PK")
    with pytest.raises(DamagedError, match="no recording"):
        read_evidence(tmp_path / "text")
    with pytest.raises(UsageError, match="a zip, but no recording"):
        read_evidence(pack(tmp_path / "other.zip", {"recording.json": b"{}"}))


def _drop(content: Members) -> Members:
    del content[file_of(content, "answers", FP32)]
    return content


def _swap(content: Members) -> Members:
    """Exchange two sides' answers, which have the same shape."""
    one, other = file_of(content, "answers", TORCH), file_of(content, "answers", INT8)
    content[one], content[other] = content[other], content[one]
    return content


@pytest.mark.parametrize(
    "damage", [_drop, _swap, lambda content: {**content, "more.txt": b""}, lambda content: {**content, HEAD: b"{}"}]
)
def test_members_are_held_to_the_index(written: Path, damage: Callable[[Members], Members]) -> None:
    """A member that is missing, swapped with another, added or replaced is noticed."""
    pack(written, damage(members(written)))
    with pytest.raises(DamagedError):
        read_evidence(written)


def test_a_name_that_is_there_twice_is_refused(written: Path) -> None:
    """Two members of one name, of which readers differ in which they take, are refused."""
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(written, "a") as archive:
        archive.writestr(HEAD, members(written)[HEAD])
    with pytest.raises(DamagedError, match="other files than its index says"):
        read_evidence(written)


def test_bombs_are_refused_before_they_are_unpacked(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose members unpack to more than the limit is refused without opening one; so is one too large itself."""
    monkeypatch.setattr(evidence, "_LARGEST", 200_000)
    pack(written, {**members(written), "zeros.npy": bytes(300_000)})
    assert written.stat().st_size < 200_000
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("was opened"))
        with pytest.raises(DamagedError, match="unpacks to more"):
            read_evidence(written)
    monkeypatch.setattr(evidence, "_LARGEST", 100)
    with pytest.raises(DamagedError, match="which no recording is"):
        read_evidence(written)


def test_a_member_that_lies_about_its_size_is_cut_off(written: Path) -> None:
    """A member of a gigabyte whose entry claims a few bytes is never unpacked further than it was promised."""
    content = members(written)
    name = file_of(content, "answers", FP32)
    true = len(content[name])
    content[name] = content[name] + bytes(1 << 20)
    pack(written, content)
    data = bytearray(written.read_bytes())
    long, short = (true + (1 << 20)).to_bytes(4, "little"), true.to_bytes(4, "little")
    assert data.count(long) == 2
    written.write_bytes(bytes(data).replace(long, short))
    with pytest.raises(DamagedError):
        read_evidence(written)


@pytest.mark.parametrize("name", [INDEX, HEAD])
def test_another_schema_version_is_refused(written: Path, name: str) -> None:
    """A version from the future names both versions and says what to do."""
    content = members(written)
    content[name] = content[name].replace(b'"schema_version": 1', b'"schema_version": 7')
    pack(written, resum(content) if name == HEAD else content)
    with pytest.raises(SchemaError, match="schema version 7 is unknown, this edgecnn reads 1; install a newer edgecnn"):
        read_evidence(written)


def change_head(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = members(path)
    head = json.loads(content[HEAD])
    change(head)
    content[HEAD] = json.dumps(head).encode()
    pack(path, resum(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head: head.pop("host"), "host"),
        (lambda head: head.update(more=1), "more"),
        (lambda head: head["samples"].update(n="many"), "n"),
        (lambda head: head["tolerance"].pop("max_drop"), "the tolerance lacks max_drop"),
        (lambda head: head["tolerance"].update(noise_multiple=1e9), "nothing would be refused"),
    ],
)
def test_a_head_with_missing_or_wrong_fields_is_refused(
    written: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """A field that is missing, unknown, of another type or senseless is named."""
    change_head(written, change)
    with pytest.raises(SchemaError, match=said):
        read_evidence(written)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head: head["samples"]["names"].pop(), "39 names for 40 samples"),
        (lambda head: head["samples"]["labels"].pop(), "39 labels for 40"),
        (lambda head: head["samples"]["labels"].__setitem__(0, 3), "a label is not one of the 3 classes"),
        (lambda head: head["classes"].append("newt"), r"shape \(20, 3\), not \(20, 4\)"),
        (lambda head: head.update(answer="scores"), "torch has neither the answer 'scores'"),
        (lambda head: head.update(truth=None), "a truth is named"),
        (lambda head: head["truth_samples"].pop(), r"the truth has shape \(20, 3\), not \(19, 3\)"),
        (lambda head: head["sides"].append(head["sides"][0]), "two of one name"),
        (lambda head: head["sides"].pop(), "is no side of it"),
    ],
)
def test_a_head_that_contradicts_the_arrays_is_refused(
    written: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Names, labels, classes, sides and truth that do not fit the arrays, under right hashes, are told."""
    change_head(written, change)
    with pytest.raises(DamagedError, match=said):
        read_evidence(written)


@pytest.mark.parametrize(
    ("what", "side", "array", "said"),
    [
        ("answers", FP32, np.zeros((41, 3), dtype=np.float32), "has not one answer for each of 40"),
        ("answers", TORCH, np.zeros((40, 4), dtype=np.float32), r"the answer has shape \(40, 4\)"),
        ("on_truth", INT8, np.zeros((19, 3), dtype=np.float32), "on the truth has shape"),
        ("recorded", INT8, np.zeros((4, 3), dtype=np.float32), "recorded has shape"),
        ("again", FP32, np.zeros((8, 4), dtype=np.float32), r"repeat has shape \(8, 4\)"),
        ("float64", None, np.zeros((20, 3), dtype=np.float32), "the truth is not in float64"),
        ("float64", None, np.zeros((0, 3)), "the truth has shape"),
        ("float64", None, np.full((20, 3), np.nan), "not finite"),
        ("float32", None, np.zeros(20, dtype=np.float32), "torch float32 has shape"),
    ],
)
def test_arrays_that_contradict_the_head_are_refused(
    written: Path, what: str, side: str | None, array: np.ndarray[Any, Any], said: str
) -> None:
    """Arrays of other shapes or dtypes than the head's samples and classes have, under right hashes, are told."""
    content = members(written)
    content[file_of(content, what, side)] = npy(array)
    pack(written, resum(content))
    with pytest.raises(DamagedError, match=said):
        read_evidence(written)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("was run",))


def test_no_array_can_run_code_or_promise_more_than_it_holds(written: Path) -> None:
    """A pickled array is refused unread, and a header that claims a terabyte is refused before it is made room for."""
    content = members(written)
    name = file_of(content, "answers", FP32)
    good = content[name]
    pickled = np.empty(1, dtype=object)
    pickled[0] = _Bomb()
    assert b"reduce" in pickle.dumps(_Bomb.__reduce__)
    broken = good.replace(b"(40, 3)", b"(40, 3(")
    huge = good.replace(b"(40, 3), }          ", b"(99999999, 99999), }")
    assert broken != good != huge
    assert len(huge) == len(good)
    for data in (npy(pickled, allow_pickle=True), broken, huge, good[:-1], good + b"\0", b"nothing", b""):
        pack(written, resum({**content, name: data}))
        with pytest.raises(DamagedError, match="copy it again"):
            read_evidence(written)


def test_an_index_that_names_an_array_twice_or_of_nothing_is_refused(written: Path) -> None:
    """Two arrays for one place, or a further run without its plain one, are not chosen from but refused."""
    content = members(written)
    for change in (
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.remove(next(row for row in rows if row["what"] == "again")),
        lambda rows: rows.remove(next(row for row in rows if row["what"] == "again_plain")),
        lambda rows: rows[-1].update(file="elsewhere.npy"),
        lambda rows: rows[0].update(side=FP32),
        lambda rows: rows[-1].update(side=None),
    ):
        index = json.loads(content[INDEX])
        change(index["arrays"])
        pack(written, {**content, INDEX: json.dumps(index).encode()})
        with pytest.raises(DamagedError):
            read_evidence(written)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_bundle_judged_from_its_file_is_judged_alike(bundle_folder: Path, tmp_path: Path, labelled: bool) -> None:
    """What is recorded of a real bundle, on test images or its goldens, gives the same report after a trip through a file."""
    bundle = Bundle.open(bundle_folder)
    images, _ = find_test_images(bundle.manifest, None)
    assert images is not None
    samples = bundle_samples(bundle, images if labelled else None)
    candidates = [BackendRef(backend="onnxruntime", artifact=name) for name in ("fp32", "int8")]
    made = record(Subject.of_bundle(bundle), BackendRef(backend="torch"), candidates, samples)
    write_evidence(tmp_path / "x.zip", made)
    read = read_evidence(tmp_path / "x.zip")
    assert judge(read) == judge(made)
    assert judge(read).verdict is Verdict.PASS
    strict = Tolerance(noise_multiple=0.01, max_drop=0.001)
    assert judge(read, strict).verdict is Verdict.FAIL
    again = record(Subject.of_bundle(bundle), BackendRef(backend="torch"), candidates, samples)
    report = compare_recordings(read, again)
    assert all("to the bit" in cell.computation.reason for cell in report.cells)
