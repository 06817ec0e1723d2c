"""From a trial's checkpoint to its int8 file, quickly: every layer in int8, by the least and the largest value of each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecnn import registry
from edgecnn.assemble import CALIBRATION_IMAGES
from edgecnn.data import Dataset
from edgecnn.exporter import Exported, Exporter, ExportRequest
from edgecnn.images import Pixels
from edgecnn.runs import CHECKPOINT
from edgecnn.spec import Target

if TYPE_CHECKING:
    import onnx


def export_int8(work: Path, dataset: Dataset, target: Target, seed: int) -> Exported:
    """Export to int8, calibrated on training images, and leave nothing in the folder beside it but the checkpoint.

    An export for a box also tries which layers had better stay in float, with a stopwatch: half a minute that a search
    does not have for each of its trials, and that would time them by another rule than each other.

    Raises:
        ExportError: the network cannot be exported.
        QuantizationError: it cannot be quantized.
    """
    count = min(CALIBRATION_IMAGES, len(dataset.train))
    chosen = np.random.default_rng(seed).choice(len(dataset.train), count, replace=False)
    calibration = dataset.train.take(np.sort(chosen))
    exporter: Exporter = registry.get(registry.EXPORTERS, "onnx")
    written = exporter.export(ExportRequest(work / CHECKPOINT, work, calibration, target))
    path = work / "int8.onnx"
    path.write_bytes(quantize_plainly(written.path, calibration, target).SerializeToString())
    for other in work.iterdir():
        if other not in (work / CHECKPOINT, path):
            other.unlink()
    return Exported(path=path, format="onnx", precision="int8", target=target, details={})


def quantize_plainly(fp32: Path, calibration: Pixels, target: Target) -> onnx.ModelProto:
    """Quantize every layer of an exported file, with ranges from the calibration images, uint8 (N, H, W, C).

    Raises:
        QuantizationError: it cannot be quantized.
    """
    from edgecnn.quantization.feeds import from_arrays
    from edgecnn.quantization.observe import observe
    from edgecnn.quantization.qdq import activation_tensors, quantize
    from edgecnn.quantization.ranges import choose_range
    from edgecnn.quantization.recipe import recipe_for
    from edgecnn.quantization.slim import slim
    from edgecnn.quantization.source import read_source

    source, recipe = read_source(fp32).model, recipe_for(target)
    feeds = from_arrays({source.graph.input[0].name: calibration})
    observed = observe(source, feeds, activation_tensors(source))
    symmetric = recipe.activations == "int8"
    return slim(quantize(source, {name: choose_range(one, "min-max", symmetric) for name, one in observed.items()}, recipe))  # fmt: skip
