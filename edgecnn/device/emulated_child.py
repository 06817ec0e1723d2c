"""The process that `edgecnn.device.emulate` starts under qemu: one model, one run, arrays in and out as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(request: str) -> None:
    """Run as `python -m edgecnn.device.emulated_child JSON`; prints the outputs' names as JSON."""
    # Nothing else is imported: every module costs an emulated interpreter ten times what it costs a real one.
    import numpy as np
    import onnxruntime

    asked = json.loads(request)
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in asked["config"].items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(asked["model"], options, providers=["CPUExecutionProvider"])
    folder = Path(asked["folder"])
    with np.load(folder / "feeds.npz") as arrays:
        feeds = {name: arrays[f"arr_{index}"] for index, name in enumerate(asked["inputs"])}
    names = [value.name for value in session.get_outputs()]
    np.savez(folder / "outputs.npz", *session.run(names, feeds))
    print(json.dumps(names))


if __name__ == "__main__":
    main(sys.argv[1])
