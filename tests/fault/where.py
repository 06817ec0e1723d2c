"""Where a planted fault is, by the localization that users get, the clean float model being the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from fault.faults import Fault

from edgecnn import images
from edgecnn.bundle import Bundle
from edgecnn.parity.localize import Localization, OnnxSide, localize
from edgecnn.parity.localize.cut import open_on_cpu


def localized(fault: Fault, clean: Path, planted: Path) -> Localization:
    """Find the first block at fault of what was planted into a copy of the `clean` bundle."""
    bundle = Bundle.open(clean)
    goldens = bundle.goldens()
    with fault.around():
        preprocess = bundle.manifest.preprocess
        own = np.stack([images.decode(data, preprocess) for data in goldens.encoded])
    return localize(
        OnnxSide(onnx.load(str(clean / "fp32.onnx"))),
        onnx.load(str(planted / f"{fault.artifact}.onnx")),
        {"image": goldens.pixels},
        fault.kernel or open_on_cpu,
        {"image": own},
    )
