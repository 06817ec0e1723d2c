"""`edgecnn verify`: hashes, answers and speed of a bundle on this machine, with a clock that is made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from edgecnn.bench.latency import measure_latency
from edgecnn.cli import cli
from edgecnn.device import verify


def run(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle), "--seconds", "0.1", *arguments])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Let int8 take from `low` to `high` of fp32's time in every round."""

    def set_to(low: float, high: float) -> None:
        def measured(sessions: Any, feeds: Any, seconds: float) -> dict[str, Any]:
            found = measure_latency(sessions, feeds, 0.05)
            rounds = len(next(iter(found.values())).round_medians_us)
            times = {name: np.linspace(low, high, rounds) if "int8" in name else np.ones(rounds) for name in found}
            return {name: msgspec.structs.replace(one, round_medians_us=tuple(100 * times[name])) for name, one in found.items()}  # fmt: skip

        monkeypatch.setattr(verify, "measure_latency", measured)

    return set_to


@pytest.mark.parametrize(
    ("low", "high", "verdict", "code"), [(0.4, 0.6, "PASS", 0), (0.8, 1.2, "INCONCLUSIVE", 0), (1.1, 1.3, "FAIL", 3)]
)
def test_int8_has_to_be_faster_here(
    low: float, high: float, verdict: str, code: int, bundle_folder: Path, clock: Callable[[float, float], None]
) -> None:
    """Faster in nearly every round passes, slower in nearly every one must not be used, and between nothing is claimed."""
    clock(low, high)
    found = run(bundle_folder, "--json")
    assert found.exit_code == code, found.output
    artifacts = {one["artifact"]: one for one in json.loads(found.stdout)["artifacts"]}
    assert artifacts["int8"]["verdict"] == artifacts["int8"]["speed"] == verdict
    assert artifacts["int8"]["exported"] == "NOT MEASURED"
    assert (artifacts["fp32"]["verdict"], artifacts["fp32"]["speed"]) == ("PASS", "NOT MEASURED")
    if code:
        assert found.stderr.strip().endswith("must not be used here: int8")


def test_other_answers_are_refused(bundle_copy: Path, clock: Callable[[float, float], None]) -> None:
    """An artifact whose weights were changed, hash and all, fails on the goldens, whatever its speed."""
    clock(0.4, 0.6)
    path = bundle_copy / "fp32.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(1.1), largest.name))
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["files"]["fp32.onnx"] = {
        "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    found = run(bundle_copy)
    assert found.exit_code == 3
    assert "must not be used here: fp32" in found.stderr


def test_a_changed_byte_is_noticed(bundle_copy: Path) -> None:
    """A file that is not what the manifest recorded is one line and exit code 2, and nothing is run."""
    path = bundle_copy / "int8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = run(bundle_copy)
    assert found.exit_code == 2
    assert "int8.onnx" in found.stderr
    assert not found.stdout


def test_the_text_says_all(bundle_folder: Path, clock: Callable[[float, float], None]) -> None:
    """The table has a row for each artifact, and the reasons stand below it."""
    clock(0.4, 0.6)
    found = run(bundle_folder)
    assert found.exit_code == 0
    assert "every hash as recorded" in found.stdout
    assert "int8: it takes 0.50 of fp32's time here" in found.stdout
