"""Labelled images in, a compact CNN on an edge box out, with proof that it gives the same answers there."""

import os

# ONNX Runtime's Linux wheels report usage since 1.29 and read this variable once, at import.
# Setting it here means that no road into edgecnn can import onnxruntime first with telemetry on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
