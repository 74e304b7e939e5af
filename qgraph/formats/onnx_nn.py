"""Converters to ONNX."""
