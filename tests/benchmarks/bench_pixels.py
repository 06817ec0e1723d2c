"""What it brings that the uint8 image is itself the first quantized tensor of the int8 model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

from common import demo_bundle, print_machine

from edgecnn.backends.base import SessionOptions, open_session
from edgecnn.bench.latency import measure_latency, ratio
from edgecnn.bundle import Bundle
from edgecnn.quantization import qdq
from edgecnn.quantization.feeds import from_arrays
from edgecnn.quantization.recipe import recipe_for
from edgecnn.quantization.rungs import Workshop
from edgecnn.quantization.source import read_source
from edgecnn.quantization.yardstick import Yardstick
from edgecnn.spec import Artifact, BackendRef


def main() -> None:
    """Quantize the demo's net with and without feeding pixels and time both, interleaved."""
    print_machine()
    bundle = Bundle.open(demo_bundle())
    pixels = bundle.goldens().pixels
    source = read_source(bundle.artifact("fp32").path).model
    calibration, recipe = from_arrays({"image": pixels}), recipe_for("any")
    ranges = Workshop(calibration, recipe, Yardstick(source, calibration)).ranges(source, "min-max")
    made = {"pixels": qdq.quantize(source, ranges, recipe)}
    with mock.patch.object(qdq, "feed_pixels"):
        made["normalised"] = qdq.quantize(source, ranges, recipe)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in made}
        for name, path in paths.items():
            path.write_bytes(made[name].SerializeToString())
        ref, options = BackendRef(backend="onnxruntime"), SessionOptions(threads=1)
        sessions = {
            name: open_session(ref, Artifact(name=name, format="onnx", path=path), options)
            for name, path in paths.items()
        }
        found = measure_latency(sessions, {"image": pixels[:1]}, seconds=4.0)
    times = ", ".join(f"{name} {latency.p50_us:.1f} us" for name, latency in found.items())
    compared = ratio(found["pixels"], found["normalised"])
    print(f"int8, batch 1: {times}; ratio {compared.median:.3f} ({compared.low:.3f} to {compared.high:.3f})")


if __name__ == "__main__":
    main()
