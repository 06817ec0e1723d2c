"""Exporters, one target a file; they need torch and onnx and never run on the box."""
