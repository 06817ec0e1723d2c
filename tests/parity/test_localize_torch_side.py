"""A torch network as the reference of the file that was exported from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from parity import planted
from quantization import graphs
from torch import nn
from torch.nn import functional

from edgecnn.nets import Deployed
from edgecnn.parity.localize import Localization, localize
from edgecnn.parity.localize.points import Look, points_of
from edgecnn.parity.localize.torch_side import TorchSide
from edgecnn.quantization.fusion import optimised
from edgecnn.quantization.graph import layers_of
from edgecnn.quantization.source import read_source
from edgecnn.spec import Preprocess

SIDE = 8


class Block(nn.Module):
    """A residual block whose last activation and sum are functions, not modules, and whose first works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add."""
        return functional.relu(self.second(self.first(x)) + x)


class Net(nn.Module):
    """A stem, a residual block, a mean over the plane, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.block = Block()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        return self.head(functional.avg_pool2d(self.block(self.stem(x)), SIDE).flatten(1))


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    """Return a net with batch norms that do something."""
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    preprocess = Preprocess(height=SIDE, width=SIDE, channels=3, scale=1 / 64, zero_point=128)
    return Deployed(net, preprocess).eval()


@pytest.fixture(scope="module")
def exported(deployed: Deployed) -> onnx.ModelProto:
    """Return the file as the exporter writes it."""
    program = torch.onnx.export(
        deployed,
        (torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits", "probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    return program.model_proto


@pytest.fixture(scope="module")
def int8(exported: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Return the file in int8, its normalisation left in float."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(exported, str(path))
    return graphs.quantized(read_source(path).model, graphs.Feeds("image", images(64, 5)))


def images(count: int = 16, seed: int = 1) -> np.ndarray:
    """Draw pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def find(deployed: Deployed, model: onnx.ModelProto) -> Localization:
    """Localize against the net."""
    return localize(TorchSide(deployed), model, {"image": images()})


def weight_named(model: onnx.ModelProto, layer: str) -> str:
    """Find a layer's weight by its beginning, float or quantized."""
    return next(
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name.startswith(f"{layer}.weight") and len(tensor.dims) in (2, 4)
    )


def test_the_exported_file_is_clean(deployed: Deployed, exported: onnx.ModelProto) -> None:
    """Every fused block of the file gives what the modules give in float64, the functional sum among them."""
    found = find(deployed, exported)
    assert found.first is None, found.reason
    assert found.whole_reproduced
    names = [one.name for one in found.blocks]
    assert names[1] == "net.stem.0 + relu"
    assert "net.block.second.0 + add + relu" in names


def test_the_quantized_file_is_clean(deployed: Deployed, int8: onnx.ModelProto) -> None:
    """Its int8 version raises no alarm against the checkpoint."""
    found = find(deployed, int8)
    assert found.first is None, found.reason
    assert found.whole_reproduced
    assert sum(one.quantized for one in found.blocks) >= 4


FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a weight off by 1e-3": ("net.block.first.0", lambda w: planted.bumped(w, 1e-3)),
    "transposed kernel": ("net.block.second.0", lambda w: w.swapaxes(2, 3)),
    "reversed input channels": ("net.stem.0", lambda w: w[:, ::-1]),
    "swapped classes": ("net.head", lambda w: w[[1, 0, 2, 3]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_file_is_found_by_its_modules_name(
    deployed: Deployed, exported: onnx.ModelProto, fault: str
) -> None:
    """A weight changed in the file is found in the block called after the checkpoint's module."""
    layer, change = FAULTS[fault]
    found = find(deployed, planted.edited(exported, planted.weight(weight_named(exported, layer), change)))
    assert found.first is not None
    assert layer in found.first.name.split(" + ")
    assert found.first.blame == "model file"
    assert sum(one.culprit for one in found.blocks) == 1


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "a weight off by 1e-3"])
def test_a_fault_in_the_quantized_file_is_found(deployed: Deployed, int8: onnx.ModelProto, fault: str) -> None:
    """The same in int8."""
    layer, change = FAULTS[fault]
    found = find(deployed, planted.edited(int8, planted.weight(weight_named(int8, layer), change)))
    assert found.first is not None
    assert layer in found.first.name.split(" + ")


def test_other_pixels_in_the_graph_are_preprocessing(deployed: Deployed, exported: onnx.ModelProto) -> None:
    """A net whose mean is another than the file's finds fault with the preprocessing, not with a layer."""
    preprocess = Preprocess(height=SIDE, width=SIDE, channels=3, scale=1 / 64, zero_point=120)
    found = find(Deployed(deployed.net, preprocess).eval(), exported)
    assert found.first is not None
    assert found.first.blame == "preprocessing"
    assert any("constant" in line for line in found.advice)
    assert sum(one.culprit for one in found.blocks) == 1


def test_points_are_modules_outputs_behind_norm_and_activation(deployed: Deployed, exported: onnx.ModelProto) -> None:
    """What the stem's fused block makes is the module chain's output as torch itself gives it, in float64."""
    from edgecnn.parity.localize.ready import ready

    model = ready(exported)
    look = Look(model)
    points = points_of(model, optimised(model))
    values = TorchSide(deployed).values(look, points, {"image": images()})
    stem = next(point for point in points if point.maker == "net.stem.0")
    pixels = (torch.from_numpy(images()).double() - 128) / 64
    wanted = deployed.net.stem.double()(pixels.permute(0, 3, 1, 2)).detach().numpy()
    deployed.net.float()
    assert np.abs(values[stem.tensor] - wanted).max() < 1e-12


def test_the_net_is_left_as_it_was(deployed: Deployed) -> None:
    """The side works on a copy: the caller's net keeps its type."""
    TorchSide(deployed)
    assert next(deployed.parameters()).dtype == torch.float32


def test_a_checkpoints_bundle_is_clean_and_its_fault_found(bundle_folder: Path) -> None:
    """A bundle's own checkpoint is the reference of its fp32 and int8 files, and a changed weight is found."""
    from edgecnn.bundle import Bundle
    from edgecnn.training.checkpoint import parse_checkpoint

    bundle = Bundle.open(bundle_folder)
    records = bundle.manifest.artifacts
    name = next(name for name, record in records.items() if record.format == "safetensors")
    checkpoint = parse_checkpoint(bundle.artifact(name).read_bytes(), "bundle")
    side = TorchSide(Deployed(checkpoint.build(), checkpoint.preprocess))
    feeds = {"image": bundle.goldens().pixels}
    for artifact in ("fp32", "int8"):
        model = onnx.load(str(bundle.artifact(artifact).path))
        found = localize(side, model, feeds)
        assert found.first is None, found.reason
        assert found.whole_reproduced
    model = onnx.load(str(bundle.artifact("fp32").path))
    layer = layers_of(model)[1]
    changed = planted.edited(model, planted.weight(layer.weight, lambda w: planted.bumped(w, 1e-3)))
    found = localize(side, changed, feeds)
    assert found.first is not None
    assert layer.name in found.first.name.split(" + ")
