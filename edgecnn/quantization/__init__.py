"""int8 and fp16 from any float ONNX CNN: calibrated, placed, proved and gated; needs onnx and onnxruntime."""
