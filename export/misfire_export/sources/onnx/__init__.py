"""Reads classifiers, segmenters and values of foreign ONNX files, and makes bundles of them."""
