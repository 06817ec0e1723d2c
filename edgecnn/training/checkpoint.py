"""A checkpoint: safetensors weights that carry, in their header, all that is needed to rebuild the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from edgecnn.errors import CheckpointError, UsageError
from edgecnn.files import write_atomic
from edgecnn.layers import ModelConfig
from edgecnn.manifest import MANIFEST
from edgecnn.nets import build_net
from edgecnn.nets.function import TRUST, is_trusted
from edgecnn.spec import Frozen, Preprocess

FILE = "model.safetensors"
_KEY = "edgecnn"


class Header(Frozen, frozen=True):
    """What the weights belong to."""

    model: ModelConfig
    preprocess: Preprocess
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Weights with their network's configuration, preprocessing and labels.

    `bundle` names the bundle that they come out of; what it says is then not taken for the user's own words.
    """

    model: ModelConfig
    preprocess: Preprocess
    labels: tuple[str, ...]
    weights: dict[str, torch.Tensor]
    bundle: str | None = None

    def build(self) -> nn.Module:
        """Rebuild the network with its weights, in evaluation mode.

        Raises:
            CheckpointError: the net cannot be built, or the weights are not its own, or are not finite; or a bundle
                asks to run a function that nobody here has trusted.
        """
        function = self.model.function
        if self.bundle is not None and function is not None and not is_trusted(function):
            raise CheckpointError(
                f"{self.bundle}: to rebuild this bundle's net would import and run {function}: set {TRUST}=1 if you "
                "trust both, or use a backend that runs its ONNX files"
            )
        try:
            net = build_net(self.model, self.preprocess, len(self.labels))
            net.load_state_dict(self.weights)
        except UsageError as error:
            raise CheckpointError(f"the net cannot be built: {error}") from None
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the weights do not fit the net ({' '.join(str(error).split())[:200]})") from None
        bad = [name for name, tensor in self.weights.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise CheckpointError(f"weights that are not finite in {', '.join(bad[:3])}: train again")
        return net.eval()


def save_checkpoint(path: Path, net: nn.Module, header: Header) -> None:
    """Write the weights and their header, atomically."""
    # Clones, for safetensors refuses weights that two layers share.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    write_atomic(path, save_tensors(weights, metadata={_KEY: msgspec.json.encode(header).decode()}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, given its file or the run folder that holds it.

    Raises:
        CheckpointError: it is missing, damaged, or not edgecnn's.
    """
    file = path / FILE if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as error:
        hint = "; give a folder that `edgecnn train` wrote" if path.is_dir() or not path.exists() else ""
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}){hint}") from None
    return parse_checkpoint(data, str(file), of_bundle=(file.parent / MANIFEST).exists())


def parse_checkpoint(data: bytes, where: str, of_bundle: bool = True) -> Checkpoint:
    """Read a checkpoint from its bytes; `where` is for error messages, and names the bundle if it comes out of one.

    Raises:
        CheckpointError: the bytes are damaged or not an edgecnn checkpoint.
    """
    try:
        weights = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = msgspec.json.decode(data[8 : 8 + length]).get("__metadata__", {})
        header = msgspec.json.decode(metadata[_KEY], type=Header)
    except (SafetensorError, msgspec.MsgspecError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: not a checkpoint of edgecnn, or damaged ({error})") from None
    return Checkpoint(
        model=header.model,
        preprocess=header.preprocess,
        labels=header.labels,
        weights=weights,
        bundle=where if of_bundle else None,
    )
