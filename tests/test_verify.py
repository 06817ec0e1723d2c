"""`edgecnn verify`: hashes, answers and speed of a bundle on this machine, with a clock that is made up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from edgecnn import images
from edgecnn.bench.latency import measure_latency
from edgecnn.bundle import Bundle
from edgecnn.cli import cli
from edgecnn.device import places, verify
from edgecnn.device.fused import kernels_here
from edgecnn.errors import BackendError, DeviceError
from edgecnn.quantization.fusion import INT8_KERNELS, optimised
from edgecnn.spec import BackendRef


def run(bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle), "--seconds", "0.1", *arguments])


@pytest.fixture(autouse=True)
def scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weigh nothing: a process for each artifact is what most of these tests can do without."""
    monkeypatch.setattr(verify, "start_child", lambda *_: {"peak_mb": 50.0, "total_ms": 300.0})


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


def rows(found: Result) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(found.stdout)["artifacts"]}


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change a bundle's manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


# int8 kernels


def test_int8_kernels_are_those_of_the_optimised_graph(bundle_folder: Path) -> None:
    """The kernels that are counted without onnx are those which onnx finds in ONNX Runtime's optimised graph."""
    artifact = Bundle.open(bundle_folder).artifact("int8")
    graph = optimised(onnx.load(str(artifact.path))).graph
    assert kernels_here(artifact) == {name: sum(node.op_type == name for node in graph.node) for name in sorted({node.op_type for node in graph.node})}  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "verdict", "code"),
    [(0.4, 0.6, "INCONCLUSIVE", 0), (0.8, 1.2, "FAIL", 3)],
    ids=["faster", "no faster"],
)
def test_fewer_int8_kernels_than_expected(
    low: float, high: float, verdict: str, code: int, bundle_copy: Path, clock: Callable[[float, float], None]
) -> None:
    """A layer that is no longer computed in int8 is named; it refuses the artifact unless that is faster all the same."""
    clock(low, high)
    counts = kernels_here(Bundle.open(bundle_copy).artifact("int8"))
    expected = sum(counts.get(name, 0) for name in INT8_KERNELS)
    name = max(INT8_KERNELS, key=lambda kernel: counts.get(kernel, 0))

    def one_more(manifest: dict[str, Any]) -> None:
        manifest["artifacts"]["int8"]["details"]["fusion"]["operators"][name] += 1

    found = run(rewrite(bundle_copy, one_more), "--json")
    assert found.exit_code == code
    row = rows(found)["int8"]
    assert (row["verdict"], row["fused"]["verdict"], row["computation"]) == (verdict, "FAIL", "PASS")
    assert sum(row["fused"]["here"].values()) == expected
    assert any("fewer int8 kernels than expected" in reason for reason in row["reasons"])


def test_kernels_that_nobody_counted_are_not_judged(bundle_copy: Path, clock: Callable[[float, float], None]) -> None:
    """Where the manifest says nothing of int8 kernels nothing is claimed, and what is here is told."""
    clock(0.4, 0.6)
    found = run(rewrite(bundle_copy, lambda it: it["artifacts"]["int8"]["details"].pop("fusion")), "--json")
    row = rows(found)["int8"]
    assert (found.exit_code, row["verdict"], row["fused"]["verdict"]) == (0, "PASS", "NOT MEASURED")
    assert sum(row["fused"]["here"].values()) > 0


# Devices


def test_backends_that_are_asked_for(bundle_folder: Path) -> None:
    """A backend without an artifact runs every one that it reads, and each is compared with fp32 of its own."""
    found = run(bundle_folder, "--json", "-b", "reference", "-b", "onnxruntime:int8")
    assert list(rows(found)) == ["reference:fp32", "reference:int8", "int8"]
    assert rows(found)["reference:fp32"]["verdict"] == "PASS"
    reasons = rows(found)["int8"]["reasons"]
    assert "not timed against fp32, which does not run beside it" in reasons


def test_a_device_that_is_asked_for_and_not_there(bundle_folder: Path) -> None:
    """A device that is asked for and not obtained must not be used: the reason is in the row, and the others go on."""
    found = run(bundle_folder, "--json", "-b", "onnxruntime:fp32@cuda:7", "-b", "onnxruntime:fp32")
    assert found.exit_code == 3
    row = rows(found)["onnxruntime:fp32@cuda:7"]
    assert (row["verdict"], row["p50_us"], row["memory"]) == ("FAIL", None, None)
    assert "no device 'cuda:7'" in row["reasons"][0]
    assert rows(found)["fp32"]["verdict"] == "PASS"
    assert "must not be used here: onnxruntime:fp32@cuda:7" in found.stderr


def test_devices_that_nobody_asked_for(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the devices that ONNX Runtime lists, those which take an artifact are verified, and of the others the reason is told."""
    from edgecnn.backends.onnxruntime import OnnxRuntimeBackend

    monkeypatch.setattr(OnnxRuntimeBackend, "devices", lambda self: ("cpu", "cuda:0", "acme:npu"))
    monkeypatch.setattr(places.providers, "plugins", lambda: {"acme:npu": None})
    monkeypatch.setattr(places.providers, "problem", lambda device: "its plugin lists no device")

    def opened(ref: BackendRef, *rest: Any) -> Any:
        if ref.artifact == "int8":
            raise DeviceError("it left 3 QLinearConv on CPU")
        return nullcontext()

    monkeypatch.setattr(places, "open_session", opened)
    refs, left = places.choose(Bundle.open(bundle_folder), [])
    assert list(map(str, refs)) == ["onnxruntime:fp32", "onnxruntime:int8", "onnxruntime:fp32@cuda:0"]
    assert left == [
        "onnxruntime:int8@cuda:0: it left 3 QLinearConv on CPU",
        "onnxruntime@acme:npu: its plugin lists no device",
    ]


def test_nothing_is_timed_on_an_emulated_machine(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside an emulator answers are judged, and neither time nor memory is: the reason is told, and no verdict hangs on it."""
    monkeypatch.setattr(places, "emulated_host", lambda: "this is an emulated toaster")
    monkeypatch.setattr(verify, "measure_latency", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(verify, "start_child", lambda *_: pytest.fail("weighed"))
    found = run(bundle_folder, "--json")
    assert found.exit_code == 0, found.output
    for row in rows(found).values():
        assert (row["verdict"], row["speed"], row["p50_us"], row["memory"]) == ("PASS", "NOT MEASURED", None, None)
        assert "latency not measured: this is an emulated toaster" in row["reasons"]
    assert "not measured" in run(bundle_folder).stdout


# Memory


def test_memory_is_that_of_a_process(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each artifact is weighed in a process of its own, by no more than the kernel says that the largest child took."""
    import resource

    from edgecnn.bench.cold import start_child

    monkeypatch.setattr(verify, "start_child", start_child)
    found = run(bundle_folder, "--json")
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    for row in rows(found).values():
        assert 10 < row["memory"]["peak_mb"] <= most
        assert row["memory"]["cold_start_ms"] > 0


def test_memory_that_cannot_be_measured(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fails costs the artifact nothing but its weight, and says why."""

    def broken(*_: Any) -> Any:
        raise BackendError("it was killed")

    monkeypatch.setattr(verify, "start_child", broken)
    row = rows(run(bundle_folder, "--json"))["fp32"]
    assert row["verdict"] == "PASS"
    assert "memory not measured: it was killed" in row["reasons"]


# Decoding


def test_another_decoder_is_named_as_such(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that differs is told apart from the computation, with the versions, and with what it does to answers."""
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *arguments: decode(*arguments) ^ 1)
    found = run(bundle_folder, "--json")
    document = json.loads(found.stdout)
    assert found.exit_code == 3
    assert document["decoding"] == "FAIL"
    assert {row["computation"] for row in document["artifacts"]} == {"PASS"}
    pillow = document["host"]["packages"]["pillow"]
    session = onnxruntime.InferenceSession(str(bundle_folder / "fp32.onnx"), providers=["CPUExecutionProvider"])
    pixels = Bundle.open(bundle_folder).goldens().pixels
    before, after = (session.run(["logits"], {"image": one})[0].argmax(axis=1) for one in (pixels, pixels ^ 1))
    parts = (
        "by up to 1 of 255 levels on 32 of 32",
        f"here Pillow {pillow}",
        f"there Pillow {pillow}",
        f"{(before != after).sum()} of 32 answers of onnxruntime:fp32 change by it",
    )
    for part in parts:
        assert part in document["decoding_reason"], part
    assert "images are decoded otherwise here" in found.stderr


def test_a_decoder_that_changes_answers(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the decoder is so far off that answers change, they are counted."""
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *arguments: 255 - decode(*arguments))
    reason = json.loads(run(bundle_folder, "--json").stdout)["decoding_reason"]
    changed = int(reason.rpartition("; ")[2].split()[0])
    assert changed > 10


# Runtime and CPU


def test_what_the_bundle_was_made_for(bundle_copy: Path, clock: Callable[[float, float], None]) -> None:
    """An older runtime and another CPU at export are named with both versions and with what they mean."""
    clock(0.4, 0.6)

    def elsewhere(manifest: dict[str, Any]) -> None:
        host = manifest["provenance"]["host"]
        host["packages"]["onnxruntime"], host["cpu"], host["features"] = "1.2.3", "Other", ["avx2", "amx_int8"]

    found = run(rewrite(bundle_copy, elsewhere))
    runtime = next(line for line in found.stdout.splitlines() if line.startswith("ONNX Runtime"))
    assert "at export 1.2.3: newer; " in runtime
    cpu = next(line for line in found.stdout.splitlines() if line.startswith("CPU "))
    assert "at export Other: other; lacks amx_int8" in cpu


BARE = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    hidden = {"torch", "onnx", "onnxscript", "safetensors", "sklearn", "matplotlib", "rich", "scipy", "cryptography"}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from edgecnn.cli import cli
cli(["verify", sys.argv[1], "--seconds", "0.1", "--json"], prog_name="edgecnn")
"""


def test_the_box_needs_only_onnxruntime(bundle_folder: Path) -> None:
    """Where torch, onnx and cryptography are not installed all is verified, the int8 kernels too."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", BARE, str(bundle_folder)], capture_output=True, text=True, check=False)
    row = {one["name"]: one for one in json.loads(done.stdout)["artifacts"]}["int8"]
    assert (row["computation"], row["fused"]["verdict"], row["saturation"]["verdict"]) == ("PASS", "PASS", "PASS")
    assert row["memory"]["peak_mb"] > 10


@pytest.mark.slow
def test_an_emulated_device(bundle_folder: Path) -> None:
    """On an emulated CPU without VNNI both artifacts answer right, saturation is judged for that CPU, and nothing is timed."""
    from edgecnn.device.emulate import QEMU

    if shutil.which(QEMU) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{QEMU} is not on the PATH")
    found = run(bundle_folder, "--json", "-b", "emulated@haswell")
    assert found.exit_code == 0, found.output
    row = rows(found)["emulated:int8@haswell"]
    assert (row["verdict"], row["speed"], row["p50_us"], row["memory"]) == ("PASS", "NOT MEASURED", None, None)
    assert "its weights keep to seven bits" in row["saturation"]["reason"]
    assert "latency not measured: an emulated CPU's times mean nothing" in row["reasons"]
