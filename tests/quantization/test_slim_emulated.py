"""A slimmed int8 file on a CPU without VNNI, where ONNX Runtime rewrites weights as it loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantization import small

from edgecnn.device.emulate import QEMU, run_emulated
from edgecnn.quantization.qdq import quantize
from edgecnn.quantization.recipe import Recipe
from edgecnn.quantization.slim import slim


def test_a_slimmed_model_loads_where_weights_are_rewritten(tmp_path: Path) -> None:
    """Two layers of as many channels have equal zero points; each keeps its own, or the weights could not be rewritten."""
    if shutil.which(QEMU) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{QEMU} is not installed")
    feeds = {"x": small.images(4)}
    model = quantize(small.chain(), small.ranges_of(small.chain(), {"x": small.images()}), Recipe())
    onnx.save(slim(model), tmp_path / "slim.onnx")
    config = {"session.x64quantprecision": "1"}
    found = run_emulated("Haswell", tmp_path / "slim.onnx", feeds, config)
    assert np.allclose(found["y"], small.reference(model, feeds)[0], rtol=1e-3, atol=1e-4)
