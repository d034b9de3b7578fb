"""Reads a graph from its source: a training run, a torch module, or a foreign ONNX file."""
