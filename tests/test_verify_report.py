"""The report of `edgecnn verify`: what `edgecnn parity --replay` makes of it, here and against another machine's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgecnn.backends import providers
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.device import verify
from edgecnn.device.verify import parse_verification
from edgecnn.errors import EdgecnnError, SchemaError
from edgecnn.parity.evidence import pack_evidence, parse_evidence, read_evidence
from edgecnn.parity.recording import Recording
from edgecnn.report.verify import verify_text


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


@pytest.fixture(scope="module", autouse=True)
def no_plugins() -> Iterator[None]:
    """Leave out the plugins that happen to be installed: what is verified is then the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "plugins", dict)
        yield


@pytest.fixture(scope="module")
def made(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Verify once, and return the report's file and what was printed."""
    path = tmp_path_factory.mktemp("report") / "box.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "start_child", lambda *_: {"peak_mb": 50.0, "total_ms": 300.0})
        done = call("verify", bundle_folder, "--seconds", "0.1", "--report", path, "--json")
    assert done.exit_code in (0, 3), (
        done.output
    )  # what is slower here is refused, and the report is written all the same
    return path, json.loads(done.stdout)


def changed(document: dict[str, Any], change: Any) -> dict[str, Any]:
    """Change the recording inside a report."""
    recording = parse_evidence(base64.b64decode(document["evidence"]), "report")
    change(recording)
    return {**document, "evidence": base64.b64encode(pack_evidence(recording, "report")).decode()}


def test_the_file_is_what_is_printed(made: tuple[Path, dict[str, Any]]) -> None:
    """The report's file and what is printed with --json are one document."""
    assert json.loads(made[0].read_text()) == made[1]


def test_a_report_gives_the_text_again(made: tuple[Path, dict[str, Any]]) -> None:
    """Whoever fetched the report from a box can print it as the box would have."""
    found = parse_verification(made[0].read_bytes(), "box.json")
    text = verify_text(found)
    assert found.artifacts[0].name in text
    assert "every hash as recorded" in text
    with pytest.raises(SchemaError, match=r"box\.json: is no report"):
        parse_verification(b"{}", "box.json")


def test_the_answers_are_in_it(made: tuple[Path, dict[str, Any]], bundle_folder: Path) -> None:
    """The report holds the answers of every artifact: fp32 agrees with the truth in the bundle, image by image."""
    recording = read_evidence(made[0])
    goldens = Bundle.open(bundle_folder).goldens()
    np.testing.assert_allclose(
        recording.sides["onnxruntime:fp32"].answers["logits"], goldens.logits_float64, rtol=1e-4, atol=1e-4
    )
    assert set(recording.sides) == {"onnxruntime:fp32", "onnxruntime:int8"}


def test_replay_judges_it_again(made: tuple[Path, dict[str, Any]]) -> None:
    """Parity reads the report as its own recording, passes it, and fails it by a tolerance that nothing could meet."""
    passed = call("parity", "--replay", made[0], "--json")
    assert passed.exit_code == 0, passed.output
    assert json.loads(passed.stdout)["verdict"] == "PASS"
    failed = call("parity", "--replay", made[0], "--noise-multiple", "0.001", "--json")
    assert failed.exit_code == 3
    cells = {cell["candidate"]: cell["computation"]["verdict"] for cell in json.loads(failed.stdout)["cells"]}
    assert cells["onnxruntime:fp32"] == "FAIL"


def test_two_machines(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Reports of two machines are compared answer by answer: the same pass, and one with other answers fails by name."""
    assert call("parity", "--replay", made[0], made[0]).exit_code == 0

    def spoil(recording: Recording) -> None:
        recording.sides["onnxruntime:int8"].answers["logits"][3] += 1

    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed(made[1], spoil)))
    found = call("parity", "--replay", made[0], other, "--json")
    assert found.exit_code == 3, found.output
    cells = {cell["candidate"]: cell["computation"]["verdict"] for cell in json.loads(found.stdout)["cells"]}
    assert cells == {"onnxruntime:fp32": "PASS", "onnxruntime:int8": "FAIL"}


def test_a_report_against_a_recording(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A report is as good as a file that `parity --keep` wrote, on either side."""
    kept = tmp_path / "kept.evidence"
    kept.write_bytes(base64.b64decode(made[1]["evidence"]))
    assert call("parity", "--replay", kept, made[0]).exit_code == 0
    assert call("parity", "--replay", made[0], kept).exit_code == 0


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{}",
        b'{"evidence": 3}',
        b'{"evidence": "***"}',
        b'{"evidence": ""}',
        b'{"evidence": "UEsDBA=="}',
        b"[" * 10**5,
    ],
    ids=["cut", "empty", "number", "no base64", "nothing", "cut zip", "brackets"],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    """JSON that holds no whole recording is one line and exit code 2."""
    path = tmp_path / "box.json"
    path.write_bytes(content)
    found = call("parity", "--replay", path)
    assert found.exit_code == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert "box.json" in found.stderr


def test_a_report_damaged_anywhere_is_refused_or_whole(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A changed letter in the recording's base64 is found, wherever it matters; a zip also holds dates that do not."""
    text, path = made[1]["evidence"], tmp_path / "box.json"
    whole = read_evidence(made[0])
    places, refused = range(0, len(text) - 4, max(1, len(text) // 40)), 0
    for place in places:
        letter = "A" if text[place] != "A" else "B"
        path.write_text(json.dumps({"evidence": text[:place] + letter + text[place + 1 :]}))
        try:
            found = read_evidence(path)
        except EdgecnnError:
            refused += 1
            continue
        assert found.head == whole.head
        for ref, side in found.sides.items():
            np.testing.assert_array_equal(side.answers["logits"], whole.sides[ref].answers["logits"])
    assert refused > len(places) * 0.8
