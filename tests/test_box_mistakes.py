"""Mistakes made on a box with verify, tune, bench and predict: each is told at once, in one line, and costs no figure."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgecnn.backends import providers
from edgecnn.bench import over_time
from edgecnn.bench.over_time import bench_soak
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.device import candidates, places, verify
from edgecnn.device import tune as tuning
from edgecnn.device.profile import look_up
from edgecnn.device.verify import Verification, parse_verification
from edgecnn.errors import DeviceError, UsageError
from edgecnn.parity import Verdict
from edgecnn.report.verify import verify_text
from edgecnn.sources import NoImageError
from edgecnn.sources.files import find
from edgecnn.spec import BackendRef

FP32, INT8 = BackendRef.parse("onnxruntime:fp32"), BackendRef.parse("onnxruntime:int8")
NO_FILE = "/dev/null/report"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave out plugins and profiles that happen to be here, and the process in which memory is measured."""
    monkeypatch.setattr(providers, "plugins", dict)
    monkeypatch.setattr(verify, "start_child", lambda *_: {"peak_mb": 50.0, "total_ms": 300.0})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))


@pytest.fixture(scope="module")
def verified(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """Verify once."""
    path = tmp_path_factory.mktemp("report") / "box.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "plugins", dict)
        patch.setattr(verify, "start_child", lambda *_: {"peak_mb": 50.0, "total_ms": 300.0})
        call("verify", bundle_folder, "--seconds", "0.1", "--report", path)
    return parse_verification(path.read_bytes(), "box.json")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def one_line(result: Result) -> str:
    """Return the one line of a command that did nothing but refuse."""
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def judged(found: Verification, **changes: Any) -> Verification:
    """Give every artifact the same verdict, and change fields of the whole."""
    verdict = changes.pop("verdict", Verdict.PASS)
    rows = tuple(msgspec.structs.replace(one, verdict=verdict) for one in found.artifacts)
    return msgspec.structs.replace(found, artifacts=rows, **changes)


# Numbers


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "arguments", [("verify", "--seconds"), ("tune", "--seconds"), ("bench", "--seconds"), ("bench", "--paced")]
)
def test_what_is_no_number_is_refused(bundle_folder: Path, arguments: tuple[str, str], number: str) -> None:
    """Infinity and what is no number are out of every range, and nothing begins."""
    command, option = arguments
    line = one_line(call(command, bundle_folder, f"{option}={number}"))
    assert f"'{option}': {number} is not in the range" in line


def test_threads_beyond_reason_are_refused(bundle_folder: Path) -> None:
    """A million threads are not started."""
    assert "not in the range 0<=x<=4096" in one_line(call("bench", bundle_folder, "--threads", 1_000_000))


# Places to write to


@pytest.mark.parametrize("arguments", [("verify", "--report"), ("bench", "--soak=1s", "--html")])
def test_nothing_is_written_into_the_bundle(bundle_copy: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A report that would lie in the bundle, also by a link, is refused: the bundle would no longer be what was signed."""
    (tmp_path / "link").symlink_to(bundle_copy)
    command, *options = arguments
    for place in (bundle_copy / "box.json", bundle_copy / "new" / "box.json", tmp_path / "link" / "box.json"):
        assert f"edgecnn: {place}: lies in the bundle" in one_line(call(command, bundle_copy, *options, place))
    assert list(bundle_copy.rglob("box.json")) == []
    Bundle.open(bundle_copy).verify()


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.PASS, 2), (Verdict.FAIL, 3)])
def test_what_was_verified_is_told_though_the_report_has_no_place(
    bundle_folder: Path, verified: Verification, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int
) -> None:
    """Where the report cannot be written, the text is printed all the same, and a verdict of no stays one."""
    found = judged(verified, verdict=verdict)
    monkeypatch.setattr(verify, "verify_bundle", lambda *_: found)
    result = call("verify", bundle_folder, "--report", NO_FILE)
    assert result.exit_code == code
    assert result.stdout == verify_text(found) + "\n"
    assert result.stderr.startswith("edgecnn: /dev/null: ")


def test_a_soak_is_told_though_the_page_has_no_place(bundle_folder: Path) -> None:
    """Where the page cannot be written, what was measured is printed before that is said."""
    result = call("bench", bundle_folder, "--soak", "1s", "--html", NO_FILE)
    assert result.exit_code == 2
    assert "images in" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("edgecnn: /dev/null: ")


@pytest.mark.parametrize("home", ["", "/dev/null", "/proc/self"])
def test_tune_asks_for_a_place_before_it_races(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """Without a home, or with one that takes no folder, tune says so at once and what to do; with --dry-run it needs none."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", home)
    begun = []
    monkeypatch.setattr(tuning, "tune", lambda *_: begun.append(1) or (_ for _ in ()).throw(UsageError("raced")))
    assert "set XDG_CONFIG_HOME to a folder for settings" in one_line(call("tune", bundle_folder))
    assert begun == []
    assert one_line(call("tune", bundle_folder, "--dry-run")) == "edgecnn: raced"


# Candidates


def test_an_artifact_that_a_backend_does_not_read_is_a_mistake(bundle_folder: Path) -> None:
    """To ask ONNX Runtime for the checkpoint is a wrong question, and says nothing of whether it may be used here."""
    with pytest.raises(UsageError, match="onnxruntime reads onnx, and checkpoint is safetensors"):
        places.choose(Bundle.open(bundle_folder), [BackendRef.parse("onnxruntime:checkpoint")])


def test_the_same_twice_races_once(bundle_folder: Path) -> None:
    """What is named twice is one candidate for tune, and an error for a soak, as for bench."""
    bundle = Bundle.open(bundle_folder)
    assert candidates.references(bundle, [INT8, FP32, INT8])[0] == [INT8, FP32]
    named = BackendRef(backend="onnxruntime", artifact=bundle.manifest.default_artifact)
    for refs in ([FP32, FP32], [BackendRef(backend="onnxruntime"), named], []):
        with pytest.raises(UsageError, match="different candidates"):
            bench_soak(bundle, refs, 1)


@pytest.mark.parametrize(
    ("second", "error"), [("onnxruntime:gone", UsageError), ("onnxruntime:fp32@cuda:9", DeviceError)]
)
def test_what_does_not_load_is_told_before_the_first_soak(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, second: str, error: type[Exception]
) -> None:
    """A second candidate that is not there, or whose device is not, is no surprise after an hour of the first."""
    begun = []
    monkeypatch.setattr(over_time, "soak", lambda name, *_: begun.append(name))
    with pytest.raises(error):
        bench_soak(Bundle.open(bundle_folder), [FP32, BackendRef.parse(second)], 3600)
    assert begun == []


# What is read


@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_a_profile_that_is_no_file_is_passed_over(bundle_folder: Path, tmp_path: Path, kind: str) -> None:
    """A pipe or a device in a profile's place is not waited for and not read without end."""
    bundle = Bundle.open(bundle_folder)
    place = tmp_path / "settings" / "edgecnn" / "profiles" / bundle.manifest.name / "0.json"
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    found: list[object] = []
    looking = threading.Thread(target=lambda: found.append(look_up(bundle)), daemon=True)
    looking.start()
    looking.join(20)
    assert found == [f"{place}: is no file: run `edgecnn tune` again"]


def test_an_empty_name_is_not_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predict BUNDLE "$FILE"` with FILE not set is a bad image, and not every image of the current folder."""
    (tmp_path / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    found: Iterator[Any] = find([""])
    (one,) = found
    assert isinstance(one, NoImageError)
    assert str(one) == "'': an empty name, which stands for no image"


# What is said


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, "nothing speaks against using it here"),
        ({"verdict": Verdict.INCONCLUSIVE}, "not shown to be good here: fp32 INCONCLUSIVE, int8 INCONCLUSIVE"),
        ({"verdict": Verdict.NOT_MEASURED}, "not shown to be good here: fp32 NOT MEASURED, int8 NOT MEASURED"),
        ({"decoding": Verdict.FAIL}, "must not be used here: images are decoded otherwise"),
        ({"verdict": Verdict.FAIL}, "must not be used here: fp32, int8"),
    ],
)
def test_the_last_line_is_the_verdict(verified: Verification, changes: dict[str, Any], last: str) -> None:
    """The last line of the text never says that all is well where an artifact or the decoder is in doubt."""
    found = judged(verified, **{"decoding": Verdict.PASS, **changes})
    assert verify_text(found).splitlines()[-1].startswith(f"{found.bundle}: {last} (")
