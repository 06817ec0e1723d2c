"""Exporters, one target a file; they need torch and onnx and never run on the box."""

import edgecnn  # noqa: F401  # switches ONNX Runtime's telemetry off before an exporter can import it
