"""Provides tools for ONNX graphs: trace, check, tidy, rename, find the last layer."""
