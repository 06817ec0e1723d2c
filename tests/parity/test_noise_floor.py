"""The noise floor: right float32 backends lie within it on many random nets, and a thousandth of one weight does not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from parity.fakes import change_weight, fed
from quantization import graphs

from edgecnn.parity import Verdict, judge, record
from edgecnn.parity.subject import Subject
from edgecnn.spec import BackendRef

Array = npt.NDArray[Any]
BACKENDS = [name for name in ("onnxruntime", "openvino", "reference") if name == "reference" or find_spec(name)]
NETS = range(8)


def _net(seed: int) -> tuple[onnx.ModelProto, int]:
    """Draw a net: 1 to 3 convolutions of random widths, kernels and strides, depthwise ones too, and a Gemm."""
    rng = np.random.default_rng(seed)
    channels, weights, nodes, last = int(rng.choice([1, 3])), {}, [], "x"
    start = channels
    for layer in range(int(rng.integers(1, 4))):
        kernel, depthwise = int(rng.choice([1, 3, 5])), layer > 0 and rng.uniform() < 0.3
        out = channels if depthwise else int(rng.integers(4, 24))
        group = channels if depthwise else 1
        shape = (out, channels // group, kernel, kernel)
        weights[f"w{layer}"] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        weights[f"b{layer}"] = rng.normal(0, 0.3, out)
        strides = [int(rng.choice([1, 2]))] * 2
        nodes.append(graphs.node("Conv", f"{last} w{layer} b{layer}", f"c{layer}", pads=[kernel // 2] * 4, strides=strides, group=group))  # fmt: skip
        nodes.append(graphs.node(str(rng.choice(["Relu", "HardSwish", "Sigmoid"])), f"c{layer}", f"r{layer}"))
        channels, last = out, f"r{layer}"
    classes = int(rng.integers(3, 12))
    weights["wg"], weights["bg"] = rng.normal(0, channels**-0.5, (classes, channels)), rng.normal(0, 0.1, classes)
    nodes += [graphs.node("GlobalAveragePool", last, "m"), graphs.node("Flatten", "m", "f")]
    nodes.append(graphs.node("Gemm", "f wg bg", "y", transB=1))
    return graphs.graph(nodes, (start, 16, 16), **weights), start


def _images(seed: int, channels: int) -> Array:
    return np.random.default_rng(seed + 1000).normal(size=(48, channels, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("seed", NETS)
def test_right_backends_are_within_and_a_moved_weight_is_not(seed: int, tmp_path: Path) -> None:
    """Every float32 backend passes on the net as it is, and none on one whose head has a weight off by a thousandth."""
    model, channels = _net(seed)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    change_weight(model, "wg", 1e-3)
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(model.SerializeToString())
    refs = [BackendRef(backend=name, artifact=one) for name in BACKENDS for one in (None, str(moved))]
    report = judge(record(Subject.of_model(path), None, refs, fed(_images(seed, channels))))
    for cell in report.cells:
        wanted = Verdict.FAIL if "moved" in cell.candidate else Verdict.PASS
        assert cell.computation.verdict is wanted, (cell.candidate, cell.computation.reason)
        assert cell.computation.multiple is not None
        assert (cell.computation.multiple > 100) is (wanted is Verdict.FAIL)
