"""What edgecnn adds to bare ONNX Runtime, in a loop and as a whole command, and what torch takes for the same image."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import demo_bundle, environment, interleave, print_machine, print_ratio
from PIL import Image

from edgecnn.backends.base import SessionOptions
from edgecnn.bundle import Bundle
from edgecnn.predict import Predictor
from edgecnn.spec import BackendRef

BARE = """
import sys
import numpy as np
import onnxruntime as ort
from PIL import Image
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pixels = np.asarray(Image.open(sys.argv[2]).convert("L"))[None, :, :, None]
probabilities = session.run(["probabilities"], {"image": pixels})[0][0]
for index in np.argsort(-probabilities)[:3]:
    print(index, probabilities[index])
"""

TORCH = """
import sys
import numpy as np
import torch
from PIL import Image
from edgecnn.nets import Deployed
from edgecnn.training.checkpoint import parse_checkpoint
torch.set_num_threads(1)
checkpoint = parse_checkpoint(open(sys.argv[1], "rb").read(), sys.argv[1])
net = Deployed(checkpoint.build(), checkpoint.preprocess).eval()
pixels = torch.from_numpy(np.array(Image.open(sys.argv[2]).convert("L"))[None, :, :, None])
with torch.inference_mode():
    probabilities = torch.softmax(net.logits(pixels), 1)[0].numpy()
for index in np.argsort(-probabilities)[:3]:
    print(index, probabilities[index])
"""


def in_process(bundle: Path, precision: str) -> None:
    """Compare Predictor and `predict` over files with the same done by hand."""
    opened = Bundle.open(bundle)
    ref = BackendRef(backend="onnxruntime", artifact=precision)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = str(bundle / f"{precision}.onnx")
    bare = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    files = [bundle / name for name in opened.manifest.goldens.images]
    with Predictor(opened, ref, SessionOptions(threads=1)) as predictor:
        for batch in (1, 32):
            pixels = opened.goldens().pixels[:batch]
            sides = {
                "edgecnn": lambda pixels=pixels: predictor.probabilities(pixels),
                "session.run": lambda pixels=pixels: bare.run(None, {"image": pixels}),
            }
            print_ratio(f"loop, {precision}, batch {batch}", interleave(sides, 60, 400), 1e6, "us", 1.10)

        def by_hand() -> None:
            for file in files:
                pixels = np.asarray(Image.open(file).convert("L"))[None, :, :, None]
                bare.run(None, {"image": pixels})

        sides = {"edgecnn": lambda: list(predictor.predict(files)), "by hand": by_hand}
        print_ratio(f"32 PNG files, {precision}", interleave(sides, 60, 3), 1e3, "ms")


def whole_command(bundle: Path) -> None:
    """Compare `edgecnn predict BUNDLE one.png` with a bare script, both from process start to end."""
    golden = str(bundle / "goldens" / "000.png")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        default = json.loads((bundle / "manifest.json").read_text())["default_artifact"]
        commands = {
            "edgecnn": [
                str(Path(sys.executable).with_name("edgecnn")),
                "predict",
                str(bundle),
                golden,
                "--threads",
                "1",
            ],
            "script": [sys.executable, str(script), str(bundle / f"{default}.onnx"), golden],
        }
        sides = {name: lambda command=command: run(command) for name, command in commands.items()}
        print_ratio("whole command, one.png", interleave(sides, 25, 1), 1e3, "ms", 1.3)
        torch_script = Path(folder) / "torch_road.py"
        torch_script.write_text(TORCH)
        torch_road = [sys.executable, str(torch_script), str(bundle / "model.safetensors"), golden]
        roads = {"torch": lambda: run(torch_road), "edgecnn": sides["edgecnn"]}
        print_ratio(
            "one.png by torch, its import and the checkpoint's load with it", interleave(roads, 9, 1), 1e3, "ms"
        )


def run(command: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run(command, check=True, capture_output=True, env=environment())


if __name__ == "__main__":
    print_machine()
    for which in ("fp32", "int8"):
        in_process(demo_bundle(), which)
    whole_command(demo_bundle())
