"""What `inspect` says of a file, counted again by hand, and what `doctor` says of a machine."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from edgecnn import host, registry
from edgecnn.backends.onnxruntime import OnnxRuntimeBackend
from edgecnn.cli import cli
from edgecnn.device import accelerators
from edgecnn.device.probe import diagnose
from edgecnn.errors import BackendError
from edgecnn.inspection import inspect_bundle, inspect_onnx, inspect_run

SOMEBODY_ELSES = Path(__file__).resolve().parents[2] / "shared" / "models" / "rapidocr_cls.onnx"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def shown(*arguments: str | Path) -> Any:
    """Run a command with --json and return its document."""
    result = invoke(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def refused(path: Path) -> str:
    """Return the one line with which `inspect` turns something down."""
    result = invoke("inspect", path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def test_a_run_is_described(run_folder: Path) -> None:
    """A run shows its network, and as many parameters and multiplications as its weights amount to."""
    found = shown("inspect", run_folder)
    assert found == json.loads(msgspec.json.encode(inspect_run(run_folder)))
    assert found["labels"] == list("0123456789")
    weights = load_file(run_folder / "model.safetensors")
    trained = {name: w for name, w in weights.items() if "running" not in name and "num_batches" not in name}
    assert found["parameters"] == sum(w.size for w in trained.values())
    # Widths 8 and 16, depth 1: 3x3 convolutions at 8x8 and at 4x4, then one linear layer.
    assert found["MACs"] == 8 * 8 * (9 * 1 * 8) + 4 * 4 * (9 * 8 * 16) + 16 * 10
    assert found["kind"] == "run"
    assert found["net"] == "compact"
    assert found["input"] == "8x8x1, stretch"
    assert found["data"] == "digits"
    accuracy = json.loads((run_folder / "metrics.json").read_text())["test_accuracy"]
    assert found["test accuracy"].startswith(f"{accuracy['correct'] / accuracy['n']:.2%} (95 % interval ")
    assert found["training"].endswith("kept, seed 0")


def test_a_runs_text_has_the_same_rows(run_folder: Path) -> None:
    """Without --json the same is a table, numbers with their thousands apart."""
    result = invoke("inspect", run_folder)
    assert result.exit_code == 0
    facts, _, layers = result.stdout.partition("\n\n")
    rows = dict(line.split("  ", 1) for line in facts.splitlines())
    assert rows["MACs"].strip() == "23,200"
    assert rows["labels"].strip() == ", ".join("0123456789")
    assert "layers" not in rows
    assert len(layers.splitlines()) == 9


# Widths 8 and 16, depth 1, for 8x8x1, by hand: a 3x3 convolution sees 3 pixels, two that are pooled 4, and the next 8.
ROWS = [
    ("conv 3x3 8 relu", "8x8x8", 72 + 16, 64 * 72, "3x3"),
    ("max pool 2x2", "4x4x8", 0, 0, "4x4"),
    ("conv 3x3 16 relu", "4x4x16", 9 * 8 * 16 + 32, 16 * 9 * 8 * 16, "all"),
    ("average pool all", "1x1x16", 0, 0, "all"),
    ("dropout 0.1", "1x1x16", 0, 0, "all"),
    ("linear 10", "10", 170, 160, "all"),
    ("total", "", 1442, 23200, ""),
]


def test_a_runs_layers_are_a_table(run_folder: Path) -> None:
    """Each layer is a row of what it gives, costs and sees, as counted by hand, and the last row is the sum."""
    header, rule, *lines = invoke("inspect", run_folder).stdout.partition("\n\n")[2].splitlines()
    assert header.split() == ["layer", "output", "parameters", "MACs", "sees"]
    assert set(rule) == {"-", " "}
    wanted = [[name, size, f"{parameters:,}", f"{macs:,}", field] for name, size, parameters, macs, field in ROWS]
    assert [line.split() for line in lines] == [" ".join(row).split() for row in wanted]
    ends = {len(line[: line.index(f"{row[2]}  ") + len(row[2])]) for line, row in zip(lines, wanted, strict=True)}
    assert len(ends) == 1, "the numbers do not stand under each other"


def test_a_runs_layers_in_json(run_folder: Path) -> None:
    """With --json every layer is a record whose shape has the channels first, and what sees everything has no field."""
    layers = shown("inspect", run_folder)["layers"]
    assert [(row["name"], row["parameters"], row["macs"]) for row in layers] == [
        (name, parameters, macs) for name, _, parameters, macs, _ in ROWS[:-1]
    ]
    assert [row["shape"] for row in layers] == [[8, 8, 8], [8, 4, 4], [16, 4, 4], [16, 1, 1], [16, 1, 1], [10]]
    assert [row["field"] for row in layers] == [3, 4, None, None, None, None]


def test_an_unfinished_run_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    """A run without metrics, and one of which only the weights are left, are named and not described."""
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (folder / "metrics.json").unlink()
    assert f"{folder}: metrics.json is missing" in refused(folder)
    (folder / "config.json").unlink()
    assert f"{folder}: config.json is missing" in refused(folder)


def test_a_bundle_is_described(bundle_folder: Path) -> None:
    """A bundle shows every artifact with its size, which is the default, and its evidence."""
    found = shown("inspect", bundle_folder)
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    assert found["kind"].startswith(
        f"bundle, schema {manifest['schema_version']}, by edgecnn {manifest['edgecnn']}, 20"
    )
    for name, record in manifest["artifacts"].items():
        kilobytes = (bundle_folder / record["path"]).stat().st_size / 1000
        row = found[f"artifact {name}"]
        assert row.startswith(f"{record['format']} {record['precision']} for {record['target']}, {kilobytes:.1f} kB")
        assert row.endswith(", default") is (name == manifest["default_artifact"])
    assert found["input"] == "image uint8 (N, 8, 8, 1)"
    assert found["outputs"] == "logits float32 (N, 10), probabilities float32 (N, 10)"
    assert found["goldens"] == 32
    assert found["forced"] == "no"
    assert found["parity at export"] == manifest["evidence"]["parity"]["verdict"]
    assert found["files"] == f"{len(manifest['files'])}, every hash as recorded"
    side = manifest["preprocess"]
    assert found["normalisation"] == f"{side['scale']:.6g} * (pixel - {side['zero_point']}), in the graph"
    assert {"  onnxruntime:fp32", "  onnxruntime:int8", "  latency fp32", "  latency int8"} <= set(found)
    assert found["  int8 fused"] == "3 layers in int8, 0 in float"  # two convolutions and the linear layer
    assert found == json.loads(json.dumps(inspect_bundle(bundle_folder)))


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_a_zip_is_described_as_its_folder(bundle_folder: Path, tmp_path: Path) -> None:
    """A bundle in a zip shows exactly what its folder shows."""
    assert shown("inspect", zipped(bundle_folder, tmp_path / "bundle.zip")) == shown("inspect", bundle_folder)


@pytest.mark.parametrize("name", ["fp32.onnx", "int8.onnx", "model.safetensors", "labels.txt", "goldens/003.png"])
def test_a_damaged_bundle_is_one_line(name: str, bundle_copy: Path) -> None:
    """One changed byte in any file is found and the file named."""
    data = bytearray((bundle_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_copy / name).write_bytes(data)
    assert name in refused(bundle_copy)


def test_a_file_too_many_is_one_line(bundle_copy: Path) -> None:
    """A file that the manifest does not know is named, also when it is hidden."""
    (bundle_copy / "goldens" / ".extra").write_text("x")
    assert "goldens/.extra" in refused(bundle_copy)


@pytest.mark.parametrize("artifact", ["fp32", "int8"])
def test_our_onnx_files_are_described(artifact: str, bundle_folder: Path) -> None:
    """One of our ONNX files shows its signature, opset, operators and metadata as onnx itself has them."""
    path = bundle_folder / f"{artifact}.onnx"
    model = onnx.load(str(path))
    found = shown("inspect", path)
    assert found["inputs"] == ["image uint8 (N, 8, 8, 1)"]
    assert found["outputs"] == ["logits float32 (N, 10)", "probabilities float32 (N, 10)"]
    assert found["opset"]["ai.onnx"] == 18
    assert found["ir version"] == model.ir_version
    assert found["producer"].startswith("edgecnn")
    assert found["operators"] == dict(Counter(node.op_type for node in model.graph.node))
    assert found["weights"] == sum(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    assert found["quantized"] == ("yes (QDQ)" if artifact == "int8" else "no")
    assert json.loads(found["metadata edgecnn.labels"]) == list("0123456789")
    assert found["size"] == f"{path.stat().st_size / 1000:.1f} kB"


def test_somebody_elses_model_is_described() -> None:
    """A real model from elsewhere, with its weights in Constant nodes, is described like our own."""
    if not SOMEBODY_ELSES.is_file():
        assert "CI" not in os.environ, f"{SOMEBODY_ELSES} is missing"
        pytest.skip(f"{SOMEBODY_ELSES} is not here")
    found = shown("inspect", SOMEBODY_ELSES)
    model = onnx.load(str(SOMEBODY_ELSES))
    session = onnxruntime.InferenceSession(str(SOMEBODY_ELSES), providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    sides = ", ".join(str(side) if isinstance(side, int) else "N" for side in value.shape)
    assert found["inputs"] == [f"{value.name} float32 ({sides})"]
    assert len(found["outputs"]) == len(session.get_outputs())
    assert found["opset"] == {"ai.onnx": 11}
    assert found["operators"] == dict(Counter(node.op_type for node in model.graph.node))
    constants = [helper.get_node_attr_value(node, "value") for node in model.graph.node if node.op_type == "Constant"]
    tensors = [*model.graph.initializer, *constants]
    assert found["weights"] == sum(math.prod(numpy_helper.to_array(tensor).shape) for tensor in tensors) > 100_000
    assert found["quantized"] == "no"


def saved(path: Path, opset: int = 18, domain: str = "", operator: str = "Relu") -> Path:
    """Write a model of one node."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", [x], [y])
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model.producer_name = ""
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_without_weights_is_described(tmp_path: Path) -> None:
    """A model of one operator, no weights and no producer shows just that."""
    found = inspect_onnx(saved(tmp_path / "relu.onnx"))
    assert (found["weights"], found["producer"], found["operators"]) == (0, "unknown", {"Relu": 1})
    assert (found["inputs"], found["outputs"]) == (["x float32 (N, 4)"], ["y float32 (N, 4)"])
    assert not [name for name in found if name.startswith("metadata")]


def test_quantized_operators_count_as_quantized(tmp_path: Path) -> None:
    """A model of QLinear operators is quantized although it has no DequantizeLinear."""
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.int8), "w")
    scale = numpy_helper.from_array(np.array(1, np.float32), "s")
    zeros = [numpy_helper.from_array(np.array(0, dtype), name) for name, dtype in (("zu", np.uint8), ("zi", np.int8))]
    inputs = ["x", "s", "zu", "w", "s", "zi", "s", "zu"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 1, 2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("QLinearConv", inputs, ["y"])], "g", [x], [y], [weight, scale, *zeros])
    path = tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    found = inspect_onnx(path)
    assert (found["quantized"], found["weights"]) == ("yes", 4)
    assert found["inputs"] == ["x uint8 (1, 1, 2, 2)"]


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x00" * 100, b"\x08\x0a\x12", "half"], ids=["empty", "text", "zeros", "protobuf", "half"])  # fmt: skip
def test_a_garbage_onnx_file_is_one_line(content: bytes | str, bundle_folder: Path, tmp_path: Path) -> None:
    """A file that only has the suffix is one line that names it and asks whether it is a whole model."""
    whole = (bundle_folder / "fp32.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    line = refused(path)
    assert str(path) in line
    assert "is it a whole ONNX model?" in line


@pytest.mark.parametrize(
    ("opset", "domain", "operator"), [(99, "", "Relu"), (18, "com.acme", "Blend"), (18, "", "Nonsense")]
)
def test_a_model_that_cannot_be_run_is_one_line(opset: int, domain: str, operator: str, tmp_path: Path) -> None:
    """An opset or operator that ONNX Runtime does not know is said in one line."""
    path = saved(tmp_path / "model.onnx", opset, domain, operator)
    assert str(path) in refused(path)
    with pytest.raises(BackendError):
        inspect_onnx(path)


@pytest.mark.parametrize("name", ["folder.onnx", "folder.zip", "folder"])
def test_a_folder_of_another_kind_is_one_line(name: str, tmp_path: Path) -> None:
    """A folder that is neither run nor bundle is one line, whatever its name ends in."""
    (tmp_path / name).mkdir()
    assert name in refused(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not a zip", "empty zip", "other zip"])
def test_a_zip_that_is_no_bundle_is_one_line(content: bytes | str, tmp_path: Path) -> None:
    """A zip that is damaged, empty or holds something else is one line that names it."""
    path = tmp_path / "thing.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            if content == "other zip":
                archive.writestr("readme.txt", "hello")
    assert str(path) in refused(path)


def test_without_onnx_the_signature_is_still_shown(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnx is not installed, inputs, outputs and metadata are shown and the rest says what it needs."""
    from edgecnn import inspection

    monkeypatch.setattr(inspection, "find_spec", lambda name: None)
    found = inspect_onnx(bundle_folder / "fp32.onnx")
    assert found["inputs"] == ["image uint8 (N, 8, 8, 1)"]
    assert found["operators"] == "not counted: needs the package onnx"
    assert "metadata edgecnn.labels" in found
    assert "weights" not in found


def test_doctor_describes_this_machine() -> None:
    """`doctor --json` has the machine, its load, disk, Python, backends, exporters and providers as they are."""
    found = shown("doctor")
    assert found["executable"] == sys.executable
    assert found["host"]["cores"] == os.cpu_count()
    assert 1 <= found["host"]["usable_threads"] <= len(os.sched_getaffinity(0))
    assert found["host"]["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["host"]["packages"]["numpy"] == np.__version__
    assert found["providers"] == onnxruntime.get_available_providers()
    assert found["target"] == host.target_of_host()
    assert abs(found["disk_free_mb"] - shutil.disk_usage(Path.cwd()).free / 1e6) < 2000
    backends = {state["name"]: state for state in found["backends"]}
    python = {"onnxruntime", "torch", "reference", "openvino"}  # the others need programs besides
    assert python <= set(backends)
    assert all(backends[name]["problem"] is None for name in python)
    assert backends["openvino"]["usable"] == ["openvino"]
    assert backends["reference"]["usable"] == ["reference"]
    assert backends["onnxruntime"]["usable"][0] == "onnxruntime"
    assert {state["name"] for state in found["exporters"]} >= {"onnx", "onnx-int8"}
    assert all(state["problem"] is None and state["distribution"] == "edgecnn" for state in found["exporters"])


def test_doctors_text_names_what_can_be_used() -> None:
    """Without --json the same is three tables, with the names that work on the command line."""
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["reference", "reference", "edgecnn"] in rows
    assert ["onnx-int8", "ready", "edgecnn"] in rows
    assert any(row[:1] == ["target"] and row[1:] == [host.target_of_host()] for row in rows)


def test_names_of_devices_are_those_that_commands_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device other than the CPU is listed as BACKEND@DEVICE, which the command line takes."""
    monkeypatch.setattr(OnnxRuntimeBackend, "devices", lambda self: ("cpu", "cuda:0"))
    monkeypatch.setattr(accelerators, "problem", lambda device: None)
    state = next(state for state in diagnose().backends if state.name == "onnxruntime")
    assert state.usable == ("onnxruntime", "onnxruntime@cuda:0")
    assert state.problem is None


def test_a_device_that_is_only_registered_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA that the wheel holds and that does not load is not among the names, and its reason is advice."""
    monkeypatch.setattr(OnnxRuntimeBackend, "devices", lambda self: ("cpu", "cuda:0"))
    monkeypatch.setattr(accelerators, "problem", lambda device: f"{device}: not found: libcudnn.so.9")
    found = diagnose()
    assert next(state for state in found.backends if state.name == "onnxruntime").usable == ("onnxruntime",)
    assert "onnxruntime@cuda:0: not found: libcudnn.so.9" in found.advice


def test_a_backend_that_is_not_installed_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime doctor still answers: not usable, no provider, and what to install."""
    real = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    found = diagnose()
    state = next(state for state in found.backends if state.name == "onnxruntime")
    assert state.usable == ()
    assert "edgecnn[cpu]" in (state.problem or "")
    assert found.providers == ()
    assert any(line.startswith("onnxruntime: ") and "edgecnn[cpu]" in line for line in found.advice)
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "none: ONNX Runtime is not usable" in result.stdout
