"""The trained checkpoint in PyTorch, in float32 or, as the truth that others are judged by, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgecnn.backends.base import Array, SessionOptions, Tensors
from edgecnn.host import usable_threads
from edgecnn.spec import Artifact, TensorSpec

if TYPE_CHECKING:
    from edgecnn.training.checkpoint import Checkpoint


class TorchBackend:
    """Runs checkpoints; devices are `cpu` and `cuda:N`."""

    name = "torch"
    formats = ("safetensors",)
    requires = {  # noqa: RUF012 -- a constant; ClassVar would say no more
        "torch": "pip install 'edgecnn[train]'",
        "safetensors": "pip install 'edgecnn[train]'",
    }

    def devices(self) -> tuple[str, ...]:
        """List `cpu` and every CUDA device that torch sees."""
        import torch

        return ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))

    def load(self, artifact: Artifact, device: str, options: SessionOptions) -> TorchSession:
        """Rebuild the network from the checkpoint and put it on the device, ready for inference."""
        from edgecnn.training.checkpoint import parse_checkpoint

        return TorchSession(parse_checkpoint(artifact.read_bytes(), str(artifact.path)), device, options)


class TorchSession:
    """One network in evaluation mode."""

    def __init__(self, checkpoint: Checkpoint, device: str, options: SessionOptions) -> None:
        import torch

        from edgecnn.nets import Deployed

        self._torch = torch
        if device != "cpu":  # TF32 has a tenth of float32's precision, which no parity check would let pass
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.device = device
        self._threads = options.threads or usable_threads()
        self._dtype = torch.float64 if options.dtype == "float64" else torch.float32
        self._net = Deployed(checkpoint.build(), checkpoint.preprocess).to(device=device, dtype=self._dtype).eval()
        classes = len(checkpoint.labels)
        self.inputs = (TensorSpec(name="image", shape=(None, *checkpoint.preprocess.shape), dtype="uint8"),)
        self.outputs = tuple(
            TensorSpec(name=name, shape=(None, classes), dtype=options.dtype) for name in ("logits", "probabilities")
        )

    def run(self, feeds: Mapping[str, Array]) -> Tensors:
        """Run on host arrays."""
        torch = self._torch
        previous = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                image = torch.from_numpy(np.ascontiguousarray(feeds["image"])).to(self.device)
                logits, probabilities = self._net(image)
                return {"logits": logits.cpu().numpy(), "probabilities": probabilities.cpu().numpy()}
        finally:
            torch.set_num_threads(previous)

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._net
