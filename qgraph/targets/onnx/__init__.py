"""ONNX: QDQ for onnxruntime and others."""
