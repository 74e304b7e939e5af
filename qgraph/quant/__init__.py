"""Quantization arithmetic, observers and the calibration table."""
