"""The process that `edgecnn.device.emulate` starts under qemu: it holds one model and answers until its input ends.

It is run as a file, by a Python that may have numpy and onnxruntime and nothing else. Every module costs an emulated
interpreter ten times what it costs a real one, so that nothing else is imported.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(request: str) -> None:
    """Load a model and answer requests, a line of JSON each, on standard input; the answers are lines too.

    The first line answered is the model's signature. A request is the list of the inputs' names, whose arrays lie in
    `feeds.npz`; its answer is the outputs' names, whose arrays lie in `outputs.npz`. What ONNX Runtime refuses is
    answered with its reason.
    """
    # Standard output carries the answers and nothing else: what native code prints there goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.loads(request)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        session = _load(asked["model"], asked["config"])
    except Exception as error:  # onnxruntime raises a dozen types of its own
        answer({"error": str(error)})
        return
    answer({side: [[value.name, value.type, value.shape] for value in values] for side, values in _sides(session)})
    for line in sys.stdin:
        try:
            answer({"outputs": _run(session, json.loads(line), Path(asked["folder"]))})
        except Exception as error:
            answer({"error": str(error)})


def _load(model: str, config: dict[str, str]) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _sides(session: Any) -> list[tuple[str, Any]]:
    return [("inputs", session.get_inputs()), ("outputs", session.get_outputs())]


def _run(session: Any, inputs: list[str], folder: Path) -> list[str]:
    import numpy as np

    # npz keys name the fields of a zip file and np.savez's own arguments; tensors may have any name.
    with np.load(folder / "feeds.npz") as arrays:
        feeds = {name: arrays[f"arr_{index}"] for index, name in enumerate(inputs)}
    names = [value.name for value in session.get_outputs()]
    np.savez(folder / "outputs.npz", *session.run(names, feeds))
    return names


if __name__ == "__main__":
    # Python put this file's folder first; nothing that lies beside it is to be taken for somebody else's module.
    sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).parent]
    main(sys.argv[1])
