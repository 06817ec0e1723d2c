"""Which layers the int8 exporter leaves in float, and what it says about that."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from exporters.made import LAYERS, LOOSE, Int8, RequestFor
from steady import layers_in_float, steady_races

from edgecnn.exporter import ExportRequest
from edgecnn.spec import Preprocess, Tolerance
from edgecnn_exporters.onnx import OnnxExporter
from edgecnn_exporters.onnx_int8 import OnnxInt8Exporter


def as_json(details: dict[str, Any]) -> dict[str, Any]:
    """Give an account as the manifest holds it."""
    found: dict[str, Any] = json.loads(json.dumps(details))
    return found


@pytest.mark.parametrize(("others", "level"), [(0.7, True), (0.815, True), (0.82, False), (0.9, False)])
def test_layers_stay_float_where_that_pays(others: float, level: bool, request_for: RequestFor) -> None:
    """Of placements that cost no more than two percent of the fastest, int8 at 0.8, the most accurate for its size is taken.

    A dB is worth two percent of the smallest file.
    """
    with steady_races(slow=others):
        search = as_json(OnnxInt8Exporter().export(request_for()).details)["search"]
    smallest = min(one["bytes"] for one in search["tried"])
    worth = {one["sqnr_db"] - (one["bytes"] / smallest - 1) / 0.02: one for one in search["tried"]}
    everything = min(search["tried"], key=lambda one: one["sqnr_db"])  # all layers in int8
    assert search["chosen"] == (worth[max(worth)] if level else everything)
    assert (search["chosen"]["floats"] == []) is not level


@pytest.mark.parametrize("first_in_float", [False, True])
def test_the_details_say_which_placement_was_taken(first_in_float: bool, int8: Int8) -> None:
    """The manifest's details hold the recipe, the measurements of what is worth choosing, and the choice."""
    one = int8("any", first_in_float)
    details = as_json(one.details)
    first = onnx.load(str(one.path)).graph.node
    conv = next(node.name for node in first if node.op_type == "Conv")
    assert details["recipe"] == {"activations": "uint8", "reduced_range": True, "integer_bias": True}
    assert (details["calibration_images"], details["evaluated_on"]) == (32, "the float model's own answers")
    assert details["search"]["chosen"]["floats"] == ([conv] if first_in_float else [])
    assert details["rungs"][details["best"]]["floats"] == details["search"]["chosen"]["floats"]
    assert layers_in_float(onnx.load(str(one.path))) == ((0,) if first_in_float else ())
    assert details["bytes"] == one.path.stat().st_size
    assert [check["what"] for check in details["gate"]["checks"]] == ["accuracy", "speed", "size"]
    assert details["forced"] == []


def test_the_details_hold_the_front_of_the_placements(int8: Int8) -> None:
    """Of the placements measured, those are kept that no other one beats in latency, error and size at once."""
    search = int8("any", False).details["search"]  # where what is faster and what is more exact are not the same
    kept = search["tried"]
    costs = [(one["speed"]["ratio"], -one["sqnr_db"], one["bytes"]) for one in kept]
    assert search["measured"] >= 5  # of three layers: none, the ends in all combinations, the middle one
    assert 1 < len(kept) <= search["measured"]
    assert all(one["front"] for one in kept)
    assert search["chosen"] in kept
    for cost in costs:
        assert not any(other != cost and np.less_equal(other, cost).all() for other in costs)


def test_a_whole_climb_fits_into_the_manifest(request_for: RequestFor) -> None:
    """Every rung that was climbed is told, without its list of single answers, in less than 200 kB."""
    noise = np.random.default_rng(9).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    request = request_for(tolerance=Tolerance(max_drop=1e-9), target="x86-64", calibration=noise)
    with steady_races(in_float=(0,), host="x86-64"):
        details = OnnxInt8Exporter().export(request).details
    rungs = details["rungs"]
    names = [rung["name"] for rung in rungs]
    assert (names[0], names[-1]) == ("min-max", "QAT")
    assert {"entropy", "percentile", "mse", "bias correction", "equalization"} < set(names)
    assert rungs[-1]["note"] == "no training images were given"
    climbed = [rung for rung in rungs if rung["decisions"] is not None]
    assert len(climbed) > 4
    assert all(rung["decisions"]["n"] == 300 and rung["sqnr_db"] > 10 for rung in climbed)
    assert not any("flips" in rung["decisions"] for rung in climbed)
    assert rungs[details["best"]] in climbed
    assert len(details["saturation"]) == LAYERS - 1
    assert 2000 < len(json.dumps(details)) < 200_000


def test_another_targets_placement_is_decided_by_error_alone(request_for: RequestFor) -> None:
    """What this machine's clock says does not decide for a target that it is not, and the details say so."""
    found = {}
    for target in ("x86-64", "any"):
        with steady_races(host="arm64"):
            one = OnnxInt8Exporter().export(request_for(target=target))
        found[target] = (layers_in_float(onnx.load(str(one.path))), one.details)
    floats, details = found["x86-64"]
    assert floats == (0,)
    assert details["search"]["reason"].startswith("by error alone")
    assert details["speed"] is details["search"]["chosen"]["speed"] is None
    assert "this machine is arm64" in details["gate"]["checks"][1]["reason"]
    floats, details = found["any"]
    assert floats == ()
    assert details["search"]["chosen"]["speed"]["ratio"] == 0.8


def test_a_net_of_one_convolution_is_quantized(tmp_path: Path, calibration: npt.NDArray[np.uint8]) -> None:
    """Where a convolution and the last layer are all there is both can be in int8, and the file is smaller all the same."""
    from edgecnn.nets import build_net
    from edgecnn.nets.compact import compact_config
    from edgecnn.training.checkpoint import Header, save_checkpoint

    torch.manual_seed(0)
    preprocess = Preprocess(height=8, width=8, channels=1, scale=0.01, zero_point=78)
    model = compact_config((8,), depth=1)
    net = build_net(model, preprocess, 3).eval()
    file = tmp_path / "one.safetensors"
    save_checkpoint(file, net, Header(model=model, preprocess=preprocess, labels=("a", "b", "c")))
    request = ExportRequest(checkpoint=file, folder=tmp_path, calibration=calibration, tolerance=LOOSE)
    written = {"fp32": OnnxExporter().export(request).path}
    with steady_races():
        one = OnnxInt8Exporter().export(dataclasses.replace(request, written=written))
    assert layers_in_float(onnx.load(str(one.path))) == ()
    assert [layer["int8"] for layer in one.details["fusion"]["layers"]] == [True, True]
    assert one.path.stat().st_size < written["fp32"].stat().st_size
