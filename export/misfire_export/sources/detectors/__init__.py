"""Reads object detectors that others exported to ONNX, and makes bundles of them."""
