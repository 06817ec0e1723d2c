"""Scales that do not fit, planted at every quantizer of small nets, are found in the block that is to blame, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from parity import planted
from quantization import graphs, small, zoo

from edgecnn.parity.localize import Localization, OnnxSide, localize
from edgecnn.quantization.source import read_source

NETS = ("residual", "groups", "depthwise", "squeeze_excite", "hard_swish", "two_outputs", "nhwc_uint8", "matmul_head")


def rescaled(model: onnx.ModelProto, write: float, read: float, tensor: str) -> onnx.ModelProto:
    """Multiply the scale by which one float tensor is quantized, and that by which its first reader dequantizes."""

    def edit(changed: onnx.ModelProto) -> None:
        writer = _writer(changed, tensor)
        readers = [node for node in changed.graph.node if node.op_type == "DequantizeLinear"]
        readers = [node for node in readers if node.input[0] == writer.output[0]]
        scale = planted.array(changed, writer.input[1])
        for name, factor, nodes in (
            ("written", write, [writer]),
            ("read", read, readers if read == write else readers[:1]),
        ):
            changed.graph.initializer.append(numpy_helper.from_array((scale * factor).astype(np.float32), name))
            for node in nodes:
                node.input[1] = name

    return planted.edited(model, edit)


def _writer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor)


def tensors(model: onnx.ModelProto) -> list[str]:
    """List what is quantized on the way."""
    constant = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return [node.input[0] for node in nodes if node.input[0] not in constant]


def net(name: str, folder: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Give a float model and what ONNX Runtime's own tools make of it on other inputs."""
    raw = zoo.ZOO[name]()
    model = read_source(zoo.save(raw, folder / "model.onnx")).model
    ((image, calibration),) = zoo.feeds(raw, 64, seed=5).items()
    return model, graphs.quantized(model, graphs.Feeds(image, calibration))


def holds(found: Localization, node: str) -> bool:
    """Say whether the first block at fault holds a node."""
    return found.first is not None and node in found.first.nodes


def named(floats: onnx.ModelProto, model: onnx.ModelProto, write: float, read: float) -> tuple[list[str], list[str]]:
    """List the tensors whose fault was found where it is, and those where it was not."""
    right: list[str] = []
    wrong: list[str] = []
    for tensor in tensors(model):
        writer = _writer(model, tensor)
        reader = next(node for node in model.graph.node if writer.output[0] in node.input)
        found = localize(OnnxSide(floats), rescaled(model, write, read, tensor), zoo.feeds(floats, 8))
        (right if holds(found, writer.name if read == write else reader.name) else wrong).append(tensor)
    return right, wrong


@pytest.mark.parametrize("name", NETS)
def test_a_stale_dequantizer_is_found_at_every_tensor(name: str, tmp_path: Path) -> None:
    """What is read by 1.25 times the scale it was written by is found in the block that reads it, inside of a block too."""
    right, wrong = named(*net(name, tmp_path), 1.0, 1.25)
    assert len(right) >= 5
    assert wrong == []


# Halved, a softmax's range and that of an average still cover its values: nothing is cut off, so nothing is wrong.
COVERED: dict[str, Sequence[str]] = {"residual": ("f",), "matmul_head": ("scores_QuantizeLinear_Input",)}


@pytest.mark.parametrize("name", NETS)
def test_a_halved_scale_is_found_in_the_block_that_writes(name: str, tmp_path: Path) -> None:
    """A range half as wide is found where the tensor is written, unless it still covers all values."""
    right, wrong = named(*net(name, tmp_path), 0.5, 0.5)
    assert len(right) >= 5
    assert wrong == list(COVERED.get(name, ()))


@pytest.mark.parametrize(("tensor", "block"), [("ar", "a"), ("cr", "c"), ("mean", "globalaveragepool")])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_range_cuts_off_is_not_blamed_on_who_reads_it(tensor: str, block: str, seed: int) -> None:
    """Of a halved range only the block that writes is at fault, though the error shows in the one that reads as well."""
    faulty = rescaled(planted.quantized(seed), 0.5, 0.5, tensor)
    found = localize(OnnxSide(small.chain(seed)), faulty, {"x": small.images()})
    assert [one.name for one in found.blocks if one.culprit] == [block]
    place = [one.name for one in found.blocks].index(block)
    assert (found.blocks[place + 1].multiple or 0.0) > 3


def test_a_stale_scale_is_said_with_its_factor() -> None:
    """The reason names both nodes and how much larger the one scale is, and the file is blamed, not the kernel."""
    model = planted.quantized()
    found = localize(OnnxSide(small.chain()), rescaled(model, 1.0, 1.1, "flat"), {"x": small.images()})
    assert found.first is not None
    assert "g" in found.first.nodes
    assert "1.1 times as large" in found.first.why
    assert _writer(model, "flat").name in found.first.why
    assert found.first.blame == "model file"


def test_a_factor_folded_into_a_dequantizer_is_no_fault() -> None:
    """A file that doubles a tensor by reading it by twice its scale is right if the reference doubles it."""
    # Without biases: ONNX Runtime takes those to be in steps of what is read, and would double them too.
    floats = planted.edited(small.chain(), planted.weight("g.bias", np.zeros_like))
    doubled = planted.edited(floats, planted.weight("g.weight", lambda weight: weight * 2))
    model = planted.edited(planted.quantized(), planted.weight("g.bias_quantized", np.zeros_like))
    found = localize(OnnxSide(doubled), rescaled(model, 1.0, 2.0, "flat"), {"x": small.images()})
    assert found.first is None, found.reason
