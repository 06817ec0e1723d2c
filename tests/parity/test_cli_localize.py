"""`edgecnn parity --localize` through the command line: what is sound, what is at fault, and what cannot be looked into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import pytest
from commands import invoke
from parity import planted
from parity.fakes import chain_file
from quantization import small

Array = npt.NDArray[Any]
LOCALIZED = ("--random", "16", "--localize")


def halved(weight: Array) -> Array:
    """Halve every second output channel of a layer, float or int8: more than int8's own steps explain."""
    weight[::2] = weight[::2] / 2
    return weight


def plant(folder: Path, artifact: str, tensor: str, change: Callable[[Array], Array]) -> str:
    """Change one tensor of a bundle's file, record the file's hash as if it were meant, and name the node that takes it."""
    path, listed = folder / f"{artifact}.onnx", folder / "manifest.json"
    model = planted.edited(onnx.load(str(path)), planted.weight(tensor, change))
    data = model.SerializeToString()
    path.write_bytes(data)
    manifest = json.loads(listed.read_text())
    manifest["files"][path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    listed.write_text(json.dumps(manifest))
    taken = {tensor}
    for node in model.graph.node:  # in order, so that what dequantizes the tensor comes before who multiplies by it
        if taken & set(node.input):
            if node.op_type != "DequantizeLinear":
                return node.name
            taken.update(node.output)
    raise AssertionError(f"nothing takes {tensor}")


def first_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("first difference: ")]


def test_of_a_sound_bundle_nothing_is_found(bundle_folder: Path) -> None:
    """Both artifacts are looked into against the checkpoint, no block of either is at fault, and the exit code is 0."""
    result = invoke("parity", bundle_folder, *LOCALIZED)
    assert (result.exit_code, result.stderr) == (0, "")
    assert first_lines(result.stdout) == ["first difference: none (no verdict failed)"] * 2
    assert "onnxruntime:fp32 against torch in float64; 16 images" in result.stdout
    assert "onnxruntime:int8 against torch in float64; 16 images" in result.stdout
    assert result.stdout.splitlines()[-1] == "parity: PASS"


@pytest.mark.parametrize("layer", ["net.layers.0.0", "net.layers.2.0", "net.head"])
@pytest.mark.parametrize("artifact", ["fp32", "int8"])
def test_the_layer_at_fault_is_named(artifact: str, layer: str, bundle_copy: Path) -> None:
    """A layer that is halved in one file, every second channel, is found there and in no other, told by name in text and JSON, with 3."""
    node = plant(bundle_copy, artifact, f"{layer}.weight", halved)
    text, listed = (invoke("parity", bundle_copy, *LOCALIZED, *how) for how in ((), ("--json",)))
    assert (text.exit_code, listed.exit_code) == (3, 3)
    assert text.stderr == listed.stderr == "edgecnn: parity of bundle: FAIL\n"
    report = json.loads(listed.stdout)
    found = {one["candidate"]: one for one in report["localizations"]}
    assert list(found) == ["onnxruntime:fp32", "onnxruntime:int8"]
    for name, one in found.items():
        wrong = name == f"onnxruntime:{artifact}"
        assert (one["failed"], one["first"] is not None) == (wrong, wrong), one["reason"]
    first = found[f"onnxruntime:{artifact}"]["first"]
    assert node in first["nodes"]
    assert layer in first["name"]
    assert [block["name"] for block in found[f"onnxruntime:{artifact}"]["blocks"] if block["culprit"]] == [
        first["name"]
    ]
    told = {"fp32": "first difference: none (no verdict failed)", "int8": "first difference: none (no verdict failed)"}
    told[artifact] = f"first difference: {first['name']}"
    assert first_lines(text.stdout) == list(told.values())
    assert f"{first['name']} is the first of" in text.stdout
    assert text.stdout.splitlines()[-1] == "parity: FAIL"


def test_a_files_block_is_named_beside_a_sound_one(tmp_path: Path) -> None:
    """Of two .onnx files beside MODEL.onnx the one with another weight is told with its block, the other as sound."""
    model, wrong = chain_file(tmp_path), tmp_path / "wrong.onnx"
    changed = planted.edited(small.chain(), planted.weight("b.weight", halved))
    wrong.write_bytes(changed.SerializeToString())
    result = invoke("parity", model, "-c", f"onnxruntime:{wrong}", "-c", "onnxruntime", *LOCALIZED, "--json")
    assert result.exit_code == 3
    bad, good = json.loads(result.stdout)["localizations"]
    assert (bad["candidate"], bad["first"]["nodes"][0], good["first"]) == (f"onnxruntime:{wrong}", "b", None)


def test_without_being_asked_nothing_is_looked_for(bundle_copy: Path) -> None:
    """A fault alone starts no search: neither text nor JSON speaks of blocks."""
    plant(bundle_copy, "fp32", "net.head.weight", halved)
    text, listed = (invoke("parity", bundle_copy, "--random", "16", *how) for how in ((), ("--json",)))
    assert (text.exit_code, listed.exit_code, first_lines(text.stdout)) == (3, 3, [])
    assert "localizations" not in json.loads(listed.stdout)


def test_a_candidate_that_is_no_onnx_file_is_told(bundle_folder: Path) -> None:
    """A checkpoint has no blocks to cut: that is said in one line on stderr, and the ONNX candidate is looked into all the same."""
    result = invoke("parity", bundle_folder, "-c", "torch", "-c", "onnxruntime:fp32", *LOCALIZED, "--json")
    assert result.exit_code == 0
    assert result.stderr == "edgecnn: torch cannot be localized: it is no ONNX file\n"
    assert [one["candidate"] for one in json.loads(result.stdout)["localizations"]] == ["onnxruntime:fp32"]


def test_without_an_onnx_candidate_the_report_stands_alone(bundle_folder: Path) -> None:
    """Where no candidate is an ONNX file the report is as ever, with no place in it, and stderr says why."""
    told = "edgecnn: torch cannot be localized: it is no ONNX file\n"
    for how in ((), ("--json",)):
        result = invoke("parity", bundle_folder, "-c", "torch", *LOCALIZED, *how)
        assert (result.exit_code, result.stderr, first_lines(result.stdout)) == (0, told, [])
    assert json.loads(result.stdout)["localizations"] == []


def test_a_recording_has_no_model_to_cut(tmp_path: Path) -> None:
    """With --replay nothing is run, so --localize is refused in one line that says so."""
    model, kept = chain_file(tmp_path), tmp_path / "kept.evidence"
    assert invoke("parity", model, "--random", "8", "--keep", kept).exit_code == 0
    result = invoke("parity", "--replay", kept, "--localize")
    assert (result.exit_code, result.stdout) == (2, "")
    told = "--localize would do nothing: --replay judges what was recorded, and runs nothing"
    assert result.stderr.startswith(f"edgecnn: {told}")
    assert len(result.stderr.splitlines()) == 1
